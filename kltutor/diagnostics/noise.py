"""How far a logged number can be from what it stands for, judged from the log alone."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kltutor.diagnostics.log import Column, Log

# Of a normal law: median of |x| over standard deviation.
MEDIAN_OF_NORMAL = 0.6745
# Rows at either end whose mean stands for the beginning or the end, as a share of all, and at least so many.
END, FEWEST = 0.2, 3


class Ends(NamedTuple):
    """Means over the first and the last rows of a column."""

    first: float
    last: float
    error: float  # standard error of their difference
    rise: float  # in standard errors

    @property
    def change(self) -> float:
        """Return how much was gained from the beginning to the end."""
        return self.last - self.first


def kl_errors(log: Log) -> Column:
    """Return the standard error of the logged KL at each row: kl_sd / √batch, nan where one is missing."""
    errors: Column = log["kl_sd"] / np.sqrt(log["batch"])
    return errors


def scatter(values: Column) -> float:
    """Return the standard deviation of the noise on a smooth curve, from its second differences.

    A straight line leaves none; the median does not see a few jumps. nan below 5 values.
    """
    if len(values) < 5:
        return math.nan
    bends = np.abs(np.diff(values, n=2))
    return float(np.median(bends) / MEDIAN_OF_NORMAL / math.sqrt(6))


def ends(values: Column) -> Ends:
    """Return how a column of numbers, none of them nan, began and ended."""
    many = max(FEWEST, round(END * len(values)))
    if len(values) < 2 * FEWEST:
        return Ends(math.nan, math.nan, math.nan, math.nan)
    first, last = float(values[:many].mean()), float(values[-many:].mean())
    error = scatter(values) * math.sqrt(2 / many)
    rise = (
        (last - first) / error
        if error > 0
        else math.copysign(math.inf, last - first)
        if last != first
        else 0.0
    )
    return Ends(first, last, error, rise)


def smooth(values: Column, window: int) -> Float[np.ndarray, " place"]:
    """Return running means, as many as fit."""
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def standardised(values: Column) -> float:
    """Return the sum of values over the root of the sum of their squares.

    For numbers of mean 0 given the past it is a self-normalised martingale, close to a standard normal when
    no few of them carry the sum.
    """
    size = math.sqrt(float((values**2).sum()))
    return float(values.sum()) / size if size > 0 else 0.0


def turns(values: Column, size: Column) -> list[int]:
    """Return the places where a curve turns: where swings of at least a size begin and end.

    Args:
        values: the curve.
        size: at each place, how far it must come back from an extreme for that to count.
    """
    found: list[int] = []
    low = high = 0
    rising: bool | None = None
    for i, value in enumerate(values):
        high, low = (i if value > values[high] else high), (i if value < values[low] else low)
        if rising is not False and values[high] - value >= max(size[i], size[high]):
            found.append(high)
            rising, low = False, i
        elif rising is not True and value - values[low] >= max(size[i], size[low]):
            found.append(low)
            rising, high = True, i
    return found
