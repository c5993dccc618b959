"""The tables of a sweep: one row a run with where it ended, and one row a measurement.

Both name a run by its number and by every option in which the runs differ. Units are those of `Exact`: KLs
and entropy in nats per sequence, rewards and objective in reward units, length in tokens. All columns but
``seconds`` are fixed by the options.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kltutor import checkpoints
from kltutor.grid import HINTS
from kltutor.records import Exact
from kltutor.run import Run
from kltutor.sweep import Sweep

FORMATS = ("csv", "parquet")
ALWAYS = ("task", "algorithm", "beta", "seed")
UNSEEN = ("checkpoint_every",)
MEASURED = tuple(field.name for field in dataclasses.fields(Exact))

Row = dict[str, Any]


def final(sweep: Sweep, errors: Mapping[str, str] | None = None) -> list[Row]:
    """Return one row a run, in the order of the grid.

    ``status`` is "finished", "stopped" where a value was not finite, "failed" where its unit could not be
    worked off, or "left". Only a finished run has exact quantities; ``step`` is the last one, or that of the
    stop, and ``reason`` says why. ``beta_in_force`` is beta after the last step, which a controller may have
    moved; ``seconds`` are those of the unit, whose runs share one program.

    Args:
        sweep: as far as it is.
        errors: why units failed, by their names.
    """
    columns, rows = varied(sweep.grid.runs), {}
    for unit in sweep.units:
        result = sweep.result(unit)
        for i, (place, run) in enumerate(zip(unit.places, unit.runs, strict=True)):
            row = _named(place, run, columns)
            row |= dict.fromkeys(("status", "step", "episodes", "beta_in_force", *MEASURED, "reason"))
            row |= {"unit": unit.name, "seconds": None if result is None else result["seconds"]}
            reason = (errors or {}).get(unit.name)
            if result is None:
                row |= {"status": "failed" if reason else "left", "reason": reason}
            elif result["runs"][i]["stopped"]:
                row |= {"status": "stopped"} | result["runs"][i]["stopped"]
            else:
                last = result["runs"][i]["records"][-1]
                row |= {"status": "finished", "step": last["step"], "episodes": last["episodes"]}
                row |= {"beta_in_force": last["beta"]} | last["exact"]
            rows[place] = row
    return [rows[place] for place in sorted(rows)]


def measurements(sweep: Sweep) -> list[Row]:
    """Return one row for each exact measurement of each run whose unit is finished, in the order of the grid.

    Columns ``sampled_`` hold what the batch of that step said; the last step has none.
    """
    columns = varied(sweep.grid.runs)
    found: dict[int, list[Row]] = {}
    for unit in sweep.units:
        result = sweep.result(unit) or {"runs": []}
        for place, run, own in zip(unit.places, unit.runs, result["runs"], strict=False):
            found[place] = [_named(place, run, columns) | _flat(record) for record in own["records"]]
    rows = [row for place in sorted(found) for row in found[place]]
    names = dict.fromkeys(name for row in rows for name in row)
    return [dict.fromkeys(names) | row for row in rows]


def varied(runs: Sequence[Run]) -> list[str]:
    """Return the options that rows name: task, algorithm, beta, seed, and all others that differ."""
    names = [field.name for field in dataclasses.fields(Run) if field.name not in (*ALWAYS, *UNSEEN)]
    differ = [name for name in names if any(getattr(run, name) != getattr(runs[0], name) for run in runs)]
    return [*ALWAYS, *differ]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV or Parquet, as the name ends, atomically. Numbers keep all their digits.

    Raises:
        ModuleNotFoundError: Parquet is asked for, and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        check_format("parquet")
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
        checkpoints.write(path, buffer.getvalue())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    checkpoints.write(path, text.getvalue().encode())


def check_format(name: str) -> None:
    """Raise ModuleNotFoundError where a format needs a package that is not there."""
    if name == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "format is 'parquet', which needs pyarrow: pip install 'kltutor[scale]'."
            ) from None


def _named(place: int, run: Run, columns: Sequence[str]) -> Row:
    return {"run": place} | {name: _cell(name, getattr(run, name)) for name in columns}


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return float(value) if HINTS[name] is float and value is not None else value


def _flat(record: Mapping[str, Any]) -> Row:
    plain = {name: record[name] for name in ("step", "episodes", "seconds", "loss", "gradient_norm")}
    forced = {f"{name}_in_force": record[name] for name in ("beta", "rate")}
    said = {f"sampled_{name}": value for name, value in record["sampled"].items()}
    return plain | forced | dict(record["exact"]) | said
