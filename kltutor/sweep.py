"""A sweep in its folder: which units there are, and which of them are finished.

The folder holds ``sweep.json``, which says what the sweep is, and a file for each unit that is finished. Such
a file is whole or absent, so a sweep that was killed goes on where it stopped.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import kltutor
from kltutor import checkpoints, units
from kltutor.grid import Grid, to_dict
from kltutor.units import SIZE, Result, Unit

MANIFEST, UNITS = "sweep.json", "units"


def versions() -> dict[str, str]:
    """Return what must be the same wherever digits are to be the same."""
    return {"kltutor": kltutor.__version__, "torch": str(torch.__version__)}


class Sweep:
    """A grid of runs, a folder, and what of it is done.

    Attributes:
        folder: where the results are; it is made.
        grid: of the runs.
        units: the same for a grid and a size, whatever is finished.

    Raises:
        ValueError: the folder holds another sweep, something else, or files that are damaged.
    """

    def __init__(self, folder: Path, grid: Grid, size: int = SIZE) -> None:
        """Open the folder of this sweep, or make it."""
        self.folder, self.grid = folder, grid
        self.units = units.cut(grid.runs, size)
        wanted = versions() | {"unit_size": size} | to_dict(grid)
        path = folder / MANIFEST
        if path.exists():
            _compare(path, wanted)
            return
        if folder.is_dir() and {each.name for each in folder.iterdir()} - {f"{MANIFEST}.part"}:
            raise ValueError(f"--out {folder} is not empty and holds no sweep. Choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.write(path, json.dumps(wanted, indent=1).encode())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from working on this sweep; the system lets go when this one ends or dies.

        Raises:
            ValueError: one is at it.
        """
        with open(self.folder / MANIFEST, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"--out {self.folder} is being worked on by another process.") from None
            yield

    def left(self) -> list[Unit]:
        """Return the units that are not finished; ValueError where a file of one that is was damaged."""
        return [unit for unit in self.units if self.result(unit) is None]

    def keep(self, unit: Unit, result: Result) -> None:
        """Write what a unit has found, which finishes it; the folder `units` is made."""
        path = self._path(unit)
        path.parent.mkdir(exist_ok=True)
        checkpoints.write(path, json.dumps(result, allow_nan=False).encode())

    def result(self, unit: Unit) -> Result | None:
        """Return what a unit has found, or None if it is not finished.

        Raises:
            ValueError: its file is damaged, or of other runs.
        """
        path = self._path(unit)
        if not path.exists():
            return None
        try:
            found: Result = json.loads(path.read_bytes())
            same = [each["run"] for each in found["runs"]] == [run.to_json() for run in unit.runs]
        except (ValueError, LookupError, TypeError):
            same = False
        if not same:
            raise ValueError(f"{path} was damaged or changed. Delete it, and its runs are made again.")
        return found

    def _path(self, unit: Unit) -> Path:
        return self.folder / UNITS / f"{unit.name}.json"


def _compare(path: Path, wanted: dict[str, Any]) -> None:
    """Raise ValueError unless a manifest says what is wanted."""
    try:
        found = json.loads(path.read_bytes())
        names = [name for name in wanted if found[name] != wanted[name]]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is not the manifest of a sweep. Choose another folder.") from None
    if not names:
        return
    name, out = names[0], f"--out {path.parent}"
    if name in versions():
        raise ValueError(
            f"{out} was begun with {name} {found[name]}; this is {wanted[name]}, and digits may differ. "
            "Start the sweep in another folder, or go on with that version."
        )
    if name == "unit_size":
        raise ValueError(f"unit_size is {wanted[name]}, but the sweep in {path.parent} has {found[name]}.")
    here, there = (
        f"{len(grid['runs'])} runs over {', '.join(grid['axes']) or 'nothing'}" for grid in (wanted, found)
    )
    other = "with other values" if here == there else f"of {there}"
    raise ValueError(
        f"{out} holds another sweep, {other}; this one is of {here}. Choose another folder, or repeat its "
        "command."
    )
