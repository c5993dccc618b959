"""Timing: calls that take turns, their medians and spread, and the table that a comparison hands back."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class Clock:
    """What the time is taken from: the clock on the wall, unless `--cpu` asks for this process's share."""

    now = staticmethod(time.perf_counter)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over all repetitions."""

    median: float
    low: float  # the fastest
    high: float  # the slowest

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Sum up repetitions."""
        return cls(statistics.median(seconds), min(seconds), max(seconds))

    def __str__(self) -> str:
        """Return milliseconds: the median, and from the fastest to the slowest."""
        return f"{1e3 * self.median:.4g} ({1e3 * self.low:.4g} to {1e3 * self.high:.4g})"


@dataclass
class Comparison:
    """One table."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)  # what a program would want, for --json


def take_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, each: int = 1, warmup: int = 1
) -> dict[str, Timing]:
    """Time every call, one after another in each repetition, so that a busy machine slows all alike.

    Args:
        calls: by name.
        repeats: number of repetitions, each a mean over `each` calls.
        each: calls in a row.
        warmup: calls before the first repetition, not timed.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = Clock.now()
            for _ in range(each):
                call()
            seconds[name].append((Clock.now() - start) / each)
    return {name: Timing.of(found) for name, found in seconds.items()}
