"""The figure `optimizer_trends`: what the lines of one run say about its gradients, memory and moments."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from optimeter.measure.records.fields import JSON
from optimeter.measure.records.units import BYTES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line: TypeAlias = dict[str, JSON]


def draw_trends(lines: Sequence[Line], path: str | Path, title: str = "") -> None:
    """Write a figure of six panels to `path` (its suffix is the format); `lines` are those of steps.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, parse_math=False)
    axes = figure.subplots(2, 3)
    sampled = [line for line in lines if isinstance(line.get("gradient"), dict)]
    _loss(axes[0, 0], lines)
    _gradients(axes[0, 1], sampled)
    _gradients_in_time(axes[0, 2], sampled)
    weighed = [line for line in lines if isinstance(line.get("memory"), dict)]
    _memory(axes[1, 0], weighed)
    _moments(axes[1, 1], weighed)
    _updates(axes[1, 2], sampled)
    figure.savefig(path, dpi=110)


def column(lines: Sequence[Line], *keys: str) -> list[float]:
    """One value a line, NaN where there is none."""
    values = []
    for line in lines:
        value: JSON = line
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(float("nan") if value is None else value)
    return values


def _finish(axis: "Axes", title: str, x: str, y: str, legend: bool = True) -> None:
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _loss(axis: "Axes", lines: Sequence[Line]) -> None:
    axis.plot(column(lines, "step"), column(lines, "loss"), color="C0")
    _finish(axis, "Training loss", "step", "loss", legend=False)


def _gradients(axis: "Axes", lines: Sequence[Line]) -> None:
    steps = column(lines, "step")
    for key, colour in (("norm", "C0"), ("mean", "C1"), ("std", "C2")):
        axis.plot(steps, column(lines, "gradient", key), label=key, color=colour, marker=".", markersize=3)
    axis.set_yscale("symlog", linthresh=1e-6)
    _finish(axis, "Gradient: norm, mean, standard deviation", "step", "")


def _gradients_in_time(axis: "Axes", lines: Sequence[Line]) -> None:
    axis.plot(column(lines, "elapsed"), column(lines, "gradient", "norm"), color="C0", marker=".", markersize=3)
    _finish(axis, "Gradient norm over time", "seconds of training", "norm", legend=False)


def _memory(axis: "Axes", lines: Sequence[Line]) -> None:
    steps = column(lines, "step")
    for key, colour in (("process", "C3"), ("allocated", "C4"), ("gradients", "C5")):
        values = [value / BYTES["MB"] for value in column(lines, "memory", key)]
        if any(value == value for value in values):
            axis.plot(steps, values, label=key, color=colour, marker=".", markersize=3)
    axis.set_ylim(bottom=0)
    _finish(axis, "Memory: process, allocator, gradients", "step", "MB")


def _moments(axis: "Axes", lines: Sequence[Line]) -> None:
    roles = sorted({role for line in lines for role in (line["memory"].get("state") or {})})
    for number, role in enumerate(roles):
        values = [value / BYTES["MB"] for value in column(lines, "memory", "state", role)]
        style = "--" if number % 2 else "-"
        axis.plot(column(lines, "step"), values, label=role.replace("_", " "), linestyle=style, marker=".")
    axis.set_ylim(bottom=0)
    _finish(axis, "Moment memory", "step", "MB")


def _updates(axis: "Axes", lines: Sequence[Line]) -> None:
    ratios = [
        update / weight if weight else float("nan")
        for update, weight in zip(column(lines, "update_norm"), column(lines, "weight_norm"), strict=True)
    ]
    axis.plot(column(lines, "step"), ratios, color="C6", marker=".", markersize=3)
    axis.set_yscale("log")
    _finish(axis, "Update norm / weight norm", "step", "ratio", legend=False)
