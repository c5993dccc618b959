"""The command `kltutor`: train policies, sweep, plot, audit a KL, read a log, check the book's claims."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kltutor import diagnosis_session, quiz_session, session, sweep_session
from kltutor.audit.command import check
from kltutor.flags import OneLine, plain_errors
from kltutor.katas.command import kata

if TYPE_CHECKING:
    from rich.table import Table

    from kltutor.claims import Result

WIDTH = 160  # characters of a statement that the table shows

app = typer.Typer(
    help="KL regularisation in RLHF: train policies, sweep, plot, audit a KL, read a log, verify the book.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the entry point of the package."""
    app()


def _version(wanted: bool) -> bool:
    if wanted:
        from kltutor import __version__

        typer.echo(f"kltutor {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """KL regularisation in RLHF: train policies, sweep, plot, audit a KL, read a log, verify the book."""


@app.command()
def verify(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="A claim id such as KL-101; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list and nothing else.")] = False,
) -> None:
    """Check every claim of the book, or those named, and print the evidence.

    Exit status 0: all hold; 1: a check failed; 2: an id is unknown.
    """
    import torch

    from kltutor import claims

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    try:
        results = claims.verify(only or None)
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    failed = sum(not result.passed for result in results)
    if as_json:
        typer.echo(json.dumps([_record(result) for result in results], ensure_ascii=False, indent=1))
    else:
        from rich.console import Console

        seconds = sum(result.seconds for result in results)
        Console().print(_table(results))
        typer.echo(f"{len(results) - failed} of {len(results)} claims hold; {seconds:.1f} s.")
    raise typer.Exit(1 if failed else 0)


app.command(cls=OneLine)(session.train)
app.command(cls=OneLine)(sweep_session.sweep)
app.command(cls=OneLine)(check)
app.command(cls=OneLine)(diagnosis_session.diagnose)
app.add_typer(kata, name="kata")
app.command(cls=OneLine)(quiz_session.quiz)
app.command(cls=OneLine)(quiz_session.anki)


@app.command(cls=OneLine)
def plot(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A name in .svg, .png or .pdf.")] = Path(
        "runs.svg"
    ),
    quantity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="kl_to_optimum, kl, gold, proxy, objective, length or entropy; repeatable. The first four "
            "if left out.",
        ),
    ] = None,
    against: Annotated[
        str, typer.Option(metavar="AXIS", help="step, episodes, seconds, or kl: the exact KL(π ‖ ref).")
    ] = "step",
) -> None:
    """Draw runs of `kltutor train --out DIR` over each other, exact quantities only."""
    with plain_errors():
        from kltutor import plots

        plots.check_name(out)
        plots.save(plots.overlay([plots.read(folder) for folder in folders], quantity, against), out)
    typer.echo(f"The figure is in {out}.")


def _record(result: "Result") -> dict[str, object]:
    claim = result.claim
    return {
        "id": claim.id,
        "section": claim.section,
        "says": claim.says,
        "verdict": claim.verdict,
        "condition": claim.condition,
        "folklore": claim.folklore,
        "kind": claim.kind,
        "badge": claim.badge,
        "sources": list(claim.sources),
        "passed": result.passed,
        "evidence": result.evidence,
        "seconds": round(result.seconds, 3),
    }


def _table(results: "list[Result]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Claims", show_lines=True)
    table.add_column("id\nsection", no_wrap=True)
    table.add_column("statement\nevidence", ratio=1)
    table.add_column("verdict\nkind")
    table.add_column("result\ntime", no_wrap=True)
    for result in results:
        claim = result.claim
        says = claim.plain if len(claim.plain) <= WIDTH else claim.plain[: WIDTH - 1].rstrip() + "…"
        table.add_row(
            f"{claim.id}\n{claim.section}",
            Text.assemble(says, "\n", (result.evidence, "dim")),  # not a string: square brackets are markup
            f"{claim.verdict}\n{claim.kind}",
            Text.assemble(
                ("holds", "green") if result.passed else ("FAILS", "bold red"), f"\n{result.seconds:.2f} s"
            ),
        )
    return table
