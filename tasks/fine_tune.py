"""Supervised fine-tuning: M_0 → M_1."""

from pathlib import Path

from models.policies.launched import Training, train
from models.policies.sft import SFT
from models.preference import Demonstration
from tasks.caching import Product, stage
from tasks.devices import on_device
from tasks.policy import Policy
from tasks.settings import settings
from tasks.store import Ref, new_folder, store


@stage(version=4)
@on_device()
def fine_tune(policy: Policy, seed_examples: Ref, recipe: SFT, *, seed: int) -> Product:
    """Return the adapter trained on the seed examples."""
    examples = store().rows(seed_examples, Demonstration)
    with new_folder() as folder:
        training = Training("sft", examples, recipe, seed)
        facts = train(policy.checkpoint(), training, Path(folder), config=settings().accelerate)
        return Product(ref=store().write_folder("adapters", Path(folder)), facts=facts)
