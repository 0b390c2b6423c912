"""Losses of reward heads: Bradley-Terry, regression, ordinal.

Comparisons are trained by TRL's RewardTrainer, −log σ(r_chosen − r_rejected − margin), which centres rewards too. Scores and
levels are trained one text at a time by the losses below.
"""

from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.core.arrays import FloatArray

if TYPE_CHECKING:
    import torch

Loss = Literal["bradley_terry", "regression", "ordinal"]


def squared_error(
    outputs: "torch.Tensor", labels: "torch.Tensor", num_items_in_batch: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return the mean of (r − score)², for one reward a text and scores of unit spread."""
    import torch

    del num_items_in_batch
    return torch.nn.functional.mse_loss(outputs.logits[:, 0].float(), labels.float())


def proportional_odds(
    outputs: "torch.Tensor", labels: "torch.Tensor", num_items_in_batch: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return the mean of −log p(level | r), with p(level ≥ k) = σ(r − θ_k) (McCullagh 1980); θ comes with the outputs."""
    import torch

    del num_items_in_batch
    reward, thresholds = outputs.logits[:, :1].float(), outputs.logits[:, 1:].float()
    ends = thresholds.new_full((len(reward), 1), torch.inf)
    above = reward - torch.cat([-ends, thresholds, ends], dim=1)  # ∞ under level 0, −∞ over the last
    level = labels.long()[:, None]
    low, high = above.gather(1, level).squeeze(1), above.gather(1, level + 1).squeeze(1)
    # log(σ(low) − σ(high)), of which nothing cancels out
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(log_sigmoid(low) + log_sigmoid(-high) + torch.log1p(-torch.exp(high - low))).mean()


@cache
def ordinal_head() -> "type[torch.nn.Module]":
    """Return the class of a head that gives a text's reward and the thresholds between levels, (…, 1 + thresholds)."""
    import torch

    class OrdinalHead(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, weight: "torch.Tensor", thresholds: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight)  # no layer of its own, which an adapter would be put on
            # in float32 whatever the model: steps of training are smaller than those of bfloat16
            like = {"dtype": torch.float32, "device": weight.device}
            self.first = torch.nn.Parameter(torch.full((1,), -(thresholds - 1) / 2.0, **like))
            self.gaps = torch.nn.Parameter(
                torch.full((thresholds - 1,), np.log(np.e - 1.0), **like)
            )  # softplus of it: 1

        def forward(self, states: "torch.Tensor") -> "torch.Tensor":
            reward = states @ self.weight.t()
            steps = torch.cat([self.first, torch.nn.functional.softplus(self.gaps)])
            return torch.cat([reward.float(), steps.cumsum(0).expand(*reward.shape[:-1], -1)], dim=-1)

    return OrdinalHead


def information(loss: Loss, rewards: FloatArray, scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Return what each text's label says of its reward, the expected −∂²log p/∂r², shape (N,).

    `scores` are of unit spread, `thresholds` those of the levels: what the two losses over single texts need.
    """
    from scipy.special import expit

    if loss == "regression":
        return np.full(len(rewards), 1.0 / max(float(np.mean((scores - rewards) ** 2)), 1e-6))
    above = expit(rewards[:, None] - thresholds)
    density = np.pad(above * (1.0 - above), ((0, 0), (1, 1)))
    chance = -np.diff(np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0))), axis=1)
    return np.asarray((np.diff(density, axis=1) ** 2 / np.maximum(chance, 1e-12)).sum(1))
