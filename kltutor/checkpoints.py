"""Checkpoints: tensors and JSON in one file, whole or absent, and a log that goes with them.

One safetensors file holds the tensors and, in its header, the JSON state, so that the two cannot part. It is
written beside its place and renamed into it: a reader finds the old one or the new one, never half of one.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

KIND = "kltutor checkpoint"
VERSION = "2"


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and state to one file, atomically: at any moment it is the old one or the new one.

    Args:
        path: where; its folder exists. A file `path`.part beside it is scratch.
        tensors: by name, on any device.
        state: what JSON can hold, nan and infinity excepted.

    Raises:
        ValueError: JSON cannot hold the state.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.safetensors"
        >>> save(path, {"weights": torch.tensor([1.0, 2.0])}, {"step": 3})
        >>> load(path)
        ({'weights': tensor([1., 2.])}, {'step': 3})
    """
    try:
        text = json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state cannot be written as JSON: {error}.") from None
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"kind": KIND, "version": VERSION, "state": text}
    write(path, safetensors.torch.save(held, header))


def write(path: Path, data: bytes) -> None:
    """Write a file, atomically: at any moment it is the old one, or none, or the new one.

    Args:
        path: where; its folder exists. A file `path`.part beside it is scratch.
        data: all that it shall hold.
    """
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync(path.parent)  # the rename is a change of the folder


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the state of a file that `save` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is truncated or damaged, or of another program or version.
    """
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        (length,) = struct.unpack("<Q", data[:8])  # then a JSON header of so many bytes
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, struct.error) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. What `save` writes is whole, so this file was cut, changed or "
            "written by something else. Put a copy back, or delete it and start the run again."
        ) from None
    if header.get("kind") != KIND or header.get("version") != VERSION:
        found = f"{header.get('kind')!r}, version {header.get('version')!r}"
        raise ValueError(
            f"{path} is a safetensors file of kind {found}; {KIND!r}, version {VERSION!r} is expected. Pass "
            "a file that this version of the package saved."
        )
    return tensors, json.loads(header["state"])


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix and a dot, without these."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def append(log: Path, line: Mapping[str, Any]) -> None:
    """Add a line of JSON to a log; the operating system has it at once, so a killed process loses none."""
    text = json.dumps(line, allow_nan=False, ensure_ascii=False)
    with open(log, "ab", buffering=0) as file:
        file.write(text.encode() + b"\n")


def settle(log: Path) -> dict[str, Any]:
    """Return size and hash of a log once all of it is on the disk: what a checkpoint notes down."""
    _sync(log)
    data = log.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def cut(log: Path, note: Mapping[str, Any]) -> None:
    """Cut a log back to what `settle` found when the checkpoint was written, and leave any other log alone.

    Raises:
        ValueError: it is shorter, absent or begins otherwise, so it is not the log of that checkpoint.
    """
    size, data = note["bytes"], log.read_bytes() if log.exists() else None
    if data is None or len(data) < size:
        wrong = f"{'is absent' if data is None else f'holds {len(data)} bytes'}, but {size} bytes were there"
    elif hashlib.sha256(data[:size]).hexdigest() != note["sha256"]:
        wrong = f"begins with {size} bytes that differ from those that were there"
    else:
        os.truncate(log, size)
        return
    raise ValueError(
        f"{log} {wrong} when the checkpoint was written. Put back the log that belongs to the checkpoint, or "
        "start the run in another folder."
    )


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, less a last one that a kill has cut short."""
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]


def _sync(path: Path) -> None:
    """Return when a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
