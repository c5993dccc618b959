"""What `exact_every` costs: a run that is measured exactly at every step against one that never is."""

from dataclasses import dataclass, replace
from functools import partial

from benchmarks.clock import Comparison, take_turns
from kltutor.run import Run
from kltutor.train import make_world, train

NEVER = 10**9


@dataclass(frozen=True)
class Setting:
    """Which runs, and how often each is timed."""

    tasks: tuple[str, ...] = ("small", "phrases")
    batch: int = 64
    layers: int = 2
    heads: int = 4
    width: int = 64
    steps: int = 10  # timed in a row
    repeats: int = 5


FULL = Setting()
QUICK = Setting(tasks=("small",), batch=8, layers=1, heads=1, width=8, steps=1, repeats=2)


def compare(setting: Setting) -> Comparison:
    """Time both runs of every task in turns."""
    table = Comparison(
        f"train: GRPO, {setting.batch} completions, {setting.layers} layers, width {setting.width}, float32",
        ("task", "completions listed", "ms a step, exact_every off", "ms a step, exact_every=1", "ratio"),
    )
    for task in setting.tasks:
        run = Run(
            task=task,
            algorithm="grpo",
            policy="gpt",
            dtype="float32",
            batch=setting.batch,
            group=min(8, setting.batch),
            layers=setting.layers,
            heads=setting.heads,
            width=setting.width,
            ref_steps=0,
            steps=NEVER,
            decay="constant",
            exact_every=NEVER,
        )
        world = make_world(run)
        off, on = train(run, world=world), train(replace(run, exact_every=1), world=world)
        took = take_turns(
            {"off": partial(next, off), "on": partial(next, on)},
            setting.repeats,
            each=setting.steps,
            warmup=2,
        )
        ratio = took["on"].median / took["off"].median
        listed = len(world.task.prompts) * world.task.size
        table.rows.append((task, str(listed), str(took["off"]), str(took["on"]), f"{ratio:.3g}"))
        table.numbers |= {f"{task}_{name}_seconds": found.median for name, found in took.items()}
    return table
