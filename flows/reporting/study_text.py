"""Put a study of label efficiency into a table and sentences, for the terminal and its page."""

from math import isnan
from typing import Any

from flows.reporting.render import Notes, Page, Pictures, Table
from models.core.money import MICRO, dollars
from models.metrics.intervals import Interval

_CONTROLS = ("random, length only", "random, shuffled labels")
_BASELINES = {"random": "area_gain", "random_pairs": "pairs_area_gain"}


def headlines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return one line per arm as (name, value)."""
    return [(arm["name"], _line(arm)) for arm in report["arms"]]


def notes(report: dict[str, Any]) -> list[str]:
    """Return what a reader must know before believing the table."""
    arms = {arm["name"]: arm for arm in report["arms"]}
    last = {name: arm["curve"][-1] for name, arm in arms.items()}
    strategies = [arm for name, arm in arms.items() if name not in (*_BASELINES, *_CONTROLS)]
    length, shuffled = (last[name]["pair_accuracy"].mean for name in _CONTROLS)
    targets = " and ".join(map(str, report["target_labels"]))
    found = [
        f"Savings are on the way to the pair accuracy that random selection reaches with {targets} labels: bounds where a "
        "curve starts above it or never reaches it, and no saving is shown where the interval holds zero.",
        f"Length alone orders {_percent(length)} of the clear pairs as the oracle does; an evaluator earns its labels above "
        "that, and among pairs of similar length.",
        f"Trained on shuffled labels the evaluator reaches {_percent(shuffled)}.",
    ]
    found.append(
        "random buys single answers, random_pairs and strategies over pairs both answers of a prompt: what those gain on "
        "random may be that alone, and what they gain on random_pairs is their ranking."
    )
    for baseline, gain in _BASELINES.items():
        no_better = [arm["name"] for arm in strategies if not arm[gain].low > 0]
        if no_better:
            reason = "the interval of the gain reaches zero"
            found.append(f"Not shown to beat {baseline} ({reason}): {', '.join(no_better)}.")
    return found


def page(report: dict[str, Any]) -> Page:
    """Return the study's page; the figure lies beside it."""
    return Page(
        report["name"],
        [
            Pictures({"curves.png": "learning curves"}, wide=True),
            Table(_titles(report), _cells(report)),
            Notes(notes(report)),
            *(Table(_POINT, [_point(point) for point in arm["curve"]], heading=arm["name"]) for arm in report["arms"]),
        ],
    )


_POINT = ("labels", "cost", "pair accuracy", "similar length", "Spearman")


def _point(point: dict[str, Any]) -> list[str]:
    measured = [_with_interval(point[name]) for name in ("pair_accuracy", "similar_length", "spearman")]
    return [str(point["labels"]), dollars(round(point["micro_usd"])), *measured]


_TITLES = [
    "arm",
    "pair accuracy, first → last budget",
    "area",
    "gain on random",
    "gain on random_pairs",
    "gain, similar length",
]


def _titles(report: dict[str, Any]) -> list[str]:
    return [*_TITLES, *(f"saved to reach random's {target}" for target in report["target_labels"])]


def _cells(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            arm["name"],
            f"{_number(arm['curve'][0]['pair_accuracy'].mean)} → {_number(arm['curve'][-1]['pair_accuracy'].mean)}",
            _number(arm["area"]),
            *(["–"] * (3 + len(report["target_labels"])) if arm["name"] == "random" else _gains(arm)),
        ]
        for arm in report["arms"]
    ]


def _gains(arm: dict[str, Any]) -> list[str]:
    return [
        _with_interval(arm["area_gain"], signed=True),
        "–" if arm["name"] == "random_pairs" else _with_interval(arm["pairs_area_gain"], signed=True),
        _with_interval(arm["similar_length_area_gain"], signed=True),
        *map(_saved, arm["saved_labels"], arm["saved_micro_usd"]),
    ]


def _saved(labels: Interval, micro_usd: Interval) -> str:
    count = "{:.0f} [{:.0f}, {:.0f}]".format(*labels)
    money, low, high = (f"{'−' if value < 0 else ''}${abs(value) / MICRO:.2f}" for value in micro_usd)
    return f"{count} labels, {money} [{low}, {high}]"


def _line(arm: dict[str, Any]) -> str:
    first, last = arm["curve"][0]["pair_accuracy"].mean, arm["curve"][-1]["pair_accuracy"].mean
    alike = arm["curve"][-1]["similar_length"].mean
    line = f"{_number(first)} → {_number(last)}, similar length {_number(alike)}"
    return line if arm["name"] == "random" else f"{line}; gain {_with_interval(arm['area_gain'], signed=True)}"


def _number(value: float, *, signed: bool = False) -> str:
    return "–" if isnan(value) else f"{value:+.3f}" if signed else f"{value:.3f}"


def _percent(value: float) -> str:
    return "–" if isnan(value) else f"{value:.1%}"


def _with_interval(found: Interval, *, signed: bool = False) -> str:
    mean, low, high = (_number(value, signed=signed) for value in found)
    return f"{mean} [{low}, {high}]"
