"""The arms of the paper and its controls, as changes to an experiment."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "random": {"labelling.acquisition": {"kind": "random"}},
    "coreset_ift": {"labelling.acquisition": {"kind": "coreset_ift"}},
    "coreset_eft": {"labelling.acquisition": {"kind": "coreset_eft"}},
    "uncertainty": {"labelling.acquisition": {"kind": "predictive_entropy"}},
    "shuffled": {"labelling.acquisition": {"kind": "random"}, "labelling.shuffle_labels": True},
}
