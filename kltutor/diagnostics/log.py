"""A training log: what a run reported, one row a step, under one set of names and units.

KLs are of the policy from the reference unless named otherwise, measured on the run's own samples.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kltutor.records import Record

Column = Float[np.ndarray, " row"]
Rows = Bool[np.ndarray, " row"]

# Canonical columns: what each holds, and its unit.
COLUMNS = {
    "step": ("updates made before the batch was drawn", "steps"),
    "beta": ("coefficient of the KL in force", "reward units per nat"),
    "reward": ("mean reward trained on, before any KL", "reward units"),
    "reward_sd": ("standard deviation of that reward over completions", "reward units"),
    "kl": ("KL(π ‖ ref): mean over completions of the sum of k1", "nats per sequence"),
    "kl_token": ("mean of k1 over tokens", "nats per token"),
    "kl_sd": ("standard deviation over completions of the sum of k1", "nats per sequence"),
    "k3": ("mean over completions of the sum of the tokens' k3", "nats per sequence"),
    "k3_token": ("mean of k3 over tokens", "nats per token"),
    "penalty": ("what the KL added to the reward, mean over completions", "reward units"),
    "length": ("mean length of a completion", "tokens"),
    "entropy": ("-mean log π of whole completions", "nats per sequence"),
    "entropy_token": ("entropy, mean over tokens", "nats per token"),
    "kl_step": ("KL(old ‖ new) of the step", "nats"),
    "clip_fraction": ("share of tokens clipped", "share"),
    "gold": ("held-out score that is not trained on", "gold units"),
    "episodes": ("completions learnt from so far", "completions"),
    "batch": ("completions that the means of a step are over", "completions"),
}
# A column that is missing follows from one per token times the length.
SUMS = {"kl": "kl_token", "k3": "k3_token", "entropy": "entropy_token"}


@dataclass(frozen=True, eq=False, repr=False)
class Log:
    """Columns of numbers by step; nan where a step did not log one. Make one with `read_log`.

    Attributes:
        columns: canonical names only, always with "step", float64, all of one length.
        derived: of columns that the log did not have, how they came about.
        source: where the log came from.
        notes: what was done to it in reading.
    """

    columns: Mapping[str, Column]
    derived: Mapping[str, str]
    source: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, columns: Mapping[str, Column], source: str, notes: Iterable[str] = ()) -> "Log":
        """Check columns, fill in what follows from others, and return the log.

        Raises:
            ValueError: a name is unknown, lengths differ, steps are missing, unsorted or repeated, or no
                column but the step holds a number.
        """
        found = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
        told = [*notes]
        _check(found, source)
        for name, values in found.items():
            if np.isinf(values).any():
                at = found["step"][np.isinf(values)][0]
                told.append(f"{name} is infinite at step {at:g}; such values count as missing.")
                found[name] = np.where(np.isinf(values), np.nan, values)
        if not any(np.isfinite(values).any() for name, values in found.items() if name != "step"):
            raise ValueError(f"{source} has steps, but no column with a number beside them.")
        derived = _derive(found)
        for values in found.values():
            values.flags.writeable = False
        return cls(MappingProxyType(found), MappingProxyType(derived), source, tuple(told))

    @classmethod
    def from_records(cls, records: Iterable[Record | Mapping[str, Any]], source: str = "records") -> "Log":
        """Return what a practitioner has of the records of `kltutor.train`, as objects or lines of log.jsonl.

        That is the step, beta, what the batches said, and the exact gold reward where it was measured, which
        stands for a held-out evaluation. No other exact quantity is read.

        Raises:
            ValueError: there are none, or one is no such record.
        """
        rows = [dataclasses.asdict(each) if isinstance(each, Record) else dict(each) for each in records]
        if not rows:
            raise ValueError(f"{source} holds no records.")
        plain: list[dict[str, float]] = []
        for i, row in enumerate(rows):
            missing = [name for name in ("step", "episodes", "beta", "sampled") if name not in row]
            if missing or not isinstance(row["sampled"], Mapping):
                raise ValueError(
                    f"{source}, row {i}, is no record of `kltutor.train`: it lacks "
                    f"{', '.join(missing) or 'a table under sampled'}."
                )
            said = {name: value for name, value in row["sampled"].items() if name in COLUMNS}
            top = {name: row[name] for name in ("step", "episodes", "beta")}
            gold = {"gold": row["exact"]["gold"]} if row.get("exact") else {}
            plain.append(top | said | gold)
        names = dict.fromkeys(name for row in plain for name in row)
        return cls.of({name: column(plain, name) for name in names}, source)

    def __repr__(self) -> str:
        """Say how much there is, not all of it."""
        return f"Log({self.source}: {len(self)} rows of {', '.join(self.columns)})"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.columns["step"])

    def __getitem__(self, name: str) -> Column:
        """Return a column, all nan if the log has none."""
        if name not in COLUMNS:
            raise KeyError(f"{name!r} is no column of a log; one of {', '.join(COLUMNS)} is expected.")
        return self.columns.get(name, np.full(len(self), np.nan))

    def has(self, *names: str) -> bool:
        """Return whether some row holds all of these columns."""
        return bool(self.rows(*names).any())

    def rows(self, *names: str) -> Rows:
        """Return which rows hold all of these columns."""
        held: Rows = np.logical_and.reduce([np.isfinite(self[name]) for name in names])
        return held

    def of_rows(self, *names: str) -> tuple[Column, ...]:
        """Return the step and these columns, of the rows that hold them all."""
        rows = self.rows(*names)
        return tuple(self[name][rows] for name in ("step", *names))

    def logged(self, name: str) -> bool:
        """Return whether the log itself had a column, which was not worked out from others."""
        return name in self.columns and name not in self.derived


def column(rows: Iterable[Mapping[str, Any]], name: str) -> Column:
    """Return one value of each row, nan where it is absent or None."""
    values = (row.get(name) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _check(columns: dict[str, Column], source: str) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise ValueError(f"{name!r} is no column of a log; one of {', '.join(COLUMNS)} is expected.")
    if "step" not in columns:
        raise ValueError(f"{source} has no column step. Say which of its columns counts the steps.")
    steps = columns["step"]
    for name, values in columns.items():
        if values.shape != steps.shape:
            raise ValueError(f"{name} has {len(values)} rows and step {len(steps)}; one length is expected.")
    if not len(steps):
        raise ValueError(f"{source} holds no rows.")
    if not np.isfinite(steps).all():
        row = int(np.flatnonzero(~np.isfinite(steps))[0])
        raise ValueError(f"step of row {row} is {steps[row]}; a finite number is expected.")
    back = np.flatnonzero(np.diff(steps) <= 0)
    if len(back):
        row = int(back[0]) + 1
        now, before = steps[row], steps[row - 1]
        what = "comes twice" if now == before else f"comes after step {before:g}"
        raise ValueError(
            f"step {now:g} {what} in {source} (row {row}); steps that rise are expected. If the run was "
            "resumed, keep of each step the row that was written last."
        )


def _derive(columns: dict[str, Column]) -> dict[str, str]:
    """Fill in what follows from other columns, and return how."""
    derived = {}
    if "batch" not in columns and "episodes" in columns and len(columns["step"]) > 1:
        each = np.diff(columns["episodes"]) / np.diff(columns["step"])
        each[~(each > 0)] = np.nan  # a last record makes no step
        columns["batch"] = np.concatenate([each[:1], each])
        derived["batch"] = "episodes per step"
    for name, of_token in SUMS.items():
        if name not in columns and of_token in columns and "length" in columns:
            columns[name] = columns[of_token] * columns["length"]
            derived[name] = f"{of_token} · length"
    return derived
