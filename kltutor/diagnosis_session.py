"""The command `kltutor diagnose`: what a training log shows to be wrong."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kltutor.flags import plain_errors

FAULT, HEALTHY = 1, 0


def diagnose(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A log in CSV or JSON, or a folder of `train`.")],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose names the log has: kltutor, trl-grpo, trl-rloo, trl-ppo, verl or openrlhf. "
            "Recognised if left out.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=THEIRS",
            help="What the log calls one of our columns, as in kl=train/kl, or a number where it has none, "
            "as in beta=0.05; repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object and nothing else.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the log too; .svg, .png or .pdf.")
    ] = None,
) -> None:
    """Say what a training log shows to be wrong with its KL, with the evidence and what to try.

    Exit status 0: nothing; 1: something; 2: the log or an option cannot be read.
    """
    with plain_errors():
        from kltutor import diagnostics

        if plot is not None:
            from kltutor import plots

            plots.check_name(plot)
        read = diagnostics.read_log(log, _columns(column or []), preset)
        report = diagnostics.diagnose(read)
        if plot is not None:
            plots.save(diagnostics.plot(read, report), plot)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=1))
    else:
        from rich.console import Console

        Console().print(report)
        if plot is not None:
            typer.echo(f"The figure is in {plot}.")
    raise typer.Exit(FAULT if report.findings else HEALTHY)


def _columns(pairs: list[str]) -> dict[str, str | float]:
    """Return names of columns by ours, and numbers where the log has none."""
    found: dict[str, str | float] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise ValueError(f"column is {pair!r}; ours=theirs is expected, as in kl=train/kl.")
        try:
            found[ours] = float(theirs)
        except ValueError:
            found[ours] = theirs
    return found
