"""A log drawn: the columns that count, with the evidence of a report marked."""

from typing import TYPE_CHECKING, Any

import numpy as np

from kltutor.diagnostics.log import COLUMNS, Log
from kltutor.diagnostics.noise import kl_errors
from kltutor.diagnostics.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Panels in reading order: the columns of each, in one unit. A panel without data is left out.
PANELS = (("kl", "k3"), ("reward", "gold"), ("length",), ("entropy",), ("beta",), ("penalty",), ("kl_step",))
USUAL = ("kl", "k3", "reward", "gold", "length", "entropy")
ROLES = {"kl": "k1", "k3": "k3", "reward": "policy", "gold": "optimum"}
TITLES = {
    "kl": "KL(π ‖ ref)",
    "reward": "reward",
    "length": "length",
    "entropy": "entropy",
    "beta": "beta",
    "penalty": "penalty",
    "kl_step": "KL(old ‖ new)",
    "k3": "k3",
    "gold": "held-out score",
}
ACROSS = 3  # panels in a row


def plot(log: Log, report: Report) -> "Figure":
    """Return the figure of a log: its usual columns and those of the evidence, whose steps are shaded.

    The band around the KL is two standard errors either way, where the log has them. The title is the
    finding.

    Raises:
        ValueError: there is no column that can be drawn.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from kltutor import figures

    found = report.findings[0] if report.findings else None
    wanted = {*USUAL, *(found.columns if found else ())}
    panels = [[name for name in panel if name in wanted and log.has(name)] for panel in PANELS]
    panels = [panel for panel in panels if panel]
    if not panels:
        raise ValueError(f"{log.source} has none of {', '.join(TITLES)}, so there is nothing to draw.")
    rows = -(-len(panels) // ACROSS)
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(3.6 * min(len(panels), ACROSS), 2.9 * rows), layout="constrained")
        grid = figure.subplots(rows, min(len(panels), ACROSS), squeeze=False).flatten()
        for spare in grid[len(panels) :]:
            spare.remove()
        figure.suptitle(headline(report), x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
        for ax, panel in zip(grid, panels, strict=False):
            for name in panel:
                _draw(ax, log, name)
            if found and set(panel) & set(found.columns):
                _mark(ax, log, found.steps)
            if panel == ["beta"] and log["beta"][log.rows("beta")].min() > 0:
                ax.set_yscale("log")
            unit = COLUMNS[panel[0]][1]
            title = TITLES[panel[0]] if len(panel) == 1 else " and ".join(TITLES[name] for name in panel)
            figures.finish(ax, title=title, xlabel="step", ylabel=unit)
            if len(panel) > 1:
                _name(ax, panel)
    return figure


def headline(report: Report) -> str:
    """Return the finding as a title."""
    if not report.findings:
        return "Nothing that this log can show is wrong"
    found = report.findings[0]
    first, last = found.steps
    when = f"step {first:g}" if first == last else f"steps {first:g} to {last:g}"
    text = f"{found.mode}{', ' + found.cause if found.cause else ''}, at {when}"
    return text[0].upper() + text[1:]


def _draw(ax: "Axes", log: Log, name: str) -> None:
    from kltutor import figures

    step, values = log.of_rows(name)
    look: dict[str, Any] = dict(figures.line(ROLES.get(name, "policy"), marker=len(step) <= 40))
    ax.plot(step, values, **look, markersize=3, linewidth=1.2)
    if name in ("kl", "k3", "penalty"):
        nothing: dict[str, Any] = dict(figures.line("reference"))
        ax.axhline(0, **nothing, linewidth=0.8)
    if name == "kl":
        errors = kl_errors(log)[log.rows(name)]
        if np.isfinite(errors).any():
            ax.fill_between(
                step, values - 2 * errors, values + 2 * errors, alpha=0.2, color=look["color"], linewidth=0
            )


def _mark(ax: "Axes", log: Log, steps: tuple[float, float]) -> None:
    """Shade the steps that the evidence is from, at least as wide as can be seen."""
    first, last = steps
    least = 0.01 * float(log["step"][-1] - log["step"][0])
    ax.axvspan(
        first - least / 2, max(last, first + least), color="#E69F00", alpha=0.25, linewidth=0, zorder=0
    )


def _name(ax: "Axes", panel: list[str]) -> None:
    """Name the lines of a panel, each in its colour."""
    from kltutor import figures

    for place, name in enumerate(panel):
        role = ROLES.get(name, "policy")
        ink = figures.TEXT.get(role, figures.ROLES[role]["color"])
        look: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 9, "color": ink}
        ax.text(1.0, 0.98 - 0.09 * place, TITLES[name], transform=ax.transAxes, **look)
