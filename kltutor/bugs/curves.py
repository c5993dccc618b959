"""The symptom of a bug as a curve: one quantity of the broken code and of the cured, against another."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Scale = Literal["linear", "log", "symlog"]


@dataclass(frozen=True)
class Plot:
    """What to draw: where to look, and what one finds there of a piece of code.

    Attributes:
        x: what the first axis shows, with its unit in brackets.
        y: the same of the second.
        points: the values on the first axis, increasing.
        at: from a piece of code to the values that it gives there.
        x_scale: how the first axis is divided.
        y_scale: how the second is; "symlog" is linear up to ±1.
    """

    x: str
    y: str
    points: Callable[[], Sequence[float]]
    at: Callable[[Callable[..., Any]], Sequence[float]]
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"


@dataclass(frozen=True)
class Curve:
    """The values of a plot for one bug.

    Raises:
        ValueError: fewer than three points, lists of different lengths, an x that does not increase, a
            value that is not finite, or one that its axis cannot show.
    """

    finding: str
    plot: Plot
    x: tuple[float, ...]
    broken: tuple[float, ...]
    cured: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        lengths = [len(self.x), len(self.broken), len(self.cured)]
        if min(lengths) < 3 or len(set(lengths)) > 1:
            raise ValueError(
                f"x, broken and cured have {lengths} values; one number of three or more is due."
            )
        if not all(a < b for a, b in pairwise(self.x)):  # so written, nan is caught too
            raise ValueError(f"x is {self.x}; increasing values are expected.")
        for name, scale in (
            ("x", self.plot.x_scale),
            ("broken", self.plot.y_scale),
            ("cured", self.plot.y_scale),
        ):
            for value in getattr(self, name):
                if not math.isfinite(value) or (scale == "log" and value <= 0):
                    raise ValueError(f"{name} holds {value}; finite numbers, above 0 on a log axis, are due.")
