"""Training runs that go wrong in the ways of chapter 8, and the same runs cured: a scene for each mode.

A scene is a function from a seed to a run that was made. The seed sets the world (reference and data), the
training and, within the bounds that the scene states, hyper-parameters, so that 50 seeds are 50 unlike runs.
The cured run has the same seed: it differs from the other by its cure alone. Modules of this package hold the
scenes of one subject each and are found by themselves; each scene registers under the name of its mode::

    @scene("runaway")
    def runaway(seed: int, cured: bool) -> Produced:
        ...
        return play(run, world, route="tiny beta")

`play` trains and keeps every record. A scene that has to meddle with a training makes its own loop and
returns ``Produced(run, records, world, route)``.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from kltutor.records import Record
from kltutor.run import Run
from kltutor.train import make_world, train
from kltutor.world import World

MODES = (
    "healthy",
    "collapse",
    "runaway",
    "over-optimisation",
    "length-drift",
    "wrong-reference",
    "moving-reference",
    "controller-oscillation",
    "negative-kl",
    "unit-mix-up",
)


class Produced(NamedTuple):
    """A run that was made: what it was told to do, and what it reported."""

    run: Run
    records: list[Record]  # one a step, as `train` yields them
    world: World  # what it acted in
    route: str  # by which of several ways the failure came about, or was cured; a few words


Scene = Callable[[int, bool], Produced]

_scenes: dict[str, Scene] = {}


def scene(mode: str) -> Callable[[Scene], Scene]:
    """Register the decorated function as the scene of a mode; it takes a seed and whether to cure the run.

    Raises:
        ValueError: there is no such mode, or it has a scene.

    Example:
        >>> @scene("slow")
        ... def slow(seed: int, cured: bool) -> Produced: ...
        Traceback (most recent call last):
        ValueError: mode is 'slow'; one of healthy, collapse, runaway, over-optimisation, length-drift, \
wrong-reference, moving-reference, controller-oscillation, negative-kl, unit-mix-up is expected.
    """
    _check(mode)

    def register(found: Scene) -> Scene:
        if _scenes.get(mode, found).__qualname__ != found.__qualname__:
            raise ValueError(f"mode {mode!r} has a scene; every mode has one.")
        _scenes[mode] = found
        return found

    return register


def produce(mode: str, seed: int, *, cured: bool = False) -> Produced:
    """Make a run of a mode, on the CPU in a few seconds.

    Args:
        mode: one of `MODES`.
        seed: at least 0; of the world, the training and the hyper-parameters.
        cured: make the same run with its cure. A healthy run has nothing to cure.

    Raises:
        ValueError: there is no such mode, the seed is negative, or a healthy run is to be cured.

    Example:
        >>> run, records, *_ = produce("collapse", 0)
        >>> records[-1].exact.kl < 0.05
        True
    """
    _check(mode)
    if seed < 0:
        raise ValueError(f"seed is {seed}; at least 0 is expected.")
    if mode == "healthy" and cured:
        raise ValueError("cured is True, but a healthy run has nothing to cure. Leave it out.")
    _load()
    return _scenes[mode](seed, cured)


def play(run: Run, world: World | None = None, *, route: str = "") -> Produced:
    """Train and keep every record; without a world, in the one that the run names."""
    here = world or make_world(run)
    return Produced(run, list(train(run, world=here)), here, route)


def _check(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; one of {', '.join(MODES)} is expected.")


@cache
def _load() -> None:
    """Import every module of this package, so that all scenes are registered."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
