"""Faster CPU kernels for TRL's trainers: head, adapters and attention of a step.

- TRL 1.16 fuses the language-model head into the loss with a Triton kernel. Where there is no Triton its fallback scores
  every position, pads and prompts included, in tiles; here only the completion's are scored (head.py).
- peft casts every input to float32, multiplies by the adapter there and adds it to the layer's output in three passes; here
  the adapter is one more product in the model's own dtype, added to the output in place, forward and backward.
- torch's fused attention is 2 to 9 times slower, forward and backward in bfloat16, than the plain one over 16 to 128 tokens.

The values are the same in float32; in bfloat16 the adapter's product is rounded like every other product of the model, as
it is under autocast on a GPU. benchmarks/training.py measures it.
"""

import types
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING

from models.policies.lm_head import has_plain_head, scored

if TYPE_CHECKING:
    import torch
    from torch.autograd.function import FunctionCtx
    from transformers import PreTrainedModel, Trainer

FEW_TOKENS = 128  # in a row; beyond, the fused attention catches up
_SCORES = 1 << 18  # of attention, of one head, in a batch: the plain attention keeps them for the way back


def use_cpu_kernels(trainer: "Trainer") -> None:
    """Give the model that a trainer trains faster kernels; nothing where there is a GPU, which it may be moved to yet."""
    import torch

    model = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
    if model.device.type != "cpu" or torch.cuda.is_available():
        return
    for layer in model.modules():
        if _is_plain_adapter(layer):
            layer.forward = types.MethodType(_adapted(layer.forward), layer)
    model.base_model.forward = _attending(model.base_model.forward)
    if has_plain_head(model) and not model.get_output_embeddings().weight.requires_grad:
        model.forward = types.MethodType(_scoring(model.forward), model)


def _attending(whole: "PreTrainedModel") -> Callable[..., object]:
    """Return a forward with plain attention over few tokens."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def forward(*args: "torch.Tensor", **kwargs: "torch.Tensor") -> "torch.Tensor":
        ids = kwargs.get("input_ids", args[0] if args else None)  # a classifier gives them by position
        few = ids is not None and ids.shape[1] <= FEW_TOKENS and ids.shape[0] * ids.shape[1] ** 2 <= _SCORES
        with sdpa_kernel(SDPBackend.MATH) if few else nullcontext():
            return whole(*args, **kwargs)

    return forward


def _is_plain_adapter(layer: "torch.nn.Module") -> bool:
    """Whether a layer is a frozen linear one with one LoRA adapter as in 2106.09685: no dropout, bias or variant."""
    import torch
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and not layer.base_layer.weight.requires_grad
    )


@cache
def _adapted_product() -> "type[torch.autograd.Function]":
    import torch

    class Adapted(torch.autograd.Function):  # type: ignore[misc]
        """y = W x + B A x, for frozen W."""

        @staticmethod
        def forward(
            ctx: "FunctionCtx", x: "torch.Tensor", layer: "torch.nn.Module", a: "torch.Tensor", b: "torch.Tensor"
        ) -> "torch.Tensor":
            weight = layer.weight
            rows, a, b = x.reshape(-1, x.shape[-1]), a.to(weight.dtype), b.to(weight.dtype)
            low = rows @ a.t()
            ctx.save_for_backward(rows, weight, a, b, low)
            return layer(rows).addmm_(low, b.t()).view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: "FunctionCtx", gradient: "torch.Tensor") -> "torch.Tensor":
            rows, weight, a, b, low = ctx.saved_tensors
            flat = gradient.reshape(-1, gradient.shape[-1])
            inner = flat @ b
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x = (flat @ weight).addmm_(inner, a).view(*gradient.shape[:-1], -1)
            return of_x, None, (inner.t() @ rows).float(), (flat.t() @ low).float()

    return Adapted


def _adapted(plain: Callable[..., object]) -> Callable[..., object]:
    """Return a forward that adds the adapter's product in place; peft's own where the adapter is off or merged."""

    def forward(self: "torch.nn.Module", x: "torch.Tensor", *args: object, **kwargs: object) -> "torch.Tensor":
        name = self.active_adapters[0]
        if self.disable_adapters or self.merged or args or kwargs or x.dtype != self.base_layer.weight.dtype:
            return plain(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight * self.scaling[name]
        return _adapted_product().apply(x, self.base_layer, a, b)

    return forward


def _scoring(fused: "type[torch.nn.Module]") -> Callable[..., object]:
    """Return a forward that answers `fused_lm_head=True` itself and leaves every other call to the one given."""
    from trl.trainer.utils import FusedCausalLMOutput

    def forward(
        self: "torch.nn.Module",
        *args: object,
        fused_lm_head: bool = False,
        labels: "torch.Tensor | None" = None,
        num_items_in_batch: "torch.Tensor | None" = None,
        **kwargs: object,
    ) -> "torch.Tensor":
        # a mixture of experts is asked for its routing too, whose loss is the library's
        if not fused_lm_head or "shift_labels" in kwargs or kwargs.get("output_router_logits"):
            given = {
                "fused_lm_head": fused_lm_head,
                "labels": labels,
                "num_items_in_batch": num_items_in_batch,
            }
            return fused(*args, **given, **kwargs)
        kwargs["use_cache"] = False
        states = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        assert labels is not None  # noqa: S101 - the trainer's own call has them
        labels = labels[:, 1:]
        mask = labels != -100
        tokens = scored(states[mask], self.get_output_embeddings().weight, labels[mask])

        def spread(values: "torch.Tensor") -> "torch.Tensor":
            # masked_scatter keeps the graph where no label is valid: the loss is then a differentiable zero
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        log_probs = spread(tokens.logprob)
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / count,
            log_probs=log_probs,
            entropy=spread(tokens.entropy),
            mean_logits=spread(tokens.mean_logit),
            is_top1=spread(tokens.is_likeliest),
            label_mask=mask,
        )

    return forward
