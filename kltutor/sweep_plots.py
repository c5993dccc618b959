"""The figure of a sweep: where its runs end, beside the best that can be had there."""

import dataclasses
import json
import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kltutor import exact, figures
from kltutor.grid import SEEDS, WORLD, Grid, shown
from kltutor.optimum import optimal_policy
from kltutor.plots import COLOURS, MARKERS, ROUNDING, head, name_ends
from kltutor.records import QUANTITIES
from kltutor.run import Run
from kltutor.tables import Row
from kltutor.train import make_world

BETAS = torch.logspace(-3, 3, 181, dtype=torch.float64).tolist()
LABELLED = 8  # values that fit below an axis
ROOM = 70, 16  # pixels that a label of a cluster takes, across and up

Groups = dict[str, list[Row]]


class Curve(NamedTuple):
    """The optimum along beta, by increasing KL."""

    kl: list[float]
    gold: list[float]


def draw(grid: Grid, rows: Sequence[Row]) -> Figure:
    """Return exact KL against gold reward, and the distance from the optimum along the grid; a dot a run.

    The curve is that of the optima of the reward that is trained on, where all runs share one world. Seeds
    are pooled. So are further axes when more than four lines would have to be told apart.

    Args:
        grid: of the sweep.
        rows: of `tables.final`; runs that did not finish are left out, and counted in the title.

    Raises:
        ValueError: no run has finished.
    """
    ended = [row for row in rows if row["status"] == "finished"]
    if not ended:
        raise ValueError("no run of this sweep has finished, so there is nothing to draw.")
    along, across = _axes(grid)
    groups = _groups(ended, across)
    far = [row for row in ended if row["kl_to_optimum"] is not None]
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.2 if far else 6.4, 3.8), layout="constrained")
        missing = "" if len(ended) == len(rows) else f" of {len(rows)}"
        tasks = " and ".join(sorted({run.task for run in grid.runs}))
        algorithms = ", ".join(dict.fromkeys(run.algorithm for run in grid.runs))
        head(
            figure, f"{len(ended)}{missing} runs of {algorithms} on the task {tasks}: exact values at the end"
        )
        panels = list(figure.subplots(1, 2 if far else 1, squeeze=False)[0])
        _reward(figure, panels[0], grid, groups, along)
        if far:
            _distance(figure, panels[1], _groups(far, across), along)
        elif len(groups) > 1:
            name_ends(figure, panels[0], _ends(groups, _end))
    return figure


def optima(run: Run) -> Curve:
    """Return KL(π* ‖ ref) and E[gold] of the optima of the reward that a run trains on, along beta."""
    world = make_world(dataclasses.replace(run, device="cpu"))  # a cluster may have what is missing here
    points = []
    for beta in BETAS:
        best = optimal_policy(world.ref_seq_logp, world.reward(run), beta)[0]
        kl = exact.mean_kl(best, world.ref_seq_logp, world.task).item()
        points.append((kl, exact.expectation(world.task.reward, best, world.task).item()))
    points.sort()
    return Curve([kl for kl, _ in points], [gold for _, gold in points])


def _reward(figure: Figure, ax: Axes, grid: Grid, groups: Groups, along: str | None) -> None:
    """Draw gold reward over KL, with the curve of the optima."""
    rows = [row for each in groups.values() for row in each]
    title, ends = "Gold reward against KL", []
    if all(len({getattr(run, name) for run in grid.runs}) == 1 for name in WORLD):
        kinds = {run.reward: run for run in grid.runs}
        right = 1.1 * max(row["kl"] for row in rows)
        for kind, run in sorted(kinds.items()):
            curve = optima(run)
            x = [0.0, *(kl for kl in curve.kl if kl < right), right]
            y = [float(gold) for gold in np.interp(x, curve.kl, curve.gold)]
            look: dict[str, Any] = figures.line("optimum") | ({} if kind == "gold" else {"linestyle": ":"})
            ax.plot(x, y, **look, zorder=1)
            name = "best policies" if kind == "gold" else "best for the proxy"
            ends.append(((x[-1], y[-1]), name, figures.TEXT["optimum"]))
            if kinds.keys() == {"gold"}:
                gaps = [float(np.interp(row["kl"], curve.kl, curve.gold)) - row["gold"] for row in rows]
                title = f"Within {_up(max(gaps))} of the best reward at that KL"
    _dots(ax, groups, _end)
    figures.finish(ax, title=title, xlabel="KL(π ‖ ref), nats per sequence", ylabel="E[gold], reward units")
    name_ends(figure, ax, ends)
    if along is not None and _numeric(rows, along):
        _name_clusters(ax, groups, along)


def _distance(figure: Figure, ax: Axes, groups: Groups, along: str | None) -> None:
    """Draw KL(π ‖ π*) along an axis of the grid."""
    rows = [row for each in groups.values() for row in each]
    values = list(dict.fromkeys(_words(row, along) for row in rows))
    numeric = along is not None and _numeric(rows, along)

    def point(row: Row) -> tuple[float, float]:
        x = row[str(along)] if numeric else values.index(_words(row, along))
        return x, max(row["kl_to_optimum"], ROUNDING)

    _dots(ax, groups, point)
    heights = [point(row)[1] for row in rows]
    if max(heights) > 10 * min(heights):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    title, unit = QUANTITIES["kl_to_optimum"]
    if numeric:
        places = sorted({row[str(along)] for row in rows})
        if places[0] > 0 and places[-1] >= 8 * places[0]:
            ax.set_xscale("log")
        if len(places) <= LABELLED:
            ax.set_xticks(places, [shown(place) for place in places])
            ax.set_xticks([], minor=True)
    else:
        ax.set_xticks(range(len(values)), values, rotation=0 if max(map(len, values)) < 10 else 20)
    medians = {
        value: statistics.median(point(row)[1] for row in rows if _words(row, along) == value)
        for value in values
    }
    best = min(medians, key=medians.__getitem__)
    found = f"Nearest to π* in the median: {along} {best}"
    if along in SEEDS or len(values) == 1:
        found = f"{title} is {statistics.median(heights):.2g} in the median"
    figures.finish(ax, title=textwrap.fill(found, 48), xlabel=along or "", ylabel=f"{title}, {unit}")
    if len(groups) > 1:
        name_ends(figure, ax, _ends(groups, point))


def _axes(grid: Grid) -> tuple[str | None, str | None]:
    """Return the axis that runs along the second panel, and the one that is told by colour and marker."""
    several = [name for name, values in grid.axes.items() if len(values) > 1]
    names = grid.compared or several
    if not names:
        return None, None
    rows = [{name: getattr(run, name) for name in names} for run in grid.runs]
    along = next((name for name in names if _numeric(rows, name)), names[0])
    others = [name for name in names if name != along and 1 < len(grid.axes[name]) <= len(COLOURS)]
    return along, others[0] if others else None


def _groups(rows: Sequence[Row], across: str | None) -> Groups:
    found: Groups = {}
    for row in rows:
        found.setdefault(_words(row, across), []).append(row)
    return found


def _dots(ax: Axes, groups: Groups, point: Any) -> None:
    for i, rows in enumerate(groups.values()):
        look: dict[str, Any] = {
            "color": figures.ROLES[COLOURS[i]]["color"],
            "marker": MARKERS[i],
            "linestyle": "none",
        }
        ax.plot(*zip(*map(point, rows), strict=True), **look, markersize=4.5, alpha=0.8)


def _ends(groups: Groups, point: Any) -> list[tuple[tuple[float, float], str, str]]:
    """Return the last dot of each group, its name and its colour."""
    inks = [figures.TEXT.get(role, figures.ROLES[role]["color"]) for role in COLOURS]
    ends = [max(map(point, rows)) for rows in groups.values()]
    return [(end, name, ink) for end, name, ink in zip(ends, groups, inks, strict=False)]


def _name_clusters(ax: Axes, groups: Groups, along: str) -> None:
    """Write the value of an axis below the dots that have it, where there is room."""
    taken: list[tuple[float, float]] = []
    for rows, role in zip(groups.values(), COLOURS, strict=False):
        for value in sorted({row[along] for row in rows}):
            own = [row for row in rows if row[along] == value]
            at = statistics.median(row["kl"] for row in own), min(row["gold"] for row in own)
            x, y = (float(each) for each in ax.transData.transform(at))
            if all(abs(x - left) > ROOM[0] or abs(y - low) > ROOM[1] for left, low in taken):
                taken.append((x, y))
                ink = figures.TEXT.get(role, figures.ROLES[role]["color"])
                below: Any = {"textcoords": "offset points", "va": "top", "fontsize": 8}
                ax.annotate(f"{along} {shown(value)}", at, (4, -4), color=ink, **below)


def _end(row: Row) -> tuple[float, float]:
    return row["kl"], row["gold"]


def _numeric(rows: Sequence[Row], name: str) -> bool:
    return all(isinstance(row[name], int | float) for row in rows)


def _words(row: Row, name: str | None) -> str:
    value = "" if name is None else row[name]
    return shown(json.loads(value) if name == "controller" and value else value)


def _up(gap: float) -> str:
    """Return a number of at least this size, of two digits."""
    if gap < ROUNDING:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(gap)) - 1)
    return f"{math.ceil(gap / unit) * unit:.2g}"
