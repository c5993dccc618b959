"""Training runs in one stacked program against the same runs one after another."""

from dataclasses import dataclass
from functools import partial

from benchmarks.clock import Comparison, take_turns
from benchmarks.recording import NEVER
from kltutor.run import Run
from kltutor.stacked import Stack
from kltutor.train import make_world, train


@dataclass(frozen=True)
class Setting:
    """Which runs, and how often a step of all of them is timed."""

    runs: int = 32
    widths: tuple[int, ...] = (16, 32, 64)
    task: str = "phrases"  # five tokens
    batch: int = 32
    steps: int = 3  # timed in a row
    repeats: int = 5


FULL = Setting()
QUICK = Setting(runs=3, widths=(8,), task="small", batch=8, steps=1, repeats=2)


def compare(setting: Setting) -> Comparison:
    """Time a step of all runs, stacked and one by one in turns, at every width."""
    table = Comparison(
        f"{setting.runs} GRPO runs of {setting.batch} completions a step, {setting.task}, 1 layer, float64, "
        "exact_every off",
        ("width", "one by one, ms a step of all", "stacked, ms a step of all", "ratio"),
    )
    for width in setting.widths:
        runs = [
            Run(
                task=setting.task,
                algorithm="grpo",
                policy="gpt",
                batch=setting.batch,
                group=8,
                layers=1,
                heads=2,
                width=width,
                ref_steps=0,
                steps=NEVER,
                decay="constant",
                exact_every=NEVER,
                beta=0.05 * (1 + seed % 4),
                seed=seed,
            )
            for seed in range(setting.runs)
        ]
        world = make_world(runs[0])
        stack, single = Stack(runs, world=world), [train(run, world=world) for run in runs]
        took = take_turns(
            {
                "single": lambda single=single: [next(run) for run in single],
                "stacked": partial(next, stack),
            },
            setting.repeats,
            each=setting.steps,
            warmup=2,
        )
        ratio = took["single"].median / took["stacked"].median
        table.rows.append((str(width), str(took["single"]), str(took["stacked"]), f"{ratio:.3g}"))
        table.numbers[f"width_{width}_ratio"] = ratio
    return table
