"""A unit of a sweep: a fixed stack of runs that train in one program, wherever it is worked off."""

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kltutor.controllers import UnreachableTargetWarning
from kltutor.run import Run
from kltutor.stacked import Stack, stack_key

SIZE = 16

Result = dict[str, Any]  # what `work` returns


@dataclass(frozen=True)
class Unit:
    """Runs that train together, in this order.

    Attributes:
        runs: of one `stack_key`.
        places: their numbers in the sweep, from 0.
    """

    runs: tuple[Run, ...]
    places: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return a hash of the runs, for a file that says that they are finished."""
        return hashlib.sha256("\n".join(run.to_json() for run in self.runs).encode()).hexdigest()[:16]


def cut(runs: Sequence[Run], size: int) -> tuple[Unit, ...]:
    """Return runs cut into units, the same ones whatever works them off and whatever is finished already.

    Runs that can train in one program go together in the order they come, at most `size` to a unit.

    Raises:
        ValueError: `size` is below 1.

    Example:
        >>> runs = [Run(algorithm=name, seed=seed) for seed in (0, 1) for name in ("rloo", "dpo")]
        >>> [unit.places for unit in cut(runs, size=16)]
        [(0, 2), (1, 3)]
    """
    if size < 1:
        raise ValueError(f"unit_size is {size}; at least 1 is expected.")
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(stack_key(run), []).append(place)
    parts = [places[i : i + size] for places in alike.values() for i in range(0, len(places), size)]
    return tuple(Unit(tuple(runs[place] for place in part), tuple(part)) for part in parts)


def work(runs: Sequence[Run], told: Callable[[int], None] | None = None) -> Result:
    """Train the runs of a unit on one thread and return what there is to know, as JSON can hold it.

    One thread: sums then run in the same order everywhere, so that every engine finds the same digits.

    Args:
        runs: of one unit.
        told: hears each step when it is made.

    Returns:
        ``runs``: for each its configuration as JSON, its records with exact quantities, and None or why it
        was stopped; ``warnings``: what was said on the way; ``seconds``.
    """
    threads, since = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("default", UnreachableTargetWarning)
            stack = Stack(runs)
            kept: list[list[dict[str, Any]]] = [[] for _ in runs]
            for step, records in enumerate(stack):
                for own, record in zip(kept, records, strict=True):
                    if record is not None and record.exact is not None:
                        own.append(record.to_dict())
                if told is not None:
                    told(step)
    finally:
        torch.set_num_threads(threads)
    stopped = [stack.failed.get(i) for i in range(len(runs))]
    ends = [
        None if error is None else {"step": error.step, "reason": " ".join(str(error).split())}
        for error in stopped
    ]
    return {
        "runs": [
            {"run": run.to_json(), "records": own, "stopped": end}
            for run, own, end in zip(runs, kept, ends, strict=True)
        ],
        "warnings": sorted({str(warning.message) for warning in heard}),
        "seconds": time.perf_counter() - since,
    }
