"""Ask an oracle one question, to see whether it can be asked, and how it answers."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import uuid4

from models.core.data import LabelStatus, Response
from models.core.money import MicroUsd
from models.labelling.label import LabellingSession, label_responses
from models.oracles.base import CostEstimate, Oracle, approximate_tokens, canonical_pair
from models.oracles.llm_calls import records_of
from models.oracles.replies import unwrapped

_PROMPT = "Say in one sentence why the sky is blue."
_GOOD = "Air scatters blue light more than red light, so blue reaches us from all over the sky."
_POOR = "Because it is."
_PATIENCE = 60.0  # seconds; a trial is watched


class Trial(NamedTuple):
    """What one question has brought: NaN where the reply could not be read; `raw` is the record of it."""

    score: float
    status: LabelStatus
    micro_usd: MicroUsd
    tokens: int
    seconds: float
    raw: str


def expected_cost(oracle: Oracle) -> CostEstimate:
    """Return what a trial is expected to cost."""
    return oracle.estimate(_PROMPT, _text(oracle), approximate_tokens)


def ask_once(session: LabellingSession) -> Trial:
    """Ask an oracle one question, which is bought each time, and kept apart from all labels. Raises as label_responses."""
    apart = replace(session.for_replicate("trial", uuid4().hex[:12]), patience=_PATIENCE)
    question = Response("trial", "trial", _PROMPT, 0, _text(session.oracle), 0, 0.0)
    most = session.oracle.max_cost(question.prompt, question.text)
    began = time.monotonic()
    (label,) = label_responses([question], apart, max_queries=1, max_micro_usd=most)
    took = time.monotonic() - began
    (row,) = session.ledger.rows(account=apart.account)
    return Trial(label.score, label.status, label.micro_usd, label.tokens, row["seconds"] or took, row["raw"] or "")


def abilities(oracle: Oracle, raw: str) -> list[str]:
    """Return what the record of a trial's replies says of the server, in lines; nothing of oracles that are no server's."""
    return [line for record in records_of([raw]) for line in _abilities(oracle, record)]


def _abilities(oracle: Oracle, record: Mapping[str, Any]) -> list[str]:
    texts, lines = [str(text) for text in record["texts"]], []
    if getattr(oracle, "structured_output", False):
        if all(map(_is_object, texts)):
            lines.append("JSON comes as asked")
        elif all(_is_object(unwrapped(text).text) for text in texts):
            lines.append("JSON comes in a fence or after thoughts, which are taken off")
        else:
            lines.append("JSON does not come as asked: set structured_output to false")
    if getattr(oracle, "scoring", "") == "expected":
        came = any(value is not None for value in record["said"])
        lines.append(
            "token probabilities come"
            if came
            else "token probabilities of the score do not come: set scoring to stated"
        )
    lines.append(
        "it states no usage: its calls are booked at the most" if record.get("price") else "it states its usage"
    )
    lines.append(
        f"it says that it is {record['model']}" if record.get("model") else "it does not say which model it is"
    )
    return lines


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _text(oracle: Oracle) -> str:
    return canonical_pair(_GOOD, _POOR)[0] if oracle.query_type == "pairwise" else _GOOD
