"""The one look of every figure and table: a role keeps its colour, dash and marker through the book."""

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

# Colour is always doubled by dash and marker, so that the roles survive print and colour blindness.
ROLES: dict[str, dict[str, str]] = {
    "policy": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "reference": {"color": "#949494", "linestyle": "--", "marker": "s"},
    "optimum": {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    "exact": {"color": "#000000", "linestyle": ":", "marker": "None"},
    # hollow, so that they are not taken for the three above
    "k1": {"color": "#332288", "linestyle": "-", "marker": "o", "markerfacecolor": "none"},
    "k2": {"color": "#A96B59", "linestyle": "--", "marker": "s", "markerfacecolor": "none"},
    "k3": {"color": "#AA3377", "linestyle": "-.", "marker": "^", "markerfacecolor": "none"},
}
# Darker than the line where it has less than 4.5:1 on white.
TEXT = {"policy": "#0072B2", "reference": "#666666", "optimum": "#B84F00", "k2": "#9C5F4E"}

STYLE: Any = {
    "figure.figsize": (6.4, 3.2),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "font.size": 10,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine has it
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "svg.hashsalt": "kltutor",
    "svg.fonttype": "path",
}


def use_style() -> None:
    """Set matplotlib to the book's style: 6.4 x 3.2 in, transparent SVG, no date, stable ids."""
    import matplotlib_inline.backend_inline

    matplotlib_inline.backend_inline.set_matplotlib_formats(
        "svg", metadata={"Date": None}, bbox_inches="tight"
    )
    mpl.rcParams.update(STYLE)


def line(role: str, *, marker: bool = False) -> dict[str, str]:
    """Return the plot keywords of a role: colour and dash, and its marker when asked."""
    look = dict(_look(role))
    if not marker:
        look.pop("marker")
        look.pop("markerfacecolor", None)
    return look


def dots(role: str) -> dict[str, str]:
    """Return the plot keywords of a role for outcomes, which are not joined: colour and marker only."""
    look = dict(_look(role))
    look["linestyle"] = "none"
    return look


def label(
    ax: Axes, x: float, y: float, text: str, role: str, *, ha: str = "left", va: str = "center"
) -> None:
    """Write a direct label at data coordinates, in the readable shade of the role's colour."""
    ax.text(x, y, text, color=TEXT.get(role, _look(role)["color"]), ha=ha, va=va)


def finish(ax: Axes, *, title: str, xlabel: str, ylabel: str) -> None:
    """Give an axis its finding as the title, and both its axis labels with units."""
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)


def table(rows: list[dict[str, Any]], digits: str = ".4f") -> Any:
    """Return rows as a Markdown table for a notebook: keys are the header, floats print with `digits`.

    Strings stay as they are, also those that look like numbers.
    """
    from IPython.display import Markdown
    from tabulate import tabulate

    plain = [{key: getattr(value, "item", lambda v=value: v)() for key, value in row.items()} for row in rows]
    keys = list(dict.fromkeys(key for row in plain for key in row))
    texts = [key for key in keys if any(isinstance(row.get(key), str) for row in plain)]
    for row in plain:  # tabulate formats a column of numbers only, and takes "1e3" for one
        row.update({key: format(row[key], digits) for key in texts if isinstance(row.get(key), float)})
    columns = [keys.index(key) for key in texts]
    return Markdown(
        tabulate(plain, headers="keys", tablefmt="pipe", floatfmt=digits, disable_numparse=columns)
    )


def _look(role: str) -> dict[str, str]:
    if role not in ROLES:
        raise ValueError(f"role is {role!r}; expected one of {', '.join(ROLES)}.")
    return ROLES[role]
