"""Length that pays nothing: which mechanism makes completions longer, and which does not."""

import dataclasses
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact
from kltutor.failures import Produced, play, scene
from kltutor.failures.worlds import along, dice, find, practice, world_of
from kltutor.run import Run
from kltutor.tasks import TabularPolicy
from kltutor.world import World

EVEN_END = -0.3  # logit of the end token beside words with 0
ALLOWED = 1.1  # times the reference's length, with the price of a token that cures the drift


def lengths(world: World) -> Float[Tensor, "prompt completion"]:
    """Return the length of every completion in tokens, the same for each prompt."""
    return world.task.mask.sum(-1).double().expand_as(world.ref_seq_logp)


def length_slope(
    world: World, reward: Float[Tensor, "prompt completion"]
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """Return (Cov(reward, length), Var(length)) under the reference, prompt by prompt.

    The covariance is the drift: tilted by s·reward, d E[length] / ds = Cov(reward, length). So the optimum
    at a large beta is longer by Cov / beta.
    """
    probs, tokens = world.ref_seq_logp.exp(), lengths(world)
    apart = tokens - (probs * tokens).sum(-1, keepdim=True)
    return (probs * apart * reward).sum(-1), (probs * apart.square()).sum(-1)


def length_controlled(
    world: World, reward: Float[Tensor, "prompt completion"]
) -> Float[Tensor, "prompt completion"]:
    """Return a reward less its regression on length under the reference: no drift to first order.

    Example:
        >>> world = world_of("first word", 0)
        >>> bool((length_slope(world, world.proxy)[0] > 0.2).all())
        True
        >>> bool((length_slope(world, length_controlled(world, world.proxy))[0].abs() < 1e-12).all())
        True
    """
    covariance, variance = length_slope(world, reward)
    return reward - (covariance / variance).unsqueeze(-1) * lengths(world)


def price_for(world: World, reward: Float[Tensor, "prompt completion"], beta: float, tokens: float) -> float:
    """Return the price of a token, in reward units, at which the optimum writes so many on average.

    Raises:
        ValueError: no price from -10 to 10 leads there.

    Example:
        >>> world = world_of("first word", 0)
        >>> price = price_for(world, world.proxy, 0.2, 3.0)
        >>> priced = world.proxy - price * lengths(world)
        >>> round(along(world, priced, (0.2,)).length.item(), 6)
        3.0
    """
    low, high = -10.0, 10.0
    most, least = (along(world, reward - p * lengths(world), (beta,)).length.item() for p in (low, high))
    if not least <= tokens <= most:
        raise ValueError(f"tokens is {tokens}; from {least:.6g} to {most:.6g} can be had here.")
    for _ in range(60):
        middle = (low + high) / 2
        longer = along(world, reward - middle * lengths(world), (beta,)).length.item() > tokens
        low, high = (middle, high) if longer else (low, middle)
    return high


def longer(world: World, shift: float) -> Float[Tensor, "prompt completion"]:
    """Return log-probabilities of the reference with every token shifted by so many nats, normalised again.

    Two completions to one prompt then differ in log-ratio by shift·(difference of their lengths): this is all
    that a shift common to all tokens can give to the margin of DPO. How improbable the reference finds either
    of them does not enter.

    Example:
        >>> world = world_of("first word", 0)
        >>> log_ratio = longer(world, 0.1) - world.ref_seq_logp
        >>> short, long = (world.task.sequences.index(y) for y in [(1, 0), (1, 2, 3, 2, 0)])
        >>> round((log_ratio[0, long] - log_ratio[0, short]).item(), 12)  # three tokens more
        0.3
    """
    shifted = world.ref_seq_logp + shift * lengths(world)
    return shifted - shifted.logsumexp(-1, keepdim=True)


class Verdicts(NamedTuple):
    """Exact means of a policy before each step of a training; one entry a step."""

    reward: Float[Tensor, " step"]
    length: Float[Tensor, " step"]
    if_right: Float[Tensor, " step"]  # tokens, of completions with the reward 1
    if_wrong: Float[Tensor, " step"]  # tokens, of completions with the reward 0 that say something


def group_ascent(
    world: World, reduction: Literal["sequence_sum", "sequence_mean"], *, steps: int, rate: float
) -> Verdicts:
    """Follow the mean gradient of GRPO without KL, clip or z-scores, in groups without end: no sampling.

    The advantage of a completion is its reward less the mean, its weight 1, or one over its length under
    "sequence_mean". Divided so, a long wrong answer loses less per token than a short one, and a long right
    one gains less: wrong answers grow and right ones shrink.

    Args:
        world: rewards are 0 and 1.
        reduction: of the loss over tokens.
        steps: how many, of plain gradient ascent.
        rate: of these.
    """
    task, tokens = world.task, lengths(world)
    asked = torch.tensor(task.prompt_probs, dtype=torch.float64)[:, None]
    right, said = task.reward == 1, tokens > 1
    policy, rows = TabularPolicy(task, world.ref_logps), []
    for _ in range(steps):
        logp = exact.seq_logp(policy, task)
        probs = asked * logp.detach().exp()
        gain = task.reward - (probs * task.reward).sum(-1, keepdim=True) / asked
        objective = probs * gain * logp / (tokens if reduction == "sequence_mean" else 1)
        (gradient,) = torch.autograd.grad(objective.sum(), policy.logits)
        of = (torch.ones_like(right), right, ~right & said)
        mean = [(probs * part * tokens).sum() / (probs * part).sum() for part in of]
        rows.append(torch.stack([(probs * task.reward).sum(), *mean]))
        policy = TabularPolicy(task, policy.logits.detach() + rate * gradient)
    return Verdicts(*torch.stack(rows, 1))


def even(world: World) -> World:
    """Return the world with a reference that draws words alike everywhere: no length goes with a word."""
    task = world.task
    logits = torch.tensor([EVEN_END, *[0.0] * (len(task.words) - 1)], dtype=torch.float64)
    table = logits.expand(len(task.prompts), len(task.open_prefixes), -1)
    return World(task, TabularPolicy(task, table), world.pairs, world.proxy)


@scene("length-drift")
def length_drift(seed: int, cured: bool) -> Produced:
    """Train on a proxy of 1000 to 2000 pairs, where only the first word counts; all later ones are padding.

    The proxy counts words, and phrases of more suiting words were the better ones. So every further word
    pays, and length grows while the gold reward has long stopped. Beta is from 0.1 to 0.2. The cure charges
    the price per token at which the optimum stays near the reference's length.
    """
    draw = dice("length-drift", seed)
    how, size, beta = practice(draw, z_scores=False), draw.choice((1000, 1500, 2000)), draw.uniform(0.1, 0.2)

    def shows(world: World) -> bool:
        ends = along(world, world.proxy, (100.0, beta))
        return bool(ends.length[1] > 1.4 * ends.length[0] and ends.gold[1] > ends.gold[0] + 0.2)

    own, world = next(find(seed, lambda own: world_of("first word", own, pairs=size), shows))
    run = Run(task="given", reward="proxy", beta=beta, world_seed=own, seed=seed, **how)
    if not cured:
        return play(run, world, route="proxy learnt length")
    tokens = ALLOWED * along(world, world.proxy, (100.0,)).length.item()
    price = price_for(world, world.proxy, beta, tokens)
    priced = dataclasses.replace(world, proxy=world.proxy - price * lengths(world))
    return play(run, priced, route="price on tokens")
