"""Make the preference pairs for DPO from the evaluator's and the expert's scores."""

from models.pairs import best_worst
from models.preference import Pair, Response, Score, usable_comparisons
from tasks.caching import Product, stage
from tasks.history import Batch, labels_of, scores_of
from tasks.store import Ref, store


@stage(version=2)
def pair(responses: Ref, scores: Ref, history: tuple[Batch, ...]) -> Product:
    """Return the pairs of each prompt, the expert's own or best against worst; raise ValueError if every prompt is tied."""
    oracle = scores_of(history)
    compared = usable_comparisons(labels_of(history))
    proxy = {s.response_id: s.score for s in store().rows(scores, Score)}
    made = best_worst(store().rows(responses, Response), oracle=oracle, proxy=proxy, compared=compared)
    if not made.pairs:
        raise ValueError(
            f"no preference pair: {made.ties} prompts are tied and {made.incomplete} have fewer than two scores. "
            "The evaluator cannot tell responses apart: buy more labels, or use another evaluator"
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
