"""Make the preference pairs for DPO from the evaluator's and the expert's scores."""

from models.pairs import best_worst
from models.preference import Pair, Response, Score, usable_comparisons
from tasks.caching import Product, stage
from tasks.history import Batch, labels_of, scores_of
from tasks.store import Ref, store


@stage(version=3)
def pair(responses: Ref, scores: Ref | None, history: tuple[Batch, ...]) -> Product:
    """Return the pairs of each prompt, the expert's own or best against worst; raise ValueError if every prompt is tied.

    Without proxy scores they are the expert's alone: best against worst of what it has scored.
    """
    oracle = scores_of(history)
    compared = usable_comparisons(labels_of(history))
    rows = store().rows(responses, Response)
    if scores is None:
        proxy, asked = {}, {response_id for couple in compared for response_id in couple} | oracle.keys()
        rows = [r for r in rows if r.id in asked]
    else:
        proxy = {s.response_id: s.score for s in store().rows(scores, Score)}
    made = best_worst(rows, oracle=oracle, proxy=proxy, compared=compared)
    if not made.pairs:
        raise ValueError(
            f"no preference pair: {made.ties} prompts are tied and {made.incomplete} have fewer than two scores. "
            "Nobody can tell the responses apart: buy more labels, or use another evaluator"
        )
    by_proxy = sum(p.provenance == "proxy" for p in made.pairs)
    facts = {
        "pairs": float(len(made.pairs)),
        "proxy_pairs": float(by_proxy),
        "oracle_pairs": float(len(made.pairs) - by_proxy),
        "tied_prompts": float(made.ties),
        "incomplete_prompts": float(made.incomplete),
    }
    return Product(ref=store().write_rows("pairs", made.pairs, Pair), facts=facts)
