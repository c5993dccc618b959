"""Figures of training runs, drawn from what they logged; no display is needed."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kltutor import figures
from kltutor.checkpoints import read_log
from kltutor.options import UNUSED, used_by
from kltutor.records import QUANTITIES, Exact
from kltutor.run import Run
from kltutor.train import CHECKPOINT, LOG, saved

# What can be drawn: all that is exact.
EXACT = [name for name in QUANTITIES if name in Exact.__dataclass_fields__]
USUAL = ("kl_to_optimum", "kl", "gold", "proxy")
AXES = {
    "step": "step",
    "episodes": "completions learnt from",
    "seconds": "seconds",
    "kl": "exact KL(π ‖ ref), nats per sequence",
}
SUFFIXES = (".svg", ".png", ".pdf")
LONGEST = 60  # characters of a label, two lines
MOST = 12  # labels that fit beside one panel
ROUNDING = 1e-12  # a KL below it is the rounding of sums
# Several policies have no roles: the book's colours here only tell lines apart, doubled by dash and marker.
COLOURS, DASHES, MARKERS = ("policy", "k2", "k1", "k3"), ("-", "--", "-.", ":"), ("o", "s", "^", "D")
FIRST = ("task", "algorithm", "policy")
UNSEEN = ("exact_every", "checkpoint_every")  # options that change nothing in a policy

Point = tuple[float, float]
Options = dict[str, tuple[Any, Any]]  # value, and what the algorithm takes by itself


class Logged(NamedTuple):
    """A run as its folder keeps it."""

    name: str
    run: Run
    records: list[dict[str, Any]]


def read(folder: Path) -> Logged:
    """Return the run in a folder.

    Raises:
        ValueError: it holds none, or a damaged one, or one that measured nothing yet.
    """
    for name in (CHECKPOINT, LOG):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}, so it holds no run. Pass a folder that `kltutor train` kept one in."
            )
    run = saved(folder)[0]
    records = read_log(folder / LOG)
    if not any(record["exact"] for record in records):
        raise ValueError(f"{folder} holds a run without a first record. Continue it, then plot it.")
    return Logged(folder.name or str(folder.resolve().name), run, records)


def labels(runs: Sequence[Logged]) -> list[str]:
    """Return a short name of each run: what its configuration has and those of the others do not.

    What an algorithm takes by itself goes unsaid. Runs that share a name get that of their folder too.
    """
    options = [_options(logged.run) for logged in runs]

    def said(own: Options, name: str) -> bool:
        each = [other.get(name, (None, None)) for other in options]
        varied = any(value != own[name][0] for value, _ in each)
        alike = all(usual == own[name][1] for _, usual in each)
        return varied and (name in FIRST or own[name][0] != own[name][1] or alike)

    texts = [", ".join(_say(name, own[name][0]) for name in own if said(own, name)) for own in options]
    return [
        text if texts.count(text) == 1 else f"{text} ({logged.name})" if text else logged.name
        for text, logged in zip(texts, runs, strict=True)
    ]


def draw(logged: Logged) -> Figure:
    """Return the figure of one run: exact quantities as lines, what its batches said as dots."""
    run, records = logged.run, logged.records
    panels = [name for name in ("kl", "kl_to_optimum", "gold") if _points(records, name)]
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
        steps = records[-1]["step"]
        head(
            figure,
            f"{run.algorithm} on the {run.task} task, beta {run.beta:g}, {steps} steps: "
            "exact values as lines, batch means as dots",
        )
        for ax, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            ends = []
            lines = {"gold": "-", "proxy": "--"} if name == "gold" else {name: "-"}
            sampled = {"kl": "kl", run.reward: "reward"}
            for own, dash in lines.items():
                if own in sampled:
                    heard = _heard(records, sampled[own])
                    if heard:
                        ax.plot(*zip(*heard, strict=True), **figures.dots("k1"), markersize=2.5, alpha=0.6)
                points = _points(records, own)
                look: dict[str, Any] = figures.line("policy", marker=True) | {"linestyle": dash}
                ax.plot(*zip(*points, strict=True), **look, markersize=3.5)
                ends.append((points[-1], own if len(lines) > 1 else "exact", _ink("policy")))
                if own in sampled and heard and len(lines) == 1:
                    ends.append((heard[-1], "k1, sampled", _ink("k1")))
            title, unit = QUANTITIES[name]
            title = "rewards" if name == "gold" else title
            figures.finish(ax, title=title, xlabel="step", ylabel=unit)
            _scale(ax, name)
            name_ends(figure, ax, ends if len(ends) > 1 else [])
    return figure


def overlay(runs: Sequence[Logged], quantities: Sequence[str] | None = None, against: str = "step") -> Figure:
    """Return one figure of several runs: a panel a quantity, a line a run, each named at its end.

    Args:
        runs: at most 12.
        quantities: names from `EXACT`; None takes the usual four, less those that no run has.
        against: what the horizontal axis shows, from `AXES`.

    Raises:
        ValueError: there are no runs or too many, or a name or a quantity does not exist.
    """
    if not 1 <= len(runs) <= MOST:
        raise ValueError(f"runs are {len(runs)}; from 1 to {MOST} can be told apart in one figure.")
    if against not in AXES:
        raise ValueError(f"against is {against!r}; one of {', '.join(AXES)} is expected.")
    for name in quantities or ():
        if name not in EXACT:
            raise ValueError(f"quantity is {name!r}; one of {', '.join(EXACT)} is expected.")
        if not any(_points(logged.records, name) for logged in runs):
            raise ValueError(
                f"quantity is {name!r}, which none of these runs has: where beta is 0 there is "
                "no optimum to compare with. Leave it out."
            )
    shown = list(dict.fromkeys(quantities or [name for name in USUAL if name != against]))
    shown = [name for name in shown if any(_points(logged.records, name) for logged in runs)]
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(6.4 if columns == 1 else 11, 3.2 * rows), layout="constrained")
        head(figure, _title(runs))
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for spare in grid[len(shown) :]:
            spare.remove()
        names = labels(runs)
        if max(map(len, names)) > LONGEST:  # no room for them beside the lines
            key = "\n".join(f"run {i}: {text}" for i, text in enumerate(names, 1))
            figure.supxlabel(key, x=0.01, ha="left", fontsize=8, parse_math=False)
            names = [f"run {i}" for i in range(1, len(runs) + 1)]
        for ax, name in zip(grid, shown, strict=False):
            ends = []
            for i, (logged, text) in enumerate(zip(runs, names, strict=True)):
                points = _points(logged.records, name, against)
                if not points:
                    continue
                colour, other = COLOURS[i % 4], (i + i // 4) % 4
                look: dict[str, Any] = {"color": figures.ROLES[colour]["color"], "markersize": 3.5}
                look |= {"linestyle": DASHES[other], "marker": MARKERS[other], "linewidth": 1.4}
                ax.plot(*zip(*points, strict=True), **look)
                ends.append((points[-1], text, _ink(colour)))
            title, unit = QUANTITIES[name]
            figures.finish(ax, title=title, xlabel=AXES[against], ylabel=unit)
            _scale(ax, name)
            name_ends(figure, ax, ends if len(runs) > 1 else [])
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure on white, in the format of the path's suffix; the same figure gives the same bytes.

    Raises:
        ValueError: the suffix is none of .svg, .png and .pdf.
    """
    check_name(path)
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[path.suffix]
    with mpl.rc_context(figures.STYLE):
        figure.savefig(path, dpi=150, facecolor="white", metadata=dates)


def check_name(path: Path) -> None:
    """Raise ValueError unless the suffix of a figure's name is a format."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"out is {path}; a name that ends in {', '.join(SUFFIXES)} is expected.")


def _points(records: list[dict[str, Any]], name: str, against: str = "step") -> list[Point]:
    """Return where an exact quantity was measured, and what it was."""
    found = [record | (record["exact"] if against == "kl" else {}) for record in records if record["exact"]]
    return [(each[against], each["exact"][name]) for each in found if each["exact"][name] is not None]


def _heard(records: list[dict[str, Any]], name: str) -> list[Point]:
    """Return what batches said, of at most about 150 steps."""
    found = [(record["step"], record["sampled"][name]) for record in records if name in record["sampled"]]
    return found[:: math.ceil(len(found) / 150) or 1]


def _options(run: Run) -> Options:
    """Return the options that this policy depends on, each with what its algorithm takes by itself."""
    same: dict[str, Any] = {name: getattr(run, name) for name in FIRST}
    usual = dataclasses.asdict(Run(**same, data=run.data)) | {"data": Run(**same).data}
    used = used_by(run.algorithm, run.policy, run.task, run.data)
    rest = [name for name in usual if not (name in FIRST or name in UNSEEN or name in UNUSED.keys() - used)]
    return {name: (getattr(run, name), usual[name]) for name in (*FIRST, *rest)}


def _say(name: str, value: Any) -> str:
    if name in FIRST:
        return str(value)
    if name == "controller":
        if value is None:
            return "fixed beta"
        rest = (f"{key} {item}" for key, item in value.items() if key != "class")
        return " ".join((value["class"], *rest))
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {'none' if value is None else value}"


def _title(runs: Sequence[Logged]) -> str:
    """Return what is shown: how many runs, and what they have in common."""

    def shared(name: str) -> list[str]:
        return sorted({str(getattr(logged.run, name)) for logged in runs})

    many = "One run" if len(runs) == 1 else f"{len(runs)} runs"
    task = shared("task")
    where = f"the {task[0]} task" if len(task) == 1 else f"the tasks {' and '.join(task)}"
    beta = shared("beta")
    text = f"{many} of {', '.join(shared('algorithm'))} on {where}"
    return text + (f", beta {beta[0]}" if len(beta) == 1 else "") + ": exact values"


def head(figure: Figure, text: str) -> None:
    """Give a figure its title."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold")


def _ink(role: str) -> str:
    return figures.TEXT.get(role, figures.ROLES[role]["color"])


def _scale(ax: Axes, name: str) -> None:
    """Give a KL to the optimum a log axis; what is rounding leaves it at the bottom."""
    if name != "kl_to_optimum":
        return
    values = [y for line in ax.lines for y in cast(list[float], line.get_ydata()) if y > ROUNDING]
    if values and max(values) > 10 * min(values):
        ax.set_yscale("log")
        ax.set_ylim(min(values) / 2, max(values) * 2)


def name_ends(figure: Figure, ax: Axes, ends: list[tuple[Point, str, str]]) -> None:
    """Name lines at their ends, pushed apart where they would cover each other."""
    if not ends:
        return
    size = 9 if len(ends) <= 6 else 7
    ends = [(point, textwrap.fill(text, 30), ink) for point, text, ink in ends]
    tallest = 1 + max(text.count("\n") for _, text, _ in ends)
    figure.draw_without_rendering()
    gap = 1.25 * size * tallest / (ax.get_window_extent().height * 72 / figure.dpi)
    to_axes = ax.transData + ax.transAxes.inverted()
    places = [to_axes.transform(point) for point, _, _ in ends]
    heights = _apart([min(max(float(y), 0.0), 1.0) for _, y in places], gap)
    for (_, text, ink), (x, y), height in zip(ends, places, heights, strict=True):
        seen = min(max(float(y), 0.0), 1.0)
        moved = {"arrowstyle": "-", "color": ink, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            text,
            (x, seen),
            (x + 0.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=ink,
            fontsize=size,
            va="center",
            arrowprops=moved if abs(height - seen) > gap / 3 else None,
            annotation_clip=False,
            parse_math=False,
        )


def _apart(heights: list[float], gap: float) -> list[float]:
    """Return heights at least `gap` apart in the same order, each as near its own as its cluster lets it."""
    clusters: list[list[int]] = []
    for i in sorted(range(len(heights)), key=heights.__getitem__):
        clusters.append([i])
        while len(clusters) > 1 and _low(clusters[-1], heights, gap) < (
            _low(clusters[-2], heights, gap) + gap * len(clusters[-2])
        ):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    found = list(heights)
    for cluster in clusters:
        for place, i in enumerate(cluster):
            found[i] = _low(cluster, heights, gap) + place * gap
    return found


def _low(cluster: list[int], heights: list[float], gap: float) -> float:
    return sum(heights[i] for i in cluster) / len(cluster) - gap * (len(cluster) - 1) / 2
