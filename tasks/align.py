"""DPO on the preference pairs: M_r → M_{r+1}, with M_r as the reference."""

from pathlib import Path

from models.policies.dpo import DPO, reference_logprob, train_dpo
from models.preference import Pair
from tasks.caching import Product, stage
from tasks.policy import Policy
from tasks.store import Ref, new_folder, store


@stage(version=1)
def reference(policy: Policy, pairs: Ref) -> Product:
    """Return the log-probabilities of each pair's chosen and rejected response under M_r, shape (N, 2), in nats.

    Once for every training on the same pairs, whatever its recipe and seed.
    """
    rows = store().rows(pairs, Pair)
    with store().new_matrix("reference", (len(rows), 2)) as matrix:
        matrix.values[:] = reference_logprob(policy.checkpoint().shared(), rows)
    return Product(ref=matrix.ref)


@stage(version=3)
def align(policy: Policy, pairs: Ref, reference: Ref, recipe: DPO, *, seed: int) -> Product:
    """Return the adapter trained on the pairs."""
    model, rows, logprob = policy.checkpoint().load(), store().rows(pairs, Pair), store().matrix(reference)
    with new_folder() as folder:
        facts = train_dpo(model, rows, logprob, recipe, folder=Path(folder), seed=seed)
        return Product(ref=store().write_folder("adapters", Path(folder)), facts=facts)
