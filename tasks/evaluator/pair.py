"""Make the preference pairs for DPO from the evaluator's and the expert's scores."""

import json
from collections.abc import Sequence

from models.core.data import Label, Pair, Pick, Response, Score, usable_comparisons, usable_scores
from models.training.preference_pairs import Paired, best_worst
from tasks.engine.caching import Product, stage
from tasks.engine.store import Ref, store
from tasks.labelling.batches import Batch, labels_of


@stage(version=4)
def pair(responses: Ref, scores: Ref | None, history: tuple[Batch, ...], *, least_gap: float = 0.0) -> Product:
    """Return the pairs of each prompt, the expert's own or best against worst; raise ValueError if there is none.

    Without proxy scores they are the expert's alone: best against worst of what it has scored. `least_gap` is that of
    `best_worst`, in units of the scores.
    """
    made = _paired(store().rows(responses, Response), scores, labels_of(history), least_gap)
    if not made.pairs:
        raise ValueError(
            f"no preference pair: {made.ties} prompts are tied, {made.incomplete} have fewer than two scores and of "
            f"{len(made.doubts)} the evaluator is not sure. Nobody can tell the responses apart: buy more labels, use "
            "another evaluator, or lower dpo.gate.threshold"
        )
    by_proxy = sum(p.provenance == "proxy" for p in made.pairs)
    facts = {
        "pairs": float(len(made.pairs)),
        "proxy_pairs": float(by_proxy),
        "oracle_pairs": float(len(made.pairs) - by_proxy),
        "tied_prompts": float(made.ties),
        "incomplete_prompts": float(made.incomplete),
        "doubtful_prompts": float(len(made.doubts)),
    }
    return Product(ref=store().write_rows("pairs", made.pairs, Pair), facts=facts)


@stage(version=1)
def doubts(
    responses: Ref, scores: Ref, history: tuple[Batch, ...], *, least_gap: float, queries: int, compare: bool
) -> Product:
    """Return picks for the expert: the pairs that the evaluator is least sure of, at most so many queries, surest last.

    A pair is one query for an expert who compares, else one for each of its responses that has no score yet. What has been
    asked before is not asked again.
    """
    rows, labels = store().rows(responses, Response), labels_of(history)
    known, asked = usable_scores(labels), {(label.response_id, label.against) for label in labels}
    texts = {r.id: (r.prompt_id, r.text) for r in rows}
    told = {texts[one] for one, against in asked if not against and one in texts}
    picks: list[Pick] = []
    doubted = _paired(rows, scores, labels, least_gap).doubts
    for doubt in sorted(doubted, key=lambda doubt: (doubt.gap, doubt.best)):
        why = json.dumps({"gap": doubt.gap})
        sides = doubt.best, doubt.worst
        if compare:
            asked_before = bool({sides, sides[::-1]} & asked)
            found = [Pick(doubt.best, -doubt.gap, why, doubt.worst)]
        else:
            unknown = [one for one in sides if one not in known]
            asked_before = any(texts[one] in told for one in unknown)
            found = [Pick(one, -doubt.gap, why) for one in unknown]
        if asked_before:  # and the answer decided nothing: it would be paid for again to say the same
            continue
        if len(picks) + len(found) > queries:
            break
        picks += found
    return Product(ref=store().write_rows("picks", picks, Pick), facts={"picks": float(len(picks))})


def _paired(responses: Sequence[Response], scores: Ref | None, labels: Sequence[Label], least_gap: float) -> Paired:
    oracle, compared = usable_scores(labels), usable_comparisons(labels)
    if scores is None:
        proxy, asked = {}, {response_id for couple in compared for response_id in couple} | oracle.keys()
        responses = [r for r in responses if r.id in asked]
    else:
        proxy = {s.response_id: s.score for s in store().rows(scores, Score)}
    return best_worst(responses, oracle=oracle, proxy=proxy, compared=compared, least_gap=least_gap)
