"""Where bugs are measured: 40 completions a prompt, and a policy that gives each the same probability.

Under that policy the batch that holds every completion once is the population: its plain mean is the exact
expectation, and code that takes a batch can be tested without sampling.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact, tasks
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
