"""Plots as PNG: memory against time against loss, loss curves, and the trends of one run."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from measure.trends import draw_trends
from reports.group import Setting, at

DPI = 110
MOST_CURVES = 40


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def visible(label: str) -> str:
    """matplotlib drops legend entries that begin with an underscore, and reads dollars as mathematics."""
    return label.lstrip("_").replace("$", r"\$") or "unnamed"


def dominated(point: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether some other point is no worse in every coordinate and better in one (smaller is better)."""
    return any(
        all(b <= a for a, b in zip(point, other, strict=True)) and any(b < a for a, b in zip(point, other, strict=True))
        for other in others
    )


def pareto(setting: Setting, path: Path) -> bool:
    """State bytes a parameter against step time, final loss as colour; ringed: nothing is better in all three."""
    found = []
    for group in setting.groups:
        time, state = group.median("time", "step", "median"), group.median("memory", "state_bytes_per_parameter")
        loss = group.median("quality", "final_loss")
        if time is not None and state is not None and loss is not None:
            found.append((group.label, (time * 1e3, state, loss)))
    if len(found) < 2:
        return False
    points = [point for _, point in found]
    figure = _figure(11, 5.2)
    axis = figure.subplots()
    losses = [point[2] for point in points]
    front = [not dominated(point, points) for point in points]
    colours = axis.scatter(
        [p[0] for p in points],
        [p[1] for p in points],
        c=losses,
        cmap="viridis",
        s=70,
        zorder=3,
        edgecolors=["crimson" if best else "none" for best in front],
        linewidths=1.8,
    )
    figure.colorbar(colours, ax=axis, label="final held-out loss", location="left", pad=0.1)
    _number(figure, axis, found, front)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set_ylim(-0.02, 2 * max(1, *(state for _, state, _ in points)))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(ScalarFormatter())
    axis.set_xlabel("step, ms (median; separate runs)")
    axis.set_ylabel("optimizer state, bytes a parameter")
    axis.set_title(f"{visible(setting.label)}\nringed: no other is as good in time, memory and loss", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=DPI)
    return True


def _number(figure: Figure, axis: Axes, found: Sequence[tuple[str, Sequence[float]]], front: Sequence[bool]) -> None:
    """Numbers at the points, by time, taking turns above and below; the names stand beside the plot."""
    order = sorted(range(len(found)), key=lambda i: tuple(found[i][1]))
    handles = []
    for number, index in enumerate(order, start=1):
        label, (x, y, _) = found[index]
        colour = "crimson" if front[index] else "0.3"
        offset = (0, (8, -15, 18, -25)[number % 4])
        axis.annotate(str(number), (x, y), offset, textcoords="offset points", ha="center", fontsize=7.5, color=colour)
        handles.append(Line2D([], [], linestyle="none", marker=f"${number}$", color=colour, label=visible(label)))
    legend = figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    for text, index in zip(legend.get_texts(), order, strict=True):
        text.set_color("crimson" if front[index] else "0.3")


def curves(setting: Setting, path: Path) -> bool:
    """Held-out loss against steps and against seconds of training, the first seed of each optimizer."""
    drawn = [(group, at(group.records[0].result, "quality", "evaluations")) for group in setting.groups]
    drawn = [(group, points) for group, points in drawn if points and len(points) >= 3][:MOST_CURVES]
    if not drawn:
        return False
    figure = _figure(12, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    losses = [point["loss"] for _, points in drawn for point in points if point["loss"] is not None]
    for number, (group, points) in enumerate(drawn):
        style = {"color": colormaps["tab20"](number % 20), "linestyle": "-" if number < 20 else "--", "linewidth": 1.3}
        y = [math.nan if point["loss"] is None else point["loss"] for point in points]
        left.plot([point["step"] for point in points], y, label=visible(group.label), **style)
        right.plot([point["seconds"] for point in points], y, **style)
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        left.set_yscale("log")
    left.set_xlabel("step")
    right.set_xlabel("seconds of training (sum of step times)")
    left.set_ylabel("held-out loss")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(visible(setting.label), fontsize=10)
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=DPI)
    return True


def trends(setting: Setting, path: Path) -> bool:
    """The figure `optimizer_trends` of one run: the baseline's, else the first that finished."""
    group = setting.baseline or next((group for group in setting.groups if group.ok), None)
    if group is None or len(lines := group.ok[0].steps()) < 3:
        return False
    draw_trends(lines, path, f"{group.label} on {setting.label}, seed {group.ok[0].result['seed']}")
    return True


PLOTS: tuple[tuple[str, Callable[[Setting, Path], bool]], ...] = (
    ("pareto", pareto),
    ("loss", curves),
    ("optimizer_trends", trends),
)
