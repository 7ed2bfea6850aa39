"""Plots as PNG: memory against time against loss, loss curves, and the trends of one run."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from optimeter.measure.records.trends import draw_trends
from optimeter.reports.comparison import step_seconds
from optimeter.reports.group import Group, Setting
from optimeter.reports.look import MS

DPI = 110
MOST_CURVES = 40
LEGEND_ROWS = 26  # what fits beside a plot
LONGEST = 44  # characters of a label
WIDE = 100  # times its least value: what takes a logarithmic scale


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def visible(label: str) -> str:
    """matplotlib drops legend entries that begin with an underscore, and reads dollars as mathematics."""
    text = label.lstrip("_") or "unnamed"
    return (text if len(text) <= LONGEST else text[: LONGEST - 1] + "…").replace("$", r"\$")


def title(setting: Setting) -> str:
    """A setting over a plot, in lines that fit."""
    parts, lines = setting.label.split(", "), [""]
    for part in parts:
        lines = [*lines[:-1], f"{lines[-1]}, {part}"] if len(lines[-1]) + len(part) < 110 else [*lines, part]
    return "\n".join(lines).removeprefix(", ").replace("$", r"\$")


def dominated(point: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether some other point is no worse in every coordinate and better in one (smaller is better)."""
    return any(
        all(b <= a for a, b in zip(point, other, strict=True)) and any(b < a for a, b in zip(point, other, strict=True))
        for other in others
    )


def pareto(setting: Setting, path: Path) -> bool:
    """State bytes a parameter against step time, final loss as colour; ringed: nothing is better in all three."""
    placed: list[tuple[Group, tuple[float, float, float]]] = []
    for group in setting.groups:
        time, state = group.median(step_seconds), group.median(lambda run: run.memory.state_bytes_per_parameter)
        loss = group.median(lambda run: run.quality.final_loss)
        if time is not None and state is not None and loss is not None:
            placed.append((group, (time * MS, state, loss)))
    if len(placed) < 2:
        return False
    points = [point for _, point in placed]
    sound = [point for group, point in placed if group.sound]
    front = [group.sound and not dominated(point, sound) for group, point in placed]
    columns = math.ceil(len(placed) / LEGEND_ROWS)
    figure = _figure(9 + 2.2 * columns, 5.4)
    axis = figure.subplots()
    times, states, losses = zip(*points, strict=True)
    rings = ["crimson" if best else "none" for best in front]
    norm = LogNorm() if min(losses) > 0 and max(losses) > WIDE * min(losses) else Normalize()
    style: dict[str, Any] = {"cmap": "viridis", "s": 70, "zorder": 3, "edgecolors": rings, "linewidths": 1.8}
    colours = axis.scatter(times, states, c=losses, norm=norm, **style)
    figure.colorbar(colours, ax=axis, label="final held-out loss", location="left", pad=0.1)
    _number(figure, axis, [(group.label, point) for group, point in placed], front, columns)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set_ylim(-0.02, 2 * max(1, *states))
    narrow = max(times) < 10 * min(times)  # no decade in it: the ticks between must be labelled
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}") if narrow else NullFormatter())
    axis.tick_params(axis="x", which="minor", labelsize=7)
    axis.set_xlabel("step, ms (median; separate runs)")
    axis.set_ylabel("optimizer state, bytes a parameter")
    axis.set_title(f"{title(setting)}\nringed: no other is as good in time, memory and loss", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=DPI)
    return True


def _number(
    figure: Figure, axis: Axes, found: Sequence[tuple[str, Sequence[float]]], front: Sequence[bool], columns: int
) -> None:
    """Numbers at the points, by time, taking turns above and below; the names stand beside the plot."""
    order = sorted(range(len(found)), key=lambda i: tuple(found[i][1]))
    handles = []
    for number, index in enumerate(order, start=1):
        label, (x, y, _) = found[index]
        colour = "crimson" if front[index] else "0.3"
        offset = (0, (8, -15, 18, -25)[number % 4])
        axis.annotate(str(number), (x, y), offset, textcoords="offset points", ha="center", fontsize=7.5, color=colour)
        handles.append(Line2D([], [], linestyle="none", marker=f"${number}$", color=colour, label=visible(label)))
    legend = figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False, ncols=columns)
    for text, index in zip(legend.get_texts(), order, strict=True):
        text.set_color("crimson" if front[index] else "0.3")


def curves(setting: Setting, path: Path) -> bool:
    """Held-out loss against steps and against seconds of training, the first finished seed of each optimizer."""
    found = [(group, points) for group in setting.groups if group.ok and len(points := _evaluations(group)) >= 3]
    if not found:
        return False
    drawn = found[:MOST_CURVES]
    columns = math.ceil(len(drawn) / LEGEND_ROWS)
    figure = _figure(10 + 2 * columns, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    losses = [loss for _, points in drawn for _, _, loss in points if math.isfinite(loss)]
    for number, (group, points) in enumerate(drawn):
        colour, line = colormaps["tab20"](number % 20), "-" if number < 20 else "--"
        steps, seconds, y = zip(*points, strict=True)
        left.plot(steps, y, label=visible(group.label), color=colour, linestyle=line, linewidth=1.3)
        right.plot(seconds, y, color=colour, linestyle=line, linewidth=1.3)
    if losses and min(losses) > 0 and max(losses) > 10 * min(losses):
        left.set_yscale("log")
    left.set_xlabel("step")
    right.set_xlabel("seconds of training (sum of step times)")
    left.set_ylabel("held-out loss")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    some = f"\n{len(drawn)} of {len(found)} optimizers are shown" if len(found) > len(drawn) else ""
    figure.suptitle(f"{title(setting)}{some}", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=7, ncols=columns)
    figure.savefig(path, dpi=DPI)
    return True


def _evaluations(group: Group) -> list[tuple[float, float, float]]:
    """(step, seconds, loss) of the first finished seed, NaN where the loss is not finite."""
    return [
        (point.step, point.seconds, math.nan if point.loss is None else point.loss)
        for point in group.ok[0].result.quality.evaluations
        if point.seconds is not None
    ]


def trends(setting: Setting, path: Path) -> bool:
    """The figure `optimizer_trends` of one run: the baseline's, else the first that finished."""
    group = setting.baseline or next((group for group in setting.groups if group.ok), None)
    if group is None or len(lines := group.ok[0].steps()) < 3:
        return False
    draw_trends(lines, path, f"{group.label} on {setting.label}, seed {group.ok[0].result.seed}")
    return True


PLOTS: tuple[tuple[str, Callable[[Setting, Path], bool]], ...] = (
    ("pareto", pareto),
    ("loss", curves),
    ("optimizer_trends", trends),
)
