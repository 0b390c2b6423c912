"""Which numbers a machine is fast at."""

import pytest

from flows.config.experiment import PolicyConfig
from models.policies import dtypes
from models.policies.checkpoint import Checkpoint
from models.policies.dtypes import Dtype, attention, native_dtype

XEON = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu sse avx2 avx512_bf16 amx_bf16 amx_tile\n"
EPYC = "processor\t: 0\nmodel name\t: EPYC\nflags\t\t: fpu sse avx2\nbugs\t\t: bf16\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("processor", "gpu", "dtype"),
    [
        (XEON, False, "bfloat16"),
        (EPYC, False, "float32"),
        (EPYC, True, "bfloat16"),
        (GRAVITON, False, "bfloat16"),
        ("", False, "bfloat16"),
    ],
)
def test_bfloat16_is_for_those_who_compute_in_it(processor: str, gpu: bool, dtype: str) -> None:
    assert native_dtype(processor, gpu=gpu) == dtype


def test_auto_is_decided_when_an_experiment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in ("float32", "bfloat16"):
        monkeypatch.setattr(dtypes, "native_dtype", lambda native=native: native)
        read = PolicyConfig(model="m")
        assert (read.dtype, PolicyConfig.model_validate({"model": "m", "dtype": "auto"}).dtype) == (native, native)
        assert read.model_dump()["dtype"] == native, "another machine is told what was decided"
    assert PolicyConfig(model="m", dtype="float32").dtype == "float32"
    with pytest.raises(ValueError, match="dtype"):
        PolicyConfig(model="m", dtype="float16")


@pytest.mark.parametrize(
    ("dtype", "installed", "capability", "chosen"),
    [
        ("bfloat16", True, (8, 0), "flash_attention_2"),
        ("bfloat16", True, (7, 5), None),
        ("bfloat16", False, (9, 0), None),
        ("float32", True, (9, 0), None),
    ],
)
def test_flash_attention_is_taken_where_it_runs(
    dtype: Dtype, installed: bool, capability: tuple[int, int], chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.policies.dtypes.has_gpu", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert attention(dtype) == chosen


def test_a_model_that_others_place_on_gpus_has_it_too(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.policies.checkpoint.attention", lambda _: "eager")  # as a GPU would have another
    assert tiny_checkpoint.load_on_cpu().model.config._attn_implementation == "eager"
    assert tiny_checkpoint._loaded().model.config._attn_implementation == "eager"
