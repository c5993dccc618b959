"""Where bugs are measured: 40 completions a prompt, and a policy that gives each the same probability.

Under that policy the batch that holds every completion once is the population: its plain mean is the exact
expectation, and code that takes a batch can be tested without sampling.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact, tasks
from kltutor.bugs.curves import Plot, Scale
from kltutor.tasks import Policy, TabularPolicy, Task

TASK = replace(tasks.small(), horizon=3, prompt_probs=(0.5, 0.5))


def even(task: Task) -> TabularPolicy:
    """Return the policy under which all completions to a prompt are equally likely.

    A token is as likely as its share of the completions that lie beyond it.
    """
    beyond = [1]  # completions beyond a prefix of horizon, horizon - 1, ... tokens
    for _ in range(task.horizon):
        beyond.append(1 + (len(task.words) - 1) * beyond[-1])
    counts = [
        [1] + [beyond[task.horizon - 1 - len(prefix)]] * (len(task.words) - 1)
        for prefix in task.open_prefixes
    ]
    logits = torch.tensor(counts, dtype=torch.float64).log()
    return TabularPolicy(task, logits.expand(len(task.prompts), -1, -1))


POLICY = even(TASK)
REF = TabularPolicy.random(TASK, torch.Generator().manual_seed(0))
MASK = TASK.mask.repeat(len(TASK.prompts), 1)  # of the batch that is the population
SCORES = TASK.reward.flatten()


def rows(policy: Policy) -> Float[Tensor, "row time"]:
    """Return the log-probability of each token of every completion to every prompt, as numbers."""
    return exact.token_logps(policy, TASK).detach().flatten(0, 1)


def seq_logp(policy: Policy) -> Float[Tensor, "prompt completion"]:
    """Return the log-probability of every completion to every prompt, as numbers."""
    return exact.seq_logp(policy, TASK).detach()


def kl_to_ref(logp: Float[Tensor, "prompt completion"]) -> float:
    """Return KL(policy ‖ ref) in nats per sequence, from the log-probabilities of the completions."""
    return exact.mean_kl(logp, seq_logp(REF), TASK).item()


MOVES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the reference, in units of its distance from the policy


@cache
def ref_at(move: float) -> TabularPolicy:
    """Return a reference whose logits are that share of the way from POLICY to REF, and further above 1."""
    return TabularPolicy(TASK, torch.lerp(POLICY.logits.detach(), REF.logits.detach(), move))


def distances() -> list[float]:
    """Return KL(POLICY ‖ reference) in nats per sequence as the reference moves away."""
    return [exact.kl(POLICY, ref_at(move), TASK).item() for move in MOVES]


def reports(measure: Callable[[Callable[..., Any], TabularPolicy], float], y_scale: Scale = "linear") -> Plot:
    """Return the plot of what code reports, by a measure of code and reference, against the true KL."""
    return Plot(
        x="KL(policy ‖ ref) [nats per sequence]",
        y="reported KL [nats per sequence]",
        points=distances,
        at=lambda code: [measure(code, ref_at(move)) for move in MOVES],
        y_scale=y_scale,
    )


def descend(
    loss: Callable[[Float[Tensor, " row"]], Float[Tensor, " row"]],
    *,
    steps: int,
    size: float,
    start: Float[Tensor, "prompt completion"],
) -> list[Float[Tensor, "prompt completion"]]:
    """Return the policy at the start and after each step of a natural gradient descent on E[loss].

    The samples are held fixed, and the policy is free: one logit for each completion. Its natural gradient
    then is the slope of each completion's loss in its own log-probability, up to a constant.

    Args:
        loss: from the log-probabilities of all completions, prompts slowest, to the loss of each.
        steps: how many.
        size: how far, in logits for a unit of slope.
        start: where to begin, log-probabilities of all completions.
    """
    logp, path = start, [start]
    for _ in range(steps):
        leaf = logp.flatten().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        logp = (logp.detach() - size * slope.view_as(logp)).log_softmax(-1)
        path.append(logp)
    return path
