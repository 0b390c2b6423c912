"""Choose the dtype of a model's weights: bfloat16 where the hardware computes in it, else float32."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

Dtype = Literal["bfloat16", "float32"]

_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls what x86 and Arm processors have for it


def has_gpu() -> bool:
    """Whether there is a GPU, asked without loading torch."""
    return Path("/proc/driver/nvidia/version").exists()


def native_dtype(processor: str | None = None, *, gpu: bool | None = None) -> Dtype:
    """Return bfloat16 where a GPU or the processor computes in it, else float32.

    A processor that has no such instructions is made to by the library: a training step of the packaged model took 64 s
    instead of 2.4 s. `processor` is Linux's description of it; where there is none, bfloat16 is taken to be fine.
    """
    if gpu if gpu is not None else has_gpu():
        return "bfloat16"
    described = Path("/proc/cpuinfo")
    if processor is None:
        processor = described.read_text() if described.exists() else ""
    flags = {
        flag
        for line in processor.splitlines()
        if line.lower().startswith(("flags", "features"))
        for flag in line.split()
    }
    return "bfloat16" if not flags or flags & _FLAGS else "float32"


def attention(dtype: Dtype) -> str | None:
    """Return the attention to load a model with: FlashAttention 2 (2307.08691) where it can run; None: the library's own.

    It runs on a GPU from Ampere on, in bfloat16, where the package flash-attn is installed.
    """
    if dtype != "bfloat16" or not has_gpu():
        return None
    import torch
    from transformers.utils import is_flash_attn_2_available

    able = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    return "flash_attention_2" if able and is_flash_attn_2_available() else None


def _chosen(given: object) -> object:
    return native_dtype() if given == "auto" else given


# `auto` is decided where the parameters are read, and what is decided is what is recorded
ChosenDtype = Annotated[Dtype, BeforeValidator(_chosen, json_schema_input_type=Literal["auto", "bfloat16", "float32"])]
