"""The command `kltutor sweep`: a grid of runs at a terminal, from its options to its tables and figure."""

import inspect
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from kltutor.flags import ALGORITHM, fail, options, parse_controller, plain_errors
from kltutor.grid import Grid, read_axis, read_toml, say, shown
from kltutor.options import Algorithm
from kltutor.session import number, progress
from kltutor.units import SIZE

if TYPE_CHECKING:
    from rich.table import Table

    from kltutor.engines import Outcome
    from kltutor.sweep import Sweep
    from kltutor.tables import Row
    from kltutor.units import Unit

LONGEST = 40  # rows of the printed table
# Of the printed table: column, title, unit. Means over seeds.
COLUMNS = [
    ("kl_to_optimum", "KL(π ‖ π*)", "nats"),
    ("kl", "KL(π ‖ ref)", "nats"),
    ("gold", "gold reward", "reward units"),
    ("objective", "J", "reward units"),
]


def sweep(
    algo: Algorithm | None,
    grid: list[str] | None,
    file: Path | None,
    out: Path,
    engine: str,
    address: str | None,
    unit_size: int,
    format: str,
    **given: Any,
) -> None:
    """Train every run of a grid, and write a table of where each ended.

    What varies is given by --grid, what all runs share by the options of `kltutor train`; or both by a TOML
    file. The same command goes on where it was stopped: runs are made in units, and a unit that is finished
    is not made again. Every engine finds the same numbers. For example:

      kltutor sweep grpo --grid beta=0.1,0.3,1 --grid seed=0:5 --out DIR

      kltutor sweep --grid algorithm=rloo,grpo --grid rate=0.02,0.05 --steps 100 --out DIR

      kltutor sweep --file grid.toml --out DIR --engine ray --address local

    with grid.toml such as

      base.algorithm = "grpo"

      grid.beta = [0.1, 0.3, 1.0]

      grid.seed = [0, 1, 2, 3, 4]

    DIR then has table.csv with a row a run, records.csv with a row an exact measurement, sweep.svg and
    sweep.png. Exit status 0: every run has ended, if only because a value was not finite; 1: a unit could not
    be worked off; 2: options contradict each other or the folder; 130: stopped by Ctrl-C.
    """
    import torch

    torch.set_num_threads(1)  # as in every unit, so that the figure has the same digits too
    stated = {name: value for name, value in given.items() if value is not None}
    if algo is not None:
        stated[ALGORITHM] = algo
    try:
        with plain_errors():
            wanted = _read(grid or [], file, stated)
            if address is not None and engine != "ray":
                raise ValueError(f"address is {address!r}, which only --engine ray uses. Leave it out.")
            from kltutor import tables
            from kltutor.sweep import Sweep

            tables.check_format(format)
            made = Sweep(out, wanted, unit_size)
            with made.alone():
                errors = _work_off(made, engine, address or "auto")
                _report(made, errors, format)
    except ModuleNotFoundError as error:
        if error.name:  # not one that says what to install
            raise
        fail(f"--{error}")
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on after the last unit that is finished.", err=True)
        raise typer.Exit(130) from None
    if errors:
        raise typer.Exit(1)


def _signature() -> inspect.Signature:
    """Return ALGO, the options of a sweep, and those of its runs."""
    grid = typer.Option(
        "--grid",
        metavar="NAME=VALUES",
        help="An option of the runs and what it takes, as in beta=0.1,0.3,1 or seed=0:5, which is 0 to 4; "
        "repeatable. The last one changes fastest.",
    )
    file = typer.Option("--file", metavar="FILE", help="Read the grid from a TOML file instead.")
    out = typer.Option("--out", metavar="DIR", help="Where the results are kept, and where it goes on.")
    engine = typer.Option("--engine", help="In this process, or on a Ray cluster.")
    address = typer.Option(
        "--address",
        help="Of the Ray cluster; auto finds the one of this machine, local starts one for this sweep. "
        "Default: auto.",
    )
    size = typer.Option("--unit-size", metavar="N", help="Runs that train together, at most.")
    kind = typer.Option("--format", help="Of the tables.")
    own: list[tuple[str, Any, Any]] = [
        ("grid", Annotated[list[str] | None, grid], None),
        ("file", Annotated[Path | None, file], None),
        ("out", Annotated[Path, out], inspect.Parameter.empty),
        ("engine", Annotated[Literal["local", "ray"], engine], "local"),
        ("address", Annotated[str | None, address], None),
        ("unit_size", Annotated[int, size], SIZE),
        ("format", Annotated[Literal["csv", "parquet"], kind], "csv"),
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    algo, *rest = options()
    mine = [inspect.Parameter(name, keyword, default=usual, annotation=hint) for name, hint, usual in own]
    return inspect.Signature([algo, *mine, *(each for each in rest if each.name != "checkpoint_every")])


cast(Any, sweep).__signature__ = _signature()


def _read(texts: list[str], file: Path | None, stated: dict[str, Any]) -> Grid:
    """Return the grid of the command line, or that of the file."""
    if file is not None:
        if texts or stated:
            raise ValueError("--file says all there is about the runs. Leave out ALGO, --grid and options.")
        grid = read_toml(file)
    else:
        axes: dict[str, list[Any]] = {}
        for name, values in map(read_axis, texts):
            if name in axes:
                raise ValueError(f"--grid has {name} twice. Give all its values in one.")
            axes[name] = values
        if "controller" in stated:
            stated["controller"] = parse_controller(stated["controller"])
        grid = Grid(stated, axes)
    if ALGORITHM not in {*grid.base, *grid.axes}:
        raise ValueError("the algorithm is missing: give ALGO, or an axis or a line of the file.")
    return grid


def _work_off(sweep: "Sweep", engine: str, address: str) -> dict[str, str]:
    """Work off the units that are left, showing how far they are; return why some could not be."""
    left = sweep.left()
    done, errors = len(sweep.units) - len(left), {}
    if done:
        typer.echo(f"{done} of {len(sweep.units)} units are finished already.", err=True)
    if not left:
        return {}
    with progress() as bar:
        total = sum(unit.runs[0].steps + 1 for unit in left) if engine == "local" else len(left)
        task = bar.add_task("steps" if engine == "local" else "units", total=total, exact="")
        for unit, outcome in _engine(left, engine, address, lambda step: bar.advance(task)):
            names = ", ".join(str(place) for place in unit.places)
            if isinstance(outcome, str):
                errors[unit.name] = outcome
                typer.echo(f"Error: runs {names}: {outcome}.", err=True)
            else:
                sweep.keep(unit, outcome)
                for message in outcome["warnings"]:
                    typer.echo(f"Warning: runs {names}: {message}", err=True)
            if engine != "local":
                bar.advance(task)
            done += 1
            bar.update(task, exact=f"{done} of {len(sweep.units)} units")
    return errors


def _engine(
    units: "Sequence[Unit]", engine: str, address: str, told: Any
) -> "Iterator[tuple[Unit, Outcome]]":
    from kltutor import engines

    return engines.in_process(units, told) if engine == "local" else engines.on_ray(units, address)


def _report(sweep: "Sweep", errors: dict[str, str], format: str) -> None:
    """Write both tables and the figure, and print the means over seeds."""
    from rich.console import Console

    from kltutor import plots, sweep_plots, tables

    rows, out = tables.final(sweep, errors), sweep.folder
    tables.write(rows, out / f"table.{format}")
    tables.write(tables.measurements(sweep), out / f"records.{format}")
    kept = [f"table.{format}", f"records.{format}"]
    if any(row["status"] == "finished" for row in rows):
        figure = sweep_plots.draw(sweep.grid, rows)
        for name in ("sweep.svg", "sweep.png"):
            plots.save(figure, out / name)
            kept.append(name)
    Console().print(_table(sweep.grid, rows))
    for row in rows:
        if row["status"] == "stopped":
            label = sweep.grid.label(sweep.grid.runs[row["run"]])
            typer.echo(f"Run {row['run']} ({label}) was stopped at {row['reason']}", err=True)
    finished = sum(row["status"] == "finished" for row in rows)
    typer.echo(f"{finished} of {len(rows)} runs finished. {', '.join(kept)} are in {out}.")


def _table(grid: Grid, rows: "list[Row]") -> "Table":
    """Return the means over seeds of what finished runs ended with."""
    from rich.table import Table
    from rich.text import Text

    groups: dict[str, list[Row]] = {}
    for row in rows:
        run = grid.runs[row["run"]]
        point = {name: getattr(run, name) for name in grid.compared}
        groups.setdefault(say(point), []).append(row)
    table = Table(title="Exact values at the end, means over the runs that finished")
    for name in grid.compared or ["all"]:
        table.add_column(Text(name))
    table.add_column("finished", justify="right")
    for _, title, unit in COLUMNS:
        table.add_column(Text(f"{title}\n{unit}"), justify="right")
    for own in list(groups.values())[:LONGEST]:
        run = grid.runs[own[0]["run"]]
        ended = [row for row in own if row["status"] == "finished"]
        cells = [shown(getattr(run, name)) for name in grid.compared] or [""]
        cells.append(f"{len(ended)} of {len(own)}")
        for column, _, _ in COLUMNS:
            values = [row[column] for row in ended if row[column] is not None]
            cells.append(number(statistics.fmean(values)) if values else "")
        table.add_row(*map(Text, cells))
    if len(groups) > LONGEST:
        table.caption = f"and {len(groups) - LONGEST} more in the table"
    return table
