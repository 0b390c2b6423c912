"""DPO on the preference pairs: M_r → M_{r+1}, with M_r as the reference."""

from pathlib import Path

from models.policies.dpo import DPO, train_dpo
from models.preference import Pair
from tasks.caching import Product, stage
from tasks.policy import Policy
from tasks.store import Ref, new_folder, store


@stage(version=3)
def align(policy: Policy, pairs: Ref, recipe: DPO, *, seed: int) -> Product:
    """Return the adapter trained on the pairs."""
    with new_folder() as folder:
        facts = train_dpo(policy.checkpoint().load(), store().rows(pairs, Pair), recipe, folder=Path(folder), seed=seed)
        return Product(ref=store().write_folder("adapters", Path(folder)), facts=facts)
