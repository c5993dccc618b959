"""A grid of runs: every combination of the values that some options take.

From Python it is a `Grid`; from a TOML file its two tables, ``[base]`` and ``[grid]``; from the command line
texts like ``beta=0.1,0.3,1`` and ``seed=0:5``.
"""

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from beartype.door import is_bearable

from kltutor.run import TASKS, Run

HINTS = get_type_hints(Run) | {"task": Literal.__getitem__(tuple(TASKS))}
SEEDS = ("seed", "world_seed")  # axes along which runs are repeated rather than compared
WORLD = (  # what fixes the reference and the rewards
    *("task", "policy", "layers", "heads", "width", "ref_steps", "ref_scale", "world_seed", "data_size"),
    *("flip", "dtype"),
)


@dataclass(frozen=True)
class Grid:
    """Every combination of values: the last axis changes fastest, as in nested loops.

    Attributes:
        base: fields of `Run` that are the same in all.
        axes: fields of `Run`, each with the values it takes.

    Raises:
        ValueError: a field does not exist, has no use in a sweep, stands in both or takes no value or one
            value twice; a value is none that the field can have; or a combination contradicts itself.

    Example:
        >>> runs = Grid({"algorithm": "grpo"}, {"beta": [0.1, 1.0], "seed": [0, 1]}).runs
        >>> [(run.beta, run.seed) for run in runs]
        [(0.1, 0), (0.1, 1), (1.0, 0), (1.0, 1)]
    """

    base: Mapping[str, Any]
    axes: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        """Check each field and value by itself, then make the runs, which check what goes together."""
        for name in (*self.base, *self.axes):
            _check_name(name)
        for name in self.axes:
            if name in self.base:
                raise ValueError(f"{name} is an axis of the grid, and fixed for all runs. Leave one out.")
            if not self.axes[name]:
                raise ValueError(f"{name} is an axis without values. Give one or more, or leave it out.")
        settled = {name: _settled(name, value) for name, value in self.base.items()}
        object.__setattr__(self, "base", settled)
        along = {name: tuple(_settled(name, each) for each in values) for name, values in self.axes.items()}
        object.__setattr__(self, "axes", along)
        for name, values in along.items():
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise ValueError(f"{name} takes {twice[0]!r} twice. Give each value once.")
        seen: dict[str, Run] = {}
        for run in self.runs:
            if run.to_json() in seen:
                one, two = self.label(seen[run.to_json()]), self.label(run)
                raise ValueError(f"grid has one run twice, as {one} and as {two}. Leave out one value.")
            seen[run.to_json()] = run

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Return the runs in order."""
        found = []
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            try:
                found.append(Run(**self.base, **point))
            except ValueError as error:
                at = f" That is of the run with {say(point)}." if point else ""
                raise ValueError(f"{error}{at}") from None
        return tuple(found)

    @property
    def compared(self) -> list[str]:
        """Return the axes of two and more values that are no seeds."""
        return [name for name, values in self.axes.items() if len(values) > 1 and name not in SEEDS]

    def label(self, run: Run) -> str:
        """Return what tells a run from the others."""
        return say({name: getattr(run, name) for name in self.axes}) or run.algorithm


def say(options: Mapping[str, Any]) -> str:
    """Return options as words, such as "beta 0.1, seed 3"."""
    return ", ".join(f"{name} {shown(value)}" for name, value in options.items())


def shown(value: Any) -> str:
    """Return the value of an option as words."""
    if isinstance(value, dict):
        rest = (f"{name} {shown(each)}" for name, each in value.items() if name != "class")
        return " ".join((str(value.get("class", "")), *rest))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def read_toml(path: Path) -> Grid:
    """Return the grid of a TOML file: fixed options in ``[base]``, lists of values in ``[grid]``.

    Raises:
        ValueError: the file is no TOML, holds another table, or `Grid` refuses what it says.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    other = sorted(tables.keys() - {"base", "grid"})
    if other:
        raise ValueError(f"{path} has {', '.join(other)}; only the tables [base] and [grid] are expected.")
    base, axes = tables.get("base", {}), tables.get("grid", {})
    if not isinstance(base, dict) or not isinstance(axes, dict):
        raise ValueError(f"{path}: base and grid are tables, written as [base] and [grid].")
    for name, values in axes.items():
        if not isinstance(values, list):
            raise ValueError(f"{name} in [grid] of {path} is {values!r}; a list is expected.")
    return Grid(base, axes)


def read_axis(text: str) -> tuple[str, list[Any]]:
    """Return name and values of a text like ``beta=0.1,0.3,1`` or ``seed=0:5``, which is 0 to 4.

    Hyphens may stand for underscores, and ``none`` for the absence of an optional setting.

    Raises:
        ValueError: there is no ``=``, no such field, or a part is no value of it.

    Example:
        >>> read_axis("max-gradient-norm=none,1")
        ('max_gradient_norm', [None, 1.0])
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise ValueError(f"--grid has {text!r}; NAME=VALUES is expected, as in beta=0.1,0.3,1 or seed=0:5.")
    _check_name(name)
    if name == "controller":
        raise ValueError("--grid cannot list settings of a controller. Write the grid into a TOML file.")
    parts = [part.strip() for part in values.split(",")] if values.strip() else []
    return name, [value for part in parts for value in _read(name, part)]


def _read(name: str, part: str) -> list[Any]:
    kinds = _kinds(name)
    if part == "none" and NoneType in kinds:
        return [None]
    try:
        if int in kinds and ":" in part:
            low, high = map(int, part.split(":"))
            if low >= high:
                raise ValueError
            return list(range(low, high))
        return [next((kind(part) for kind in (int, float) if kind in kinds), part)]
    except ValueError:
        more = ", or a range like 0:5" if int in kinds else ""
        raise ValueError(f"{name} has {part!r} in the grid; {_expected(name)}{more} is expected.") from None


def _settled(name: str, value: Any) -> Any:
    """Return a value as the field holds it, a whole number as a float where a float is meant."""
    if float in _kinds(name) and type(value) is int:
        value = float(value)
    if not is_bearable(value, HINTS[name]) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; {_expected(name)} is expected.")
    return value


def _check_name(name: str) -> None:
    if name not in HINTS:
        raise ValueError(f"grid has {name!r}, which a Run has not. Its fields: {', '.join(HINTS)}.")
    if name == "checkpoint_every":
        raise ValueError("checkpoint_every has no use in a sweep, which keeps whole units. Leave it out.")


def _kinds(name: str) -> tuple[Any, ...]:
    """Return the alternatives of a field's type."""
    hint = HINTS[name]
    return (hint,) if get_origin(hint) is Literal or not get_args(hint) else get_args(hint)


def _expected(name: str) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", NoneType: "none"}
    said = []
    for kind in _kinds(name):
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        said.append(f"one of {', '.join(choices)}" if choices else words.get(kind, "a table with its class"))
    return " or ".join(said)


def to_dict(grid: Grid) -> dict[str, Any]:
    """Return what a grid says in types that JSON can hold."""
    return {
        "base": dict(grid.base),
        "axes": {name: list(values) for name, values in grid.axes.items()},
        "runs": [json.loads(run.to_json()) for run in grid.runs],
    }
