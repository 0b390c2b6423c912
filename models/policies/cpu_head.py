"""A language-model head for training on CPUs: scores the completion's positions only, in torch's own kernels.

TRL 1.16 fuses the head into the loss with a Triton kernel. Where there is no Triton its fallback scores every position,
pads and prompts included, in tiles: more than half of a DPO step on two cores. The values here are the same.
"""

import types
from typing import Any

# Models that transform their logits keep TRL's head, which knows how.
_TRANSFORMS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
    "output_router_logits",
)


def use_cpu_head(trainer: Any) -> None:  # noqa: ANN401
    """Replace the fused head of a trainer's policy, and of its reference where it is another model, on a CPU."""
    for wrapped in {id(m): m for m in (trainer.model, getattr(trainer, "ref_model", None)) if m is not None}.values():
        model = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
        plain = not any(getattr(model.config.get_text_config(), name, None) for name in _TRANSFORMS)
        if model.device.type == "cpu" and plain:
            model.forward = types.MethodType(_forward_with(model.forward), model)


def _forward_with(fused: Any) -> Any:  # noqa: ANN401
    """Return a forward that answers `fused_lm_head=True` itself and leaves every other call to the one given."""
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    def forward(
        self: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        fused_lm_head: bool = False,
        labels: Any = None,  # noqa: ANN401
        num_items_in_batch: Any = None,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if not fused_lm_head or "shift_labels" in kwargs:
            given = {
                "fused_lm_head": fused_lm_head,
                "labels": labels,
                "num_items_in_batch": num_items_in_batch,
            }
            return fused(*args, **given, **kwargs)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != -100
        logits = self.get_output_embeddings()(hidden[mask]).float()
        log_probs = -torch.nn.functional.cross_entropy(logits, labels[mask], reduction="none")
        with torch.no_grad():
            log_z = logits.logsumexp(-1)
            entropy = log_z - (torch.exp(logits - log_z.unsqueeze(-1)) * logits).sum(-1)
            mean_logits, is_top1 = logits.mean(-1), logits.argmax(-1) == labels[mask]

        def spread(values: Any) -> Any:  # noqa: ANN401
            # masked_scatter keeps the graph where no label is valid: the loss is then a differentiable zero
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        log_probs = spread(log_probs)
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / count,
            log_probs=log_probs,
            entropy=spread(entropy),
            mean_logits=spread(mean_logits),
            is_top1=spread(is_top1),
            label_mask=mask,
        )

    return forward
