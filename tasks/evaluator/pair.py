"""Stages: build preference pairs; select uncertain pairs for the oracle."""

import json
from collections.abc import Sequence

from models.core.data import Label, Pair, Response, Score, Selection, usable_comparisons, usable_scores
from models.core.errors import ConfigError
from models.training.preference_pairs import Paired, best_worst
from tasks.engine.caching import StageResult, stage
from tasks.engine.store import Ref, store
from tasks.labelling.batches import Batch, labels_of


@stage(version=4)
def build_pairs(
    responses: Ref, scores: Ref | None, history: tuple[Batch, ...], *, least_gap: float = 0.0
) -> StageResult:
    """Return the pairs of each prompt, the oracle's own or best against worst; raise ConfigError if there is none.

    Without proxy scores they are the oracle's alone: best against worst of what it has scored. `least_gap` is that of
    `best_worst`, in units of the scores.
    """
    made = _paired(store().rows(responses, Response), scores, labels_of(history), least_gap)
    if not made.pairs:
        raise ConfigError(
            f"no preference pair: {made.ties} prompts are tied, {made.incomplete} have fewer than two scores and of "
            f"{len(made.uncertain)} the evaluator is not sure. Nobody can tell the responses apart: buy more labels, use "
            "another evaluator, or lower gate.min_confidence"
        )
    by_proxy = sum(p.provenance == "proxy" for p in made.pairs)
    facts = {
        "pairs": float(len(made.pairs)),
        "proxy_pairs": float(by_proxy),
        "oracle_pairs": float(len(made.pairs) - by_proxy),
        "tied_prompts": float(made.ties),
        "incomplete_prompts": float(made.incomplete),
        "doubtful_prompts": float(len(made.uncertain)),
    }
    return StageResult(ref=store().write_rows("pairs", made.pairs, Pair), facts=facts)


@stage(version=2)
def select_uncertain(
    responses: Ref, scores: Ref, history: tuple[Batch, ...], *, least_gap: float, queries: int, compare: bool
) -> StageResult:
    """Return picks for the oracle: the pairs that the evaluator is least sure of, at most so many queries, surest last.

    A pair is one query for a pairwise oracle, else one for each of its responses that has no score yet. What has been
    asked before is not asked again.
    """
    rows, labels = store().rows(responses, Response), labels_of(history)
    known, asked = usable_scores(labels), {(label.response_id, label.against) for label in labels}
    texts = {r.id: (r.prompt_id, r.text) for r in rows}
    told = {texts[one] for one, against in asked if not against and one in texts}
    picks: list[Selection] = []
    uncertain = _paired(rows, scores, labels, least_gap).uncertain
    for unsure in sorted(uncertain, key=lambda one: (one.gap, one.best)):
        components = json.dumps({"gap": unsure.gap})
        sides = unsure.best, unsure.worst
        if compare:
            asked_before = bool({sides, sides[::-1]} & asked)
            found = [Selection(unsure.best, -unsure.gap, components, unsure.worst)]
        else:
            unknown = [one for one in sides if one not in known]
            asked_before = any(texts[one] in told for one in unknown)
            found = [Selection(one, -unsure.gap, components) for one in unknown]
        if asked_before:  # and the answer decided nothing: it would be paid for again to say the same
            continue
        if len(picks) + len(found) > queries:
            break
        picks += found
    return StageResult(ref=store().write_rows("picks", picks, Selection), facts={"picks": float(len(picks))})


def _paired(responses: Sequence[Response], scores: Ref | None, labels: Sequence[Label], least_gap: float) -> Paired:
    oracle, compared = usable_scores(labels), usable_comparisons(labels)
    if scores is None:
        proxy, asked = {}, {response_id for couple in compared for response_id in couple} | oracle.keys()
        responses = [r for r in responses if r.id in asked]
    else:
        proxy = {s.response_id: s.score for s in store().rows(scores, Score)}
    return best_worst(responses, oracle=oracle, proxy=proxy, compared=compared, least_gap=least_gap)
