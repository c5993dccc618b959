"""Logs read from files: our own, JSON and CSV as trainers and trackers write them, names mapped to ours."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kltutor.diagnostics.log import COLUMNS, Log, column
from kltutor.diagnostics.presets import HEADS, PRESETS, Preset, recognise

OWN = "kltutor"
LOG = "log.jsonl"  # as `kltutor.train` names it in a folder
KNOWN = (OWN, *PRESETS)
TRACKER = (" - ", ("__MIN", "__MAX"))  # of an export of Weights & Biases: "run - kl", "run - kl__MIN"

Row = dict[str, Any]


def read_log(
    path: str | Path, columns: Mapping[str, str | float] | None = None, preset: str | None = None
) -> Log:
    r"""Read a training log.

    Formats: the folder or log.jsonl of a run of `kltutor.train`; JSON lines, one object a step, as verl's
    file logger writes them; a JSON list of objects, or an object with a "log_history", as Transformers'
    trainer_state.json is; CSV with a header, also as Weights & Biases exports it. What is neither mapped nor
    named by the preset is left out.

    Args:
        path: file or folder.
        columns: of canonical columns (`COLUMNS`), the name in the file, or a number if it was the same at
            every step and is not in the file. They go before what a preset says.
        preset: "kltutor", "trl-grpo", "trl-rloo", "trl-ppo", "verl" or "openrlhf"; None recognises the file
            if only one fits, and else takes the columns that bear canonical names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or broken, a name is unknown, or steps are missing, unsorted or twice
            there with unlike values.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> _ = path.write_text("step,kl,reward\n0,0.0,1.0\n1,0.2,1.3\n")
        >>> read_log(path)["kl"].tolist()
        [0.0, 0.2]
    """
    mapped = dict(columns or {})
    if preset is not None and preset not in KNOWN:
        raise ValueError(f"preset is {preset!r}; one of {', '.join(KNOWN)} is expected.")
    for name in mapped:
        if name not in COLUMNS:
            raise ValueError(f"column {name!r} is unknown; one of {', '.join(COLUMNS)} is expected.")
    path = Path(path)
    if path.is_dir():
        path = path / LOG
    rows = _rows(path)
    if preset == OWN or (preset is None and all({"sampled", "episodes"} <= row.keys() for row in rows)):
        if mapped:
            raise ValueError(
                f"columns are mapped, but {path} is a log of `kltutor.train`, whose names are known."
            )
        return Log.from_records(rows, str(path))
    return _mapped([_flat(row) for row in rows], mapped, preset, str(path))


def _mapped(rows: list[Row], columns: dict[str, str | float], preset: str | None, source: str) -> Log:
    """Give rows canonical names and return their log."""
    names = dict.fromkeys(name for row in rows for name in row)
    notes = []
    if preset is None:
        below = any(_number(row.get("kl"), "kl", source) < 0 for row in rows)
        preset = recognise(set(names), below)
        if preset is not None:
            notes.append(f"The names are those of {preset}: {PRESETS[preset].what}.")
        elif {"kl", "completions/mean_length"} <= names.keys() and not {
            "kl",
            "kl_token",
            "k3_token",
        } & columns.keys():
            raise ValueError(
                f"{source} has the names of TRL's GRPO, where kl is the token mean of k3, and of its RLOO, "
                "where it is that of k1. Say which: preset trl-grpo or trl-rloo."
            )
    known = PRESETS[preset] if preset else Preset("", {name: (name,) for name in COLUMNS}, (), {}, ())
    taken: dict[str, str] = {}
    for canonical, candidates in known.names.items():
        taken.update((canonical, name) for name in candidates[::-1] if name in names)
    for canonical, name in columns.items():
        if isinstance(name, str):
            if name not in names:
                raise ValueError(
                    f"column {canonical} is to be {name!r}, which {source} lacks: {_some(names)}."
                )
            taken[canonical] = name
    if "step" not in taken:
        raise ValueError(f"{source} has no column step: {_some(names)}. Say which one counts the steps.")
    numbers = [
        {canonical: _number(row.get(name), name, source) for canonical, name in taken.items()}
        | {
            canonical: _number(row.get(name), name, source) - _number(row.get(less), less, source)
            for canonical, (name, less) in known.differences.items()
            if canonical not in taken and {name, less} <= names.keys()
        }
        for row in rows
    ]
    merged = _merge(numbers, source)
    constants = {name: float(value) for name, value in columns.items() if not isinstance(value, str)}
    merged = [row | constants for row in merged]
    notes += [f"{remark[0].upper()}{remark[1:]}." for remark in known.remarks]
    found = dict.fromkeys(name for row in merged for name in row)
    return Log.of({name: column(merged, name) for name in found}, source, notes)


def _merge(rows: list[dict[str, float]], source: str) -> list[dict[str, float]]:
    """Return one row a step: rows of a step that say different things become one; empty ones go."""
    merged: list[dict[str, float]] = []
    for row in rows:
        said = {name: value for name, value in row.items() if not math.isnan(value)}
        if not said.keys() - {"step"}:
            continue
        last = merged[-1] if merged else {}
        if "step" in said and last.get("step") == said["step"]:
            for name in said.keys() & last.keys():
                if said[name] != last[name]:
                    raise ValueError(
                        f"step {said['step']:g} comes twice in {source}, with {name} {last[name]:g} and "
                        f"{said[name]:g}. If the run was resumed, keep what was written last."
                    )
            last.update(said)
        else:
            merged.append(said)
    if not merged:
        raise ValueError(f"{source} has no row with a number in the columns {', '.join(rows[0])}.")
    return merged


def _rows(path: Path) -> list[Row]:
    """Return the rows of a file as they are."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text, so no log in CSV or JSON.") from None
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    rows = _json(text, path) if text.lstrip()[0] in "[{" else _csv(text, path)
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    return rows


def _json(text: str, path: Path) -> list[Row]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return _lines(text, path)
    if isinstance(whole, dict):
        whole = whole.get("log_history", [whole])
    if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
        raise ValueError(f"{path} is JSON, but no list of objects, one a step.")
    return whole


def _lines(text: str, path: Path) -> list[Row]:
    """Return JSON lines, less a last one that a kill has cut short."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows: list[Row] = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if (number, line) == lines[-1] and rows and not text.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}, is no JSON: {error.msg}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is no JSON object.")
        rows.append(row)
    return rows


def _csv(text: str, path: Path) -> list[Row]:
    reader = csv.reader(text.splitlines())
    lines = [line for line in reader if line and not line[0].startswith("#")]
    head = [_short(name) for name in lines[0]] if lines else []
    if len(head) < 2:
        raise ValueError(f"{path} is neither JSON nor CSV with a header of at least two columns.")
    kept = [i for i, name in enumerate(head) if not name.endswith(TRACKER[1])]
    doubled = {head[i] for i in kept if head.count(head[i]) > 1}
    if doubled:
        raise ValueError(f"{path} has the column {min(doubled)!r} twice. Export one run alone.")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(head):
            raise ValueError(f"{path}, row {number}, has {len(line)} cells, but the header {len(head)}.")
    return [{head[i]: line[i] for i in kept if line[i].strip()} for line in lines[1:]]


def _flat(row: Row) -> Row:
    """Return a row with the tables inside it laid open, and heads of names taken off."""
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= value
        else:
            flat[name] = value
    return {_short(name): value for name, value in flat.items()}


def _short(name: str) -> str:
    name = name.strip().split(TRACKER[0])[-1]
    for head in HEADS:
        name = name.removeprefix(head)
    return "step" if name == "Step" else name


def _number(value: Any, name: str, source: str) -> float:
    """Return a value as a number, nan where it is absent."""
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"column {name!r} of {source} holds {value!r}; a number is expected.") from None


def _some(names: Iterable[str] | Sequence[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
