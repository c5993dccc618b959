"""Judging files in a process of their own, which may hang, crash or print without harm to ours."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kltutor.katas.files import load
from kltutor.katas.kata import get

SECONDS = 10.0  # of computing for one file
WAITING = 10.0  # times as long on the clock, for a file that only waits, or on a busy machine
STARTING = 300.0  # seconds in which torch is surely imported
SERVER = "import sys; from kltutor.katas.judging import serve; serve(float(sys.argv[1]), sys.argv[2])"
EXPIRED = 3  # exit status of a process that ran out of time


@dataclass(frozen=True)
class Judgement:
    """What became of a file.

    Attributes:
        kata: its name.
        status: "right"; "not yet", it ran and is wrong; "unusable", there is nothing to run.
        misconception: name of the known wrong answer that it is.
        message: what to tell the one who wrote it.
    """

    kata: str
    status: Literal["right", "not yet", "unusable"]
    misconception: str | None
    message: str


def judge(files: Sequence[tuple[str, Path]], seconds: float = SECONDS) -> list[Judgement]:
    """Return what becomes of files, given as the name of a kata and a path each.

    They are run one after another in one process. One that ends the process costs only its own judgement:
    the others are run in another process.
    """
    found: list[Judgement] = []
    while len(found) < len(files):
        rest = files[len(found) :]
        work = json.dumps([(name, str(path.resolve())) for name, path in rest])
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", SERVER, str(seconds), work],
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                timeout=STARTING + WAITING * seconds * len(rest),
                check=False,
            )
            said, ended = done.stdout, f"ended Python, with exit status {done.returncode}"
            expired = done.returncode == EXPIRED
        except subprocess.TimeoutExpired as error:
            said, ended, expired = error.stdout or b"", f"was still running after {seconds:g} s", False
        new = [Judgement(**json.loads(line)) for line in said.decode().splitlines()]
        found += new
        if len(new) < len(rest) and not (new and expired):
            name, path = rest[len(new)]
            found.append(Judgement(name, "not yet", None, f"{path.name} {ended}."))
    return found


def serve(seconds: float, work: str) -> None:
    """Judge files and write a line of JSON each: what the process that `judge` starts does.

    What the files print goes to the standard error, whichever way they print it.
    """
    import torch

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    sys.dont_write_bytecode = True  # no folder beside the files
    channel = os.dup(1)
    os.dup2(2, 1)
    for name, text in json.loads(work):
        path = Path(text)
        done = threading.Event()
        arguments = (channel, name, path, seconds, threading.get_ident(), done)
        threading.Thread(target=_watch, args=arguments, daemon=True).start()
        found = examine(name, path)
        done.set()
        _tell(channel, found)


def examine(name: str, path: Path) -> Judgement:
    """Return what becomes of a file, in this process.

    Raises:
        ValueError: no kata has that name.
    """
    kata = get(name)
    try:
        grade = kata.grade(load(path, name))
    except ValueError as error:
        return Judgement(name, "unusable", None, str(error))
    return Judgement(name, "right" if grade.right else "not yet", grade.misconception, grade.message)


def _tell(channel: int, found: Judgement) -> None:
    os.write(channel, (json.dumps(asdict(found)) + "\n").encode())


def _watch(channel: int, name: str, path: Path, seconds: float, thread: int, done: threading.Event) -> None:
    """Unless a file is done in time, say at which line it is still running, and end the process."""
    computed, began = time.process_time(), time.monotonic()
    while time.process_time() - computed < seconds and time.monotonic() - began < WAITING * seconds:
        if done.wait(0.05):
            return
    frame, where = sys._current_frames().get(thread), ""
    while frame is not None and not where:
        where = f", in line {frame.f_lineno}" if frame.f_code.co_filename == str(path) else ""
        frame = frame.f_back
    message = f"{path.name} was still running after {seconds:g} s{where}."
    _tell(channel, Judgement(name, "not yet", None, message))
    os._exit(EXPIRED)
