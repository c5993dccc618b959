"""A checkpoint is whole or the one before it, and a log ends where the checkpoint left it."""

import json
import os

import pytest
import safetensors.torch
import torch

from kltutor import checkpoints

TENSORS = {
    "double": torch.tensor([[0.1, -1e300], [float("inf"), 1e-310]], dtype=torch.float64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "count": torch.tensor(7.0),
    "empty": torch.zeros(0, 3),
    "turned": torch.arange(6.0).view(2, 3).T,  # not contiguous
}
STATE = {"step": 3, "name": "‖", "beta": 0.1, "nothing": None, "deep": {"list": [1, 2.5, True]}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def check(path, tensors, state):
    found, said = checkpoints.load(path)
    assert said == state
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_what_is_saved_comes_back_bit_for_bit(path):
    shared = TENSORS["double"].clone().requires_grad_()
    tensors = TENSORS | {"shared": shared, "view": shared[0], "again": shared}  # memory that two share
    checkpoints.save(path, tensors, STATE)
    check(path, tensors, STATE)
    checkpoints.save(path, {}, {})
    check(path, {}, {})
    assert os.listdir(path.parent) == [path.name]  # no scratch file is left


def test_state_that_json_lacks_is_refused_and_the_old_file_stays(path):
    checkpoints.save(path, TENSORS, STATE)
    for bad in ({"x": float("nan")}, {"x": float("inf")}, {"x": torch.ones(1)}):
        with pytest.raises(ValueError, match="state cannot be written as JSON"):
            checkpoints.save(path, {}, bad)
    check(path, TENSORS, STATE)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("old", [True, False])
def test_a_stop_at_any_call_leaves_the_old_file_or_none(path, monkeypatch, call, old):
    """The process ends before the n-th system call that touches the disk, for every n there is."""
    if old:
        checkpoints.save(path, TENSORS, STATE)
    real = {"fsync": os.fsync, "replace": os.replace}
    for n in range(10):
        left = [n]

        def stop(*args, name, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real[name](*args)

        with monkeypatch.context() as patch:
            if call == "write":
                patch.setattr(safetensors.torch, "save", lambda *a, n=n: _whole(*a)[: 40 * n])
                patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
            else:
                patch.setattr(os, call, lambda *args: stop(*args, name=call))
            try:
                checkpoints.save(path, {"new": torch.ones(n)}, {"new": n})
                done = True
            except KeyboardInterrupt:
                done = False
        if done:
            check(path, {"new": torch.ones(n)}, {"new": n})
            assert n > 0
            return
        replaced = call == "fsync" and n == 1  # only the folder is not yet on the disk
        if replaced:
            check(path, {"new": torch.ones(n)}, {"new": n})
        elif old:
            check(path, TENSORS, STATE)
        else:
            assert not path.exists()
    assert call == "write"
    checkpoints.save(path, {"new": torch.ones(2)}, {})  # what the stops left behind is in nobody's way
    check(path, {"new": torch.ones(2)}, {})


_whole = safetensors.torch.save


def test_a_file_cut_anywhere_is_named_as_such(path):
    checkpoints.save(path, TENSORS, STATE)
    data = path.read_bytes()
    for size in [*range(0, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cannot be read.*delete it and start the run again"):
            checkpoints.load(path)
    path.write_bytes(data + b"x")
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoints.load(path)


def test_a_file_of_another_program_or_version_is_named_as_such(path, monkeypatch):
    safetensors.torch.save_file({"weights": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"of kind None, version None; 'kltutor checkpoint', version '2'"):
        checkpoints.load(path)
    monkeypatch.setattr(checkpoints, "VERSION", "0")
    checkpoints.save(path, TENSORS, STATE)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version '0'; 'kltutor checkpoint', version '2' is expected"):
        checkpoints.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoints.load(path.with_name("none"))


def test_a_log_is_cut_back_to_what_a_checkpoint_noted(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [{"step": i, "unit": "‖", "x": i / 7} for i in range(5)]
    notes = []
    for line in lines:
        checkpoints.append(log, line)
        notes.append(checkpoints.settle(log))
    assert checkpoints.read_log(log) == lines
    with log.open("ab") as file:
        file.write(b'{"step": 5, "un')  # a kill in the middle of a line
    assert checkpoints.read_log(log) == lines
    assert json.loads(json.dumps(notes)) == notes
    checkpoints.cut(log, notes[2])
    assert log.read_text() == "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[:3])
    checkpoints.append(log, lines[3])
    assert checkpoints.read_log(log) == lines[:4]
    with pytest.raises(ValueError, match=r"holds \d+ bytes, but \d+ bytes were there"):
        checkpoints.cut(log, notes[4])
    assert checkpoints.read_log(log) == lines[:4]
    log.unlink()
    with pytest.raises(ValueError, match="is absent, but 0 bytes were there"):
        checkpoints.cut(log, {"bytes": 0})
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.append(log, {"x": float("nan")})


@pytest.mark.parametrize("place", [2, 40, -2], ids=["first line", "middle", "last line noted"])
def test_the_log_of_another_run_is_refused_and_left_alone(tmp_path, place):
    """One digit differs, so sizes and line ends are those of the log that the checkpoint noted."""
    log = tmp_path / "log.jsonl"
    for i in range(5):
        checkpoints.append(log, {"step": i, "x": i / 7})
    note = checkpoints.settle(log)
    checkpoints.append(log, {"step": 5})
    whole = bytearray(log.read_bytes())
    checkpoints.cut(log, note)
    log.write_bytes(whole)
    whole[place if place > 0 else note["bytes"] + place] ^= 1
    log.write_bytes(whole)
    with pytest.raises(ValueError, match=r"begins with \d+ bytes that differ.*belongs to the checkpoint"):
        checkpoints.cut(log, note)
    assert log.read_bytes() == whole


def test_below_keeps_to_whole_names():
    one = torch.ones(1)
    assert checkpoints.below("ref", {"ref.a.b": one, "reference.c": one, "ref": one}) == {"a.b": one}
