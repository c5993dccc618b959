"""Log-probabilities of all completions in one batched forward against a forward for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.clock import Comparison, take_turns
from kltutor import Task, TinyGPT, exact, tasks

TASKS = {"small": tasks.small, "phrases": tasks.phrases}


@dataclass(frozen=True)
class Setting:
    """Which tasks, and how often each way is timed."""

    tasks: tuple[str, ...] = ("small", "phrases")
    width: int = 32
    repeats: int = 3


FULL = Setting()
QUICK = Setting(tasks=("small",), width=8, repeats=1)


def by_completion(policy: TinyGPT, task: Task) -> Tensor:
    """Return log π of every completion, from one forward for each."""
    found = []
    for prompt in task.prompt_tokens:
        for sequence in task.sequences:
            row = torch.cat([prompt, torch.tensor(sequence)])
            logps = policy(row[None, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
            found.append(logps.gather(-1, row[len(prompt) :, None]).sum())
    return torch.stack(found).view(len(task.prompts), task.size)


def by_prefix(policy: TinyGPT, task: Task) -> Tensor:
    """Return log π of every completion, from one forward for each prefix that some of them share."""
    rows = []
    for prompt in task.prompt_tokens:
        nexts = {
            prefix: policy(torch.cat([prompt, torch.tensor(prefix, dtype=torch.long)])[None])[
                0, -1
            ].log_softmax(-1)
            for prefix in task.open_prefixes
        }
        rows.append([sum(nexts[s[:t]][s[t]] for t in range(len(s))) for s in task.sequences])
    return torch.tensor(rows, dtype=torch.float64)


def compare(setting: Setting) -> Comparison:
    """Check that all ways agree, then time them in turns."""
    table = Comparison(
        f"log π of every completion: 1 layer, width {setting.width}, float64",
        ("task", "way", "forwards", "ms", "seq_logp is"),
    )
    for name in setting.tasks:
        task = TASKS[name]()
        draw = torch.Generator().manual_seed(0)
        policy = TinyGPT.for_task(
            task, generator=draw, dtype=torch.float64, device="cpu", width=setting.width
        )
        ways: dict[str, tuple[int, Callable[[TinyGPT, Task], Tensor]]] = {
            "exact.seq_logp": (1, exact.seq_logp),
            "a forward a prefix": (len(task.prompts) * len(task.open_prefixes), by_prefix),
            "a forward a completion": (len(task.prompts) * task.size, by_completion),
        }
        with torch.no_grad():
            values = [way(policy, task) for _, way in ways.values()]
            for other in values[1:]:
                torch.testing.assert_close(other, values[0], rtol=1e-10, atol=1e-10)
            took = take_turns(
                {way: partial(call, policy, task) for way, (_, call) in ways.items()},
                setting.repeats,
                warmup=0,
            )
        best = took["exact.seq_logp"].median
        for way, (forwards, _) in ways.items():
            ratio = took[way].median / best
            said = "" if forwards == 1 else f"{ratio:.3g} times as fast"
            table.rows.append((name, way, str(forwards), str(took[way]), said))
            table.numbers[f"{name} {way} seconds"] = took[way].median
    return table
