"""Compared completions, drawn from a policy and labelled by the gold reward: a sample, or all there are."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kltutor.checks import check_distributions
from kltutor.preference import bradley_terry
from kltutor.tasks import Task


class Pairs(NamedTuple):
    """Compared completions: indices into `task.prompts` and `task.sequences`."""

    prompt: Int[Tensor, " pair"]
    chosen: Int[Tensor, " pair"]
    rejected: Int[Tensor, " pair"]


def sample_pairs(
    task: Task,
    seq_logp: Float[Tensor, "prompt completion"],
    count: int,
    generator: torch.Generator,
    *,
    flip: float = 0.0,
) -> Pairs:
    """Draw pairs of completions to one prompt and label them by the gold reward with Bradley-Terry noise.

    Args:
        task: its gold reward labels, in the unit of Bradley-Terry: a gap of 1 wins 73 % of the time.
        seq_logp: log-probabilities of the policy that writes both completions, nats per sequence.
        count: how many pairs, at least 1.
        generator: source of prompts, completions and labels.
        flip: probability that a label is turned round on top, from 0 to below one half.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: count is below 1, flip out of range, or seq_logp does not belong to the task.

    Example:
        >>> from kltutor import TabularPolicy, exact, tasks
        >>> task, seed = tasks.small(), torch.Generator().manual_seed(0)
        >>> logp = exact.seq_logp(TabularPolicy.random(task, seed), task).detach()
        >>> pairs = sample_pairs(task, logp, 1000, seed)
        >>> gold = task.reward[pairs.prompt, pairs.chosen] - task.reward[pairs.prompt, pairs.rejected]
        >>> bool(gold.mean() > 0)
        True
    """
    if count < 1:
        raise ValueError(f"count is {count}; at least 1 pair is expected.")
    if not 0 <= flip < 0.5:
        raise ValueError(f"flip is {flip}; from 0 to below 0.5 is expected.")
    _check_policy(task, seq_logp)
    asked = torch.tensor(task.prompt_probs, dtype=torch.float64)
    prompt = torch.multinomial(asked, count, replacement=True, generator=generator)
    drawn = torch.multinomial(seq_logp.exp()[prompt], 2, replacement=True, generator=generator)
    first, second = drawn.unbind(-1)
    wins = bradley_terry(task.reward[prompt, first], task.reward[prompt, second])
    wins = (1 - flip) * wins + flip * (1 - wins)
    first_wins = torch.rand(count, generator=generator, dtype=torch.float64) < wins
    return Pairs(prompt, torch.where(first_wins, first, second), torch.where(first_wins, second, first))


def all_pairs(
    task: Task,
    seq_logp: Float[Tensor, "prompt completion"],
    *,
    preference: Callable[[Tensor, Tensor], Tensor] = bradley_terry,
) -> tuple[Pairs, Float[Tensor, " pair"]]:
    """Return every pair of completions and how often it is seen, the law from which `sample_pairs` draws.

    Two completions y and y' of one policy to one prompt x are seen, y preferred, with probability
    2·P(x)·policy(y|x)·policy(y'|x)·p(y ≻ y'). A sum over pairs with these weights is the mean of a loss over
    infinitely many data.

    Args:
        task: its gold reward labels.
        seq_logp: log-probabilities of the policy that writes both completions, nats per sequence.
        preference: from two rewards to the probability that the first is preferred; p(a, b) + p(b, a) = 1.

    Returns:
        (pairs, their weights). The weights sum to the probability that two draws differ; pairs that are
        never seen are left out.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: seq_logp does not belong to the task, or the preferences of a pair do not sum to 1.

    Example:
        >>> from kltutor import TabularPolicy, exact, tasks
        >>> task = tasks.bandit((0.0, 0.0))
        >>> logp = exact.seq_logp(TabularPolicy.random(task, torch.Generator(), scale=0), task).detach()
        >>> pairs, weights = all_pairs(task, logp)
        >>> pairs.chosen, pairs.rejected, weights
        (tensor([0, 1]), tensor([1, 0]), tensor([0.2500, 0.2500], dtype=torch.float64))
    """
    _check_policy(task, seq_logp)
    size = task.size
    asked = torch.tensor(task.prompt_probs, dtype=torch.float64)
    prompt, first, second = (
        index.flatten()
        for index in torch.meshgrid(*map(torch.arange, (len(asked), size, size)), indexing="ij")
    )
    reward, other = task.reward[prompt, first], task.reward[prompt, second]
    wins = preference(reward, other)
    if not torch.allclose(wins + preference(other, reward), torch.ones_like(wins)) or (wins < 0).any():
        raise ValueError("preference of a pair and of the same pair turned round do not sum to 1.")
    probs = seq_logp.double().exp()
    weights = 2 * asked[prompt] * probs[prompt, first] * probs[prompt, second] * wins
    seen = (first != second) & (weights > 0)
    return Pairs(prompt[seen], first[seen], second[seen]), weights[seen]


def _check_policy(task: Task, seq_logp: Tensor) -> None:
    """Raise ValueError unless seq_logp holds the log-probabilities of every completion of the task."""
    if seq_logp.shape != task.reward.shape:
        raise ValueError(
            f"seq_logp has shape {tuple(seq_logp.shape)}; {tuple(task.reward.shape)} is expected."
        )
    check_distributions(seq_logp=seq_logp)
