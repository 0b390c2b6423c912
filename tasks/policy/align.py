"""Stages: reference log-probabilities, and DPO or a variant on the preference pairs."""

from pathlib import Path

from models.core.data import Pair, Response
from models.training.accelerate import Training, train
from models.training.dpo import DPO, reference_logprob
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.settings import settings
from tasks.engine.store import Ref, new_folder, store
from tasks.policy.policy_ref import Policy


@stage(version=2)
@on_device()
def reference(policy: Policy, pairs: Ref, sampled: Ref) -> StageResult:
    """Return the log-probabilities of each pair's chosen and rejected response under M_r, shape (N, 2), in nats.

    Once for every training on the same pairs, whatever its recipe and seed. `sampled` are the responses that M_r has given
    itself: what is recorded of them is not computed again.
    """
    rows, own = store().rows(pairs, Pair), store().rows(sampled, Response)
    with store().new_matrix("reference", (len(rows), 2)) as matrix:
        matrix.values[:] = reference_logprob(policy.checkpoint().load_cached(), rows, own)
    return StageResult(ref=matrix.ref)


class Aligned(StageResult):
    """The adapter, and those on the way to it."""

    along: tuple[Ref, ...] = ()


@stage(version=4)
@on_device()
def align(policy: Policy, pairs: Ref, reference: Ref | None, recipe: DPO, *, seed: int, along: int = 0) -> Aligned:
    """Return the adapter trained on the pairs, and as many on the way to it as `along` says, at equal distances.

    `reference` is what the stage of that name has made, for DPO.
    """
    held = None if reference is None else store().matrix(reference)
    training = Training(recipe.algorithm, store().rows(pairs, Pair), recipe, seed, held)
    with new_folder() as parent:
        last, *passed = (Path(parent, str(number)) for number in range(along + 1))
        facts = train(policy.checkpoint(), training, last, along=passed, config=settings().accelerate)
        adapter, *others = (store().write_folder("adapters", folder) for folder in (last, *passed))
        return Aligned(ref=adapter, facts=facts, along=tuple(others))
