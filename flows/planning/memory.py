"""Estimate the memory of a run's largest stages, on the GPU or in RAM."""

from typing import NamedTuple

from flows.config.experiment import Experiment
from models.generators.hf import Transformers
from models.policies.dtypes import has_gpu
from models.policies.resolve import folder_at_hand
from models.training.accelerate import IN_ONE, PARTED, check_config
from models.training.config import TrainingConfig
from models.training.memory import Shape, generating, shape_of, training
from tasks.engine.settings import settings

_PER_PAIR = 2  # texts


class Room(NamedTuple):
    """The memory that there is, in bytes, and whose."""

    bytes: int
    whose: str


class Need(NamedTuple):
    """What a stage takes at its largest, in bytes, and of how many texts and tokens at once."""

    stage: str
    bytes: int
    work: str


def memory_lines(config: Experiment) -> list[str]:
    """Return the plan's line of memory, and one for each stage that may find no room."""
    folder = folder_at_hand(config.policy.model)
    if folder is None:
        return ["memory     not known before the model is here; it is fetched when the run starts"]
    if (shape := shape_of(folder)) is None:
        return ["memory     not known: the model's files do not say its sizes"]
    room, found = _room(), needs(config, shape)
    said = ", ".join(f"{need.stage} {_gb(need.bytes)}" for need in found)
    return [
        f"memory     at most {said}; {room.whose} has {_gb(room.bytes)}",
        *(
            f"           {need.stage} ({need.work}) may not fit: lower its batch_size, or the tokens"
            for need in found
            if need.bytes > room.bytes
        ),
    ]


def needs(config: Experiment, shape: Shape) -> list[Need]:
    """Return what generating and each training take: of one process, where accelerate starts several."""
    generation, dtype = config.generation, config.policy.dtype
    tokens = config.policy.max_prompt_tokens + generation.max_new_tokens
    found: list[Need] = []
    if isinstance(generation, Transformers):  # other engines take what they are given, and fit into it
        sampled = generating(shape, dtype, rows=generation.batch_size, tokens=tokens)
        found.append(Need("generate", sampled, f"{generation.batch_size} texts of {tokens} tokens at once"))
    schedules: list[tuple[str, TrainingConfig, int]] = [("fine_tune", config.policy.sft, 1)]
    judge = getattr(config.evaluator, "training", None)
    if isinstance(judge, TrainingConfig):
        pairs = getattr(config.evaluator, "loss", "") == "bradley_terry"
        schedules.append(("fit_evaluator", judge, _PER_PAIR if pairs else 1))
    if config.feedback != "none":
        schedules.append(("align", config.dpo, _PER_PAIR))
    launched = {"fine_tune", *(["align"] if config.dpo.algorithm not in IN_ONE else [])}
    spread_by, alone = settings().accelerate, (1, "NO")
    several = alone if spread_by is None else check_config(spread_by)
    for stage, schedule, texts in schedules:
        processes, spread = several if stage in launched else alone
        rows = schedule.batch_size * texts // processes
        taken = training(
            shape,
            dtype,
            rows=rows,
            tokens=schedule.max_length,
            lora=schedule.lora,
            head_in_pieces=not has_gpu(),
            parts=processes if spread in PARTED else 1,
        )
        found.append(Need(stage, taken, f"{rows} texts of {schedule.max_length} tokens at once"))
    return found


def _room() -> Room:
    if has_gpu():
        import torch

        if torch.cuda.is_available():
            return Room(torch.cuda.get_device_properties(0).total_memory, "the GPU")
    import psutil

    return Room(psutil.virtual_memory().total, "this machine")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
