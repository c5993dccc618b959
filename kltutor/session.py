"""The command `kltutor train`: a run at a terminal, from its first step to its last table."""

import shlex
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, cast, get_args

import typer

from kltutor.checks import check_device
from kltutor.controllers import UnreachableTargetWarning
from kltutor.flags import ALGORITHM, flags, parse_controller, plain_errors, signature
from kltutor.options import Algorithm
from kltutor.run import Run

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from kltutor.train import Training

ROUNDING = 1e-12


def train(algo: Algorithm | None, out: Path | None, resume: bool, **given: Any) -> None:
    """Train a policy and print exact quantities beside the sampled ones.

    What is left out takes the default of the algorithm. Exit status 0: done; 1: a value was not finite;
    2: options contradict each other or the folder; 130: stopped by Ctrl-C.
    """
    import torch

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    stated = {name: value for name, value in given.items() if value is not None}
    try:
        with plain_errors():
            if "controller" in stated:
                stated["controller"] = parse_controller(stated["controller"])
            if algo is not None:
                stated[ALGORITHM] = algo
            training = _continue(out, stated) if resume else _begin(out, stated)
            records = _watch(training)
            finished = training.step > training.run.steps
            if finished:
                _report(training, records)
    except KeyboardInterrupt:
        typer.echo(f"Stopped. {_way_on(out)}", err=True)
        raise typer.Exit(130) from None
    if not finished:
        at = f"Stopped at step {training.step} of {training.run.steps}."
        typer.echo(f"{at} {_way_on(out)}", err=True)
        raise typer.Exit(130)


cast(Any, train).__signature__ = signature()


def _begin(out: Path | None, stated: dict[str, Any]) -> "Training":
    from kltutor import train as loop

    if ALGORITHM not in stated:
        raise ValueError(f"ALGO is missing: one of {', '.join(get_args(Algorithm))}.")
    run = Run(**stated)
    check_device(run.device)
    if out is None:
        typer.echo("No --out DIR: neither log nor checkpoint nor figure is kept.", err=True)
    elif (out / loop.CHECKPOINT).exists():
        raise ValueError(f"--out {out} holds a run. Add --resume to continue it, or choose another folder.")
    return loop.train(run, folder=out)


def _continue(out: Path | None, stated: dict[str, Any]) -> "Training":
    from kltutor import train as loop

    if out is None:
        raise ValueError("--resume continues the run in a folder. Add --out DIR.")
    if not (out / loop.CHECKPOINT).exists():
        raise ValueError(f"--out {out} holds no checkpoint. Leave out --resume to start a run there.")
    run = loop.saved(out)[0]
    for name, value in stated.items():
        if value != getattr(run, name):
            option = "ALGO" if name == ALGORITHM else flags(name)[0]
            raise ValueError(
                f"{option} is {value!r}, but the run in {out} has {getattr(run, name)!r}. Leave it out to "
                "continue that run, or start one in another --out."
            )
    return loop.resume(out)


def _watch(training: "Training") -> list[dict[str, Any]]:
    """Make the steps that are left, showing how far they are, and return all records. Ctrl-C ends early."""
    from kltutor.checkpoints import read_log
    from kltutor.train import LOG

    run, folder = training.run, training.folder
    records = [] if folder is None else read_log(folder / LOG)
    with _asked_to_stop() as asked, progress() as bar:
        task = bar.add_task(f"{run.algorithm} {run.task}", total=run.steps, exact="")
        for record in training:
            if record.exact is not None:
                apart = record.exact.kl_to_optimum
                far = "" if apart is None else f"  KL(π‖π*) {number(apart)}"
                shown = f"KL(π‖ref) {number(record.exact.kl)}{far}, exact at step {record.step}"
                bar.update(task, exact=shown)
            bar.update(task, completed=record.step)
            records.append(record.to_dict())
            if asked.is_set() and training.step <= run.steps:
                if folder is not None:
                    training.save()
                break
    return records


@contextmanager
def _asked_to_stop() -> Iterator[Event]:
    """Let the first Ctrl-C wait for the end of the step; the second stops at once."""
    asked = Event()

    def hear(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, hear)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UnreachableTargetWarning)
            warnings.showwarning = lambda message, *rest: typer.echo(f"Warning: {message}", err=True)
            yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def progress() -> "Progress":
    """Return a bar on stderr that also says what its task's field `exact` holds; none without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[exact]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


def _report(training: "Training", records: list[dict[str, Any]]) -> None:
    """Print the last table, and draw the figure if there is a folder for it."""
    from rich.console import Console

    from kltutor import plots

    run, folder = training.run, training.folder
    Console().print(_table(run, records))
    typer.echo(f"{run.steps} steps, {records[-1]['episodes']} completions, {records[-1]['seconds']:.1f} s.")
    if folder is not None:
        figure = plots.draw(plots.read(folder))
        for suffix in (".svg", ".png"):
            plots.save(figure, folder / f"run{suffix}")
        typer.echo(f"Log, checkpoint, run.svg and run.png are in {folder}.")


def _table(run: Run, records: list[dict[str, Any]]) -> "Table":
    """Return exact quantities of the last record beside what the last batch said."""
    from rich.table import Table
    from rich.text import Text

    from kltutor.records import QUANTITIES

    last = next(record for record in reversed(records) if record["exact"])
    batch = next((record for record in reversed(records) if record["sampled"]), None)
    exact, sampled = dict(last["exact"]), {} if batch is None else dict(batch["sampled"])
    exact["kl_token"] = exact["kl"] / exact["length"]
    if "reward" in sampled:
        sampled[run.reward] = sampled.pop("reward")
    table = Table(title=f"{run.algorithm} on the {run.task} task, beta {last['beta']:g}")
    table.add_column("quantity")
    table.add_column(f"exact\nafter step {last['step']}", justify="right")
    if batch is not None:
        of = "pairs" if "margin" in sampled else "rollouts"
        table.add_column(f"sampled\n{of} of step {batch['step']}", justify="right")
    table.add_column("unit")
    for name in dict.fromkeys([*QUANTITIES, *sampled]):
        values = [found.get(name) for found in ((exact,) if batch is None else (exact, sampled))]
        if any(value is not None for value in values):
            title, unit = QUANTITIES.get(name, (name, ""))
            table.add_row(Text(title), *("" if value is None else number(value) for value in values), unit)
    return table


def number(value: float) -> str:
    """Return four digits; a size below 1e-12 is the rounding of sums."""
    return "0" if abs(value) < ROUNDING else f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.1e}"


def _way_on(out: Path | None) -> str:
    """Return how a run that was stopped goes on."""
    from kltutor.train import CHECKPOINT

    if out is None:
        return "Nothing is kept, since there was no --out DIR."
    if not (out / CHECKPOINT).exists():
        return f"There is no checkpoint in {out} yet: start the run again."
    return f"Continue with: kltutor train --out {shlex.quote(str(out))} --resume"
