"""Where runs go wrong: a task with room to ramble, and what the optimum of a reward does to gold and length.

The proxy of a world is linear in counts of words, and the gold reward is not. So every proxy promises more
for every further word that suits, whatever its pairs; how far that leads astray, `along` says exactly.
"""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact
from kltutor.optimum import optimal_policy
from kltutor.options import Named
from kltutor.run import Run
from kltutor.tasks import END, TabularPolicy, Task
from kltutor.train import make_world
from kltutor.world import World

SUITS = {"tea": {"warm", "sweet"}, "noon": {"warm"}}
BETAS = (100.0, *(2.0**-i for i in range(-1, 8)))  # from next to the reference to 1/128
Score = Callable[[tuple[str, ...], tuple[str, ...], bool], float]

WORLDS = 1000  # that belong to one seed


def rambling(score: Score) -> Task:
    """Return a task with room for words that add nothing: horizon 6, two prompts, 1093 completions each."""
    return Task(
        name="rambling",
        words=("<end>", "warm", "sweet", "and"),
        horizon=6,
        prompts=(("praise", "tea"), ("praise", "noon")),
        prompt_probs=(0.6, 0.4),
        score=score,
    )


def all_words(prompt: tuple[str, ...], said: tuple[str, ...], ended: bool) -> float:
    """Score 1 for each different word that suits the prompt, -½ a repetition, -1 if unended.

    Example:
        >>> [all_words(("praise", "tea"), said, True) for said in (("warm", "sweet"), ("warm", "warm"))]
        [2.0, 0.5]
    """
    different = set(said)
    return len(SUITS[prompt[-1]] & different) - 0.5 * (len(said) - len(different)) - (0.0 if ended else 1.0)


def first_word(prompt: tuple[str, ...], said: tuple[str, ...], ended: bool) -> float:
    """Score 1 if the first word suits the prompt: the answer comes first, and no further word counts.

    Example:
        >>> [first_word(("praise", "tea"), said, True) for said in (("warm",), ("and", "warm"), ())]
        [1.0, 0.0, 0.0]
    """
    return 1.0 if said[:1] and said[0] in SUITS[prompt[-1]] else 0.0


# What the gold reward counts, and what is added to the logit of the end token in the reference: where a proxy
# learns from short phrases, it has not seen what long ones are worth.
TASKS: dict[str, tuple[Score, float]] = {"all words": (all_words, 1.0), "first word": (first_word, 0.0)}


def name_of(place: str) -> Named:
    """Return what a `Run` calls the task of a place."""
    return "small" if place == "small" else "given"


def world_of(place: str, seed: int, *, pairs: int = 1000, flip: float = 0.0, scale: float = 1.0) -> World:
    """Return a world: a random reference, pairs that it wrote, and the proxy fitted to them.

    Args:
        place: "small" is the lab's task; else a key of `TASKS`.
        seed: of reference and pairs.
        pairs: how many.
        flip: as in `sample_pairs`.
        scale: standard deviation of the reference's logits; a large one leaves it next to no entropy.
    """
    run = Run(task=name_of(place), world_seed=seed, data_size=pairs, flip=flip, ref_scale=scale)
    if place == "small":
        return make_world(run)
    score, haste = TASKS[place]
    task = rambling(score)
    logits = TabularPolicy.random(task, torch.Generator().manual_seed(seed)).logits.detach()
    logits[..., END] += haste
    return World.around(task, TabularPolicy(task, scale * logits), run)


class Along(NamedTuple):
    """What becomes of the optimum of a reward as beta falls, by exact sums; one entry a beta."""

    beta: Float[Tensor, " beta"]
    kl: Float[Tensor, " beta"]  # KL(optimum ‖ ref), nats per sequence
    gold: Float[Tensor, " beta"]
    length: Float[Tensor, " beta"]  # tokens

    def at_peak(self) -> int:
        """Return where the gold reward is highest."""
        return int(self.gold.argmax())


def along(
    world: World, reward: Float[Tensor, "prompt completion"], betas: tuple[float, ...] = BETAS
) -> Along:
    """Follow the optimum of E[reward] - beta·KL through falling betas: no run, no sample.

    Example:
        >>> world = world_of("all words", 0)
        >>> found = along(world, world.proxy, (100.0, 0.5, 0.05))
        >>> [round(gold, 2) for gold in found.gold.tolist()]  # it rises, then falls
        [0.23, 0.58, -0.11]
    """
    task, ref_logp = world.task, world.ref_seq_logp
    length, rows = task.mask.sum(-1).double().expand_as(ref_logp), []
    for beta in betas:
        logp, _ = optimal_policy(ref_logp, reward, beta)
        found = [exact.expectation(values, logp, task) for values in (task.reward, length)]
        rows.append(torch.stack([exact.mean_kl(logp, ref_logp, task), *found]))
    return Along(torch.tensor(betas, dtype=torch.float64), *torch.stack(rows, 1))


def beta_for(world: World, reward: Float[Tensor, "prompt completion"], target_kl: float) -> float:
    """Return the beta at which the optimum of a reward has that KL, by bisection of its logarithm.

    Raises:
        ValueError: no beta from 1e-3 to 1e3 gives that KL.

    Example:
        >>> world = world_of("all words", 0)
        >>> beta = beta_for(world, world.proxy, 1.0)
        >>> round(along(world, world.proxy, (beta,)).kl.item(), 6)
        1.0
    """
    low, high = math.log(1e-3), math.log(1e3)
    least, most = along(world, reward, (math.exp(high), math.exp(low))).kl.tolist()
    if not least <= target_kl <= most:
        raise ValueError(f"target_kl is {target_kl}; from {least:.6g} to {most:.6g} can be had here.")
    for _ in range(50):
        middle = (low + high) / 2
        farther = along(world, reward, (math.exp(middle),)).kl.item() > target_kl
        low, high = (middle, high) if farther else (low, middle)
    return math.exp(high)


def surprise(world: World) -> float:
    """Return the entropy of the reference, nats per sequence: the KL of saying one usual sample only."""
    return -exact.expectation(world.ref_seq_logp, world.ref_seq_logp, world.task).item()


def dice(mode: str, seed: int) -> random.Random:
    """Return what a scene draws its hyper-parameters from: the same for a run and its cure."""
    return random.Random(f"{mode} {seed}")


def find(
    seed: int, make: Callable[[int], World], shows: Callable[[World], bool]
) -> Iterator[tuple[int, World]]:
    """Yield the worlds of a seed in which exact sums show what a scene is about, each after its own seed."""
    found = ((own, make(own)) for own in range(WORLDS * seed, WORLDS * (seed + 1)))
    return ((own, world) for own, world in found if shows(world))


def practice(draw: random.Random, *, z_scores: bool = True) -> dict[str, Any]:
    """Return an algorithm, where its KL goes, and how it is trained: what healthy runs differ in too.

    Args:
        draw: as from `dice`.
        z_scores: whether GRPO as published may come; it divides rewards by their spread, and with it whatever
            was worked out for a beta.
    """
    kinds: list[dict[str, Any]] = [
        {"algorithm": "ppo", "epochs": draw.choice((1, 2)), "minibatches": 1},
        {"algorithm": "rloo", "group": draw.choice((2, 4, 8))},
        {
            "algorithm": "grpo",
            "advantages": "dr_grpo",
            "reduction": "sequence_sum",
            "kl_estimator": "k2",
            "kl_reduction": "sequence_sum",
        },
        {"algorithm": "grpo", "group": draw.choice((4, 8))},  # as published: z-scores, k3 in the loss
    ]
    return draw.choice(kinds if z_scores else kinds[:-1]) | {
        "batch": draw.choice((128, 256, 384)),
        "rate": draw.uniform(0.06, 0.12),
        "steps": draw.randrange(80, 125, 5),
        "exact_every": 5,
    }
