"""First on the path of a training's processes, this has accelerate spread it over processors as it does over GPUs.

By itself accelerate has FSDP in force on GPUs alone.
"""

import os

if "LOCAL_RANK" in os.environ:
    import torch
    from accelerate import state
    from torch import distributed

    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"  # else data-parallel models are looked for on GPUs

    def _with_gloo(*_: object, **__: object) -> tuple[str, state.DistributedType]:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        return "gloo", state.DistributedType.MULTI_GPU

    def _on_the_processor(self: state.PartialState) -> None:
        self.device = torch.device("cpu")

    assert hasattr(state.PartialState, "_prepare_backend")
    assert hasattr(state.PartialState, "set_device")
    state.PartialState._prepare_backend = _with_gloo
    state.PartialState.set_device = _on_the_processor
