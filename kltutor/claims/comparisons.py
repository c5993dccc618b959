"""What the claims of chapter 5 are checked in: every pair of two worlds, and a loss over all of them."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact, tasks
from kltutor.claims.lab import refused
from kltutor.claims.witnesses import logp
from kltutor.pairs import Pairs
from kltutor.tasks import TabularPolicy, Task

# Loss of each pair from log-probabilities of (chosen, rejected, ref of chosen, ref of rejected).
PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

PHRASES = dataclasses.replace(tasks.small(), horizon=3)  # two prompts, 40 completions each
LENGTHS = PHRASES.mask.sum(-1).double()
ARMS = tasks.bandit((0.0, 0.5, 1.0, 2.0))
ARMS_REF = logp(0.5, 0.3, 0.15, 0.05)[None]


def writer(seed: int, task: Task = PHRASES) -> Float[Tensor, "prompt completion"]:
    """Return the log-probabilities of every completion under a policy drawn from the seed."""
    policy = TabularPolicy.random(task, torch.Generator().manual_seed(seed))
    return exact.seq_logp(policy, task).detach()


REF = writer(4)


def over(
    loss: PairLoss,
    pairs: Pairs,
    weights: Float[Tensor, " pair"],
    ref_logp: Float[Tensor, "prompt completion"],
) -> Callable[[Tensor], Tensor]:
    """Return the weighted sum of a loss over pairs, as a function of log-probabilities of completions."""
    prompt, chosen, rejected = pairs
    ref_chosen, ref_rejected = ref_logp[prompt, chosen], ref_logp[prompt, rejected]

    def total(seq_logp: Tensor) -> Tensor:
        return weights @ loss(seq_logp[prompt, chosen], seq_logp[prompt, rejected], ref_chosen, ref_rejected)

    return total


def over_means(
    loss: Callable[[Tensor, Tensor], Tensor], pairs: Pairs, weights: Float[Tensor, " pair"]
) -> Callable[[Tensor], Tensor]:
    """Return the same for a loss of (chosen, rejected), each a mean over the tokens of a phrase."""
    prompt, chosen, rejected = pairs

    def total(seq_logp: Tensor) -> Tensor:
        means = seq_logp / LENGTHS
        return weights @ loss(means[prompt, chosen], means[prompt, rejected])

    return total


def apart(seq_logp: Tensor, other: Tensor, task: Task = PHRASES) -> Float[Tensor, ""]:
    """Return KL(first ‖ second) of whole completions, the prompts weighted, in nats per sequence."""
    return exact.mean_kl(seq_logp, other, task)


def certain(reward: Tensor, other: Tensor) -> Tensor:
    """Return the preference of a judge who never errs; equal rewards win half of the time."""
    return torch.heaviside(reward - other, torch.tensor(0.5, dtype=reward.dtype))


def no_minimum(loss: Callable[[Tensor], Tensor], start: Float[Tensor, "prompt completion"]) -> None:
    """Raise AssertionError unless the search over all policies ends without a minimum, falling for ever."""
    refused(lambda: exact.minimise(loss, start), "the loss has no")  # "no minimum", or "not settled"
