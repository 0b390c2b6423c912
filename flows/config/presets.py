"""Presets of sweeps: the paper's arms, its controls and variants, as changes to an experiment."""

from typing import Any

ALL = "all"  # of queries: the whole pool; of micro-dollars: the sweep's whole budget

_NO_GATE: dict[str, Any] = {"gate": {}}  # no evaluator is trained, or the one there is by nobody
_NO_QUERY = {"labelling.queries": 0, "labelling.acquisition": {"kind": "random"}, **_NO_GATE}

PRESETS: dict[str, dict[str, Any]] = {
    "sft": {**_NO_QUERY, "feedback": "none"},
    "random": {"labelling.acquisition": {"kind": "random"}},
    "coreset_ift": {"labelling.acquisition": {"kind": "coreset_ift"}},
    "coreset_eft": {"labelling.acquisition": {"kind": "coreset_eft"}},
    "entropy": {"labelling.acquisition": {"kind": "predictive_entropy"}},
    # ranks by the evaluator that the first half of the queries has trained
    "uncertainty": {"labelling.acquisition": {"kind": "margin"}, "labelling.rounds": 2},
    "off_policy": {"labelling.acquisition": {"kind": "random"}, "labelling.pool": "off_policy"},
    "balanced_off_policy": {"labelling.acquisition": {"kind": "random"}, "labelling.pool": "balanced_off_policy"},
    # pairs are asked about, or n tuples drawn at random would hardly hold two responses to one prompt
    "direct": {"labelling.acquisition": {"kind": "random_pairs"}, "feedback": "oracle", **_NO_GATE},
    # the proxy's pairs, learned from otherwise
    "kto": {"labelling.acquisition": {"kind": "random"}, "dpo.algorithm": "kto"},
    "orpo": {"labelling.acquisition": {"kind": "random"}, "dpo.algorithm": "orpo"},
    "spin": {**_NO_QUERY, "feedback": "demonstrations"},
    "self_reward": {**_NO_QUERY, "feedback": "policy", "evaluator": {"kind": "generative"}},
    "oracle_all": {
        "labelling.acquisition": {"kind": "random"},
        "labelling.queries": ALL,
        "labelling.max_micro_usd": ALL,
        "feedback": "oracle",
        **_NO_GATE,
    },
    "shuffled": {"labelling.acquisition": {"kind": "random"}, "labelling.shuffle_labels": True},
}
