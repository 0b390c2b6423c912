"""Stage: supervised fine-tuning, M_0 → M_1."""

from pathlib import Path

from models.core.data import Demonstration
from models.training.accelerate import Training, train
from models.training.sft import SFT
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.settings import settings
from tasks.engine.store import Ref, new_folder, store
from tasks.policy.policy_ref import Policy


@stage(version=4)
@on_device()
def fine_tune(policy: Policy, seed_examples: Ref, recipe: SFT, *, seed: int) -> StageResult:
    """Return the adapter trained on the seed examples."""
    examples = store().rows(seed_examples, Demonstration)
    with new_folder() as folder:
        training = Training("sft", examples, recipe, seed)
        facts = train(policy.checkpoint(), training, Path(folder), config=settings().accelerate)
        return StageResult(ref=store().write_folder("adapters", Path(folder)), facts=facts)
