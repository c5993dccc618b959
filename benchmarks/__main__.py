"""python -m benchmarks [--quick] [--cpu] [--threads N] [--json FILE] [NAME ...]."""

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import enumeration, grpo, recording, stacking
from benchmarks.clock import Clock, Comparison

COMPARISONS = {module.__name__.split(".")[1]: module for module in (grpo, recording, stacking, enumeration)}


def show(console: Console, found: Comparison) -> None:
    """Print one table."""
    table = Table(
        title=found.title, title_justify="left", caption="\n".join(found.notes), caption_justify="left"
    )
    for i, column in enumerate(found.columns):
        table.add_column(column, justify="right" if i else "left")
    for row in found.rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Run the comparisons named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed, side by side.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(COMPARISONS)}; all by default"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--threads", type=int, default=1, help="of every side (default 1)")
    parser.add_argument(
        "--cpu", action="store_true", help="count the processor time of this process, where others work too"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()
    unknown = set(given.names) - set(COMPARISONS)
    if unknown:
        parser.error(
            f"no comparison is called {', '.join(sorted(unknown))}; there are {', '.join(COMPARISONS)}"
        )
    torch.set_num_threads(given.threads)
    if given.cpu:
        Clock.now = time.process_time
    console = Console()
    numbers: dict[str, dict[str, float]] = {}
    for name in given.names or COMPARISONS:
        found = COMPARISONS[name].compare(COMPARISONS[name].QUICK if given.quick else COMPARISONS[name].FULL)
        show(console, found)
        numbers[name] = found.numbers
    if given.json:
        how = {"threads": given.threads, "clock": "processor" if given.cpu else "wall", "quick": given.quick}
        given.json.write_text(json.dumps(how | numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
