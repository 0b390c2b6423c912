"""Figures of reports, as PNG bytes."""

import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.reporting.schema import CurvePoint, GateReport, RunReport
from models.core.arrays import FloatArray
from models.core.data import Comparison
from models.core.registry import Frozen, digest_of
from models.metrics.selective import ANY_PAIR

_DRAWING = 1  # how pictures are drawn: raised with a change of it
_BEFORE, _AFTER, _PROXY = "#8a94a6", "#d9730d", "#2f6fde"

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture:
    """A picture that is drawn where no file shows the same data already: drawing takes longer than all else of a report."""

    def __init__(self, draw: Callable[..., bytes], *data: object) -> None:
        self._draw, self._data = draw, data
        self.digest = digest_of([_DRAWING, draw.__name__, *map(_plain, data)])

    def write(self, file: Path) -> None:
        """Write the picture; leave a file alone that was drawn of the same."""
        if not (file.is_file() and self.digest.encode() in file.read_bytes()):
            picture = self._draw(*self._data)
            file.write_bytes(_labelled(picture, self.digest))


def figure_pages(
    *,
    bought: FloatArray,
    proxy: FloatArray,
    agreement: tuple[FloatArray, FloatArray],
    comparisons: list[Comparison],
    report: RunReport,
) -> dict[str, Picture]:
    """Return the pictures by name: policy outcome; evaluator agreement, score distributions where there are any."""
    before = np.array([c.before_score for c in comparisons])
    after = np.array([c.after_score for c in comparisons])
    return {
        "outcome": Picture(_outcome, before, after, report.policy.win_rate.mean),
        **({"agreement": Picture(_agreement, *agreement, report.evaluator.spearman)} if report.evaluator else {}),
        **({"scores": Picture(_scores, bought, proxy)} if len(bought) or len(proxy) else {}),
        **({"gate": Picture(_gate, report.gate)} if report.gate and report.gate.curve else {}),
        **({"optimisation": Picture(_optimisation, report.curve)} if report.curve else {}),
    }


def _outcome(before: FloatArray, after: FloatArray, win_rate: float) -> bytes:
    figure, axes = _canvas("Held-out answers, scored by the oracle", "oracle's score", "answers")
    bins = np.histogram_bin_edges(np.concatenate([before, after]), bins=24)
    axes.hist(before, bins, color=_BEFORE, alpha=0.7, label=f"M₁, mean {before.mean():.2f}")
    axes.hist(after, bins, color=_AFTER, alpha=0.6, label=f"M₂, mean {after.mean():.2f}, wins {win_rate:.0%}")
    axes.legend(frameon=False)
    return png(figure)


def _agreement(oracle: FloatArray, proxy: FloatArray, spearman: float) -> bytes:
    shown = "–" if math.isnan(spearman) else f"{spearman:.2f}"
    figure, axes = _canvas(f"Evaluator against oracle (Spearman {shown})", "oracle's score", "evaluator's score")
    axes.scatter(oracle, proxy, s=14, color=_PROXY, alpha=0.6, linewidths=0)
    return png(figure)


def _gate(gate: GateReport) -> bytes:
    figure, axes = _canvas("Labels left out: the surest pairs first", "share of pairs labelled", "share of these wrong")
    axes.plot(*zip(*gate.curve, strict=True), color=_PROXY)
    axes.axhline(0.5, color=_BEFORE, lw=1, ls="--", label="chance")
    if gate.threshold > ANY_PAIR and math.isfinite(gate.risk):
        axes.plot(gate.coverage, gate.risk, "o", color=_AFTER, label=f"sure of {gate.threshold:.0%} or more")
    axes.set_ylim(0, 0.6)
    axes.legend(frameon=False)
    return png(figure)


def _optimisation(curve: tuple[CurvePoint, ...]) -> bytes:
    """Return what the evaluator and the oracle say along a training (2210.10760): where they part, it is over-optimised."""
    title = "From M₁ to M₂, by evaluator and oracle"
    figure, axes = _canvas(title, "KL to M₁, nats per answer", "gain, standard deviations of M₁'s scores")
    kl = [point.kl for point in curve]
    oracle = ([point.oracle_mean for point in curve], curve[0].oracle_std)
    proxy = ([point.proxy_mean for point in curve], curve[0].proxy_std)
    for (means, spread), colour, name in ((proxy, _PROXY, "evaluator"), (oracle, _AFTER, "oracle")):
        mean = np.array(means)  # NaN is a gap
        axes.plot(kl, (mean - mean[0]) / (spread or 1.0), "o-", color=colour, label=name)
    axes.legend(frameon=False)
    return png(figure)


def _scores(bought: FloatArray, proxy: FloatArray) -> bytes:
    figure, axes = _canvas("Labels bought, and what the evaluator made of them", "score", "share of tuples")
    bins = np.histogram_bin_edges(np.concatenate([bought, proxy]), bins=24)
    for values, colour, name in ((bought, _BEFORE, "oracle"), (proxy, _PROXY, "evaluator")):
        if not len(values):
            continue
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=f"{name}, {len(values)} tuples")
    axes.legend(frameon=False)
    return png(figure)


def learning_curves(report: dict[str, Any]) -> bytes:
    """Return a study's curves: pair accuracy over labels, of all clear pairs and of those of similar length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, title in zip(
        panels, ("pair_accuracy", "similar_length"), ("all clear pairs", "pairs of similar length"), strict=True
    ):
        for number, arm in enumerate(report["arms"]):
            labels = [point["labels"] for point in arm["curve"]]
            found = np.array([point[name] for point in arm["curve"]], dtype=np.float64)  # NaN is a gap
            mean, low, high = found.T
            control = arm["name"].startswith("random")
            colour = "black" if arm["name"] == "random" else _BEFORE if control else f"C{number % 10}"
            style = "--" if control else ("-", "-.", ":")[number // 10 % 3]
            axes.plot(labels, mean, style, color=colour, lw=2.2 if control else 1.2, label=arm["name"])
            if arm["name"] == "random":
                axes.fill_between(labels, low, high, color=colour, alpha=0.12, lw=0)
        axes.set(xscale="log", xlabel="labels", ylabel="agreement with the oracle", title=title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right", frameon=False, fontsize=8)
    return png(figure)


def _canvas(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: "Figure") -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _plain(data: object) -> object:
    """Return data as JSON values."""
    if isinstance(data, tuple):
        return [_plain(each) for each in data]
    if isinstance(data, Frozen):
        return data.model_dump(mode="json")
    return data.tolist() if isinstance(data, np.ndarray) else data


def _labelled(picture: bytes, digest: str) -> bytes:
    """Return a PNG with what it was drawn of as a comment, before its last chunk (of twelve bytes)."""
    body = b"tEXt" + b"Comment\0" + digest.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return picture[:-12] + chunk + picture[-12:]
