"""The commands `kltutor kata list`, `start` and `check`: small functions to write, graded on the spot."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kltutor.flags import OneLine, fail, plain_errors

STATES = {"right": ("done", "green"), "not yet": ("not yet", "yellow"), "unusable": ("unusable", "red")}

kata = typer.Typer(
    help="Katas: small functions to write yourself. List them, start one, have it checked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The folder of your files.")]
HERE = Path()


@kata.command("list", cls=OneLine)
def overview(folder: Folder = HERE) -> None:
    """Print all katas, and which of them the files in a folder have done."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kltutor.katas import all_katas
    from kltutor.katas.judging import judge

    paths = {each.name: folder / f"{each.name}.py" for each in all_katas()}
    begun = [(name, path) for name, path in paths.items() if path.is_file()]
    status = {found.kata: found.status for found in judge(begun)}
    table = Table(title="Katas")
    for heading in ("name", "level", "section", "state"):
        table.add_column(heading, no_wrap=heading != "section")
    for each in all_katas():
        state = Text(*STATES[status[each.name]]) if each.name in status else Text("-", "dim")
        table.add_row(each.name, str(each.level), Text(each.section), state)
    Console().print(table)
    done = sum(found == "right" for found in status.values())
    typer.echo(f"{done} of {len(paths)} done. `kltutor kata start NAME` writes the file to begin with.")


@kata.command(cls=OneLine)
def start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in `kltutor kata list`.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write NAME.py.")] = HERE,
) -> None:
    """Write NAME.py: the signature, what it is to do, and no body. An existing file is never overwritten."""
    from kltutor.katas import get
    from kltutor.katas.files import write

    with plain_errors():
        path = write(get(name.removesuffix(".py")), out)
    typer.echo(f"{path} is there. Write its body, then run `kltutor kata check {path}`.")


@kata.command(cls=OneLine)
def check(
    file: Annotated[str, typer.Argument(metavar="FILE|NAME", help="NAME.py, or the name of a kata.")],
    folder: Folder = HERE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the judgement as JSON and nothing else.")
    ] = False,
) -> None:
    """Compare a file with the package's own function, and name the mistake if it is a known one.

    Exit status 0: right; 1: not yet; 2: there is no such kata or file, or no function in it to run.
    """
    from kltutor.katas.files import find
    from kltutor.katas.judging import judge

    with plain_errors():
        wanted, path = find(file, folder)
    (found,) = judge([(wanted.name, path)])
    if found.status == "unusable":
        fail(found.message)
    right = found.status == "right"
    if as_json:
        record = {"kata": found.kata, "right": right, "misconception": found.misconception}
        typer.echo(json.dumps({**record, "message": found.message}, ensure_ascii=False, indent=1))
    else:
        typer.echo(found.message)
        if not right:
            typer.echo(f"Read section {wanted.section}.")
    raise typer.Exit(0 if right else 1)
