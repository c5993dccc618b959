"""The wrong reference, and when it is right to move it."""

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact
from kltutor.checks import check_positive
from kltutor.failures import Produced, play, scene
from kltutor.failures.worlds import dice, find, name_of, practice, world_of
from kltutor.optimum import optimal_policy
from kltutor.run import Run
from kltutor.tasks import TabularPolicy
from kltutor.train import train
from kltutor.world import World

STYLE = 2.0  # standard deviation of what demonstrations add to the logits of the base
LEAST = 0.3  # KL(tuned ‖ base), nats per sequence


def tuned(world: World, gain: float, seed: int) -> TabularPolicy:
    """Return a policy tuned on demonstrations: in a style of their own, and better than the reference.

    The style is normal noise on every logit of the reference, of which no reward knows. On top, it is the
    optimum of E[gold reward] - KL/gain to that.

    Args:
        world: with the base as its reference.
        gain: nats a unit of gold reward adds to the log-probability of a completion; above 0.
        seed: of the style.
    """
    check_positive(gain=gain)
    task, generator = world.task, torch.Generator().manual_seed(seed)
    style = STYLE * torch.randn(world.ref_logps.shape, generator=generator, dtype=torch.float64)
    styled = exact.seq_logp(TabularPolicy(task, world.ref_logps + style), task).detach()
    logp, _ = optimal_policy(styled, task.reward, 1 / gain)
    return TabularPolicy(task, table_of(world, logp))


def table_of(world: World, logp: Float[Tensor, "prompt completion"]) -> Float[Tensor, "prompt prefix vocab"]:
    """Return log π(token | prefix) at every open prefix, of a law over completions that may say them all."""
    prompts, prefixes, words = world.ref_logps.shape
    mass = logp.new_full((prompts, prefixes, words), -torch.inf)
    for t in range(world.task.horizon):  # the mass of a token after a prefix is that of all that begins so
        rows = world.task.mask[:, t]
        index = (world.prefix[rows, t] * words + world.task.tokens[rows, t]).expand(prompts, -1)
        flat = torch.zeros(prompts, prefixes * words, dtype=logp.dtype)
        flat.scatter_add_(1, index, logp[:, rows].exp())
        here = flat.view(mass.shape) > 0
        mass = torch.where(here, flat.view(mass.shape).log(), mass)
    return mass - mass.logsumexp(-1, keepdim=True)


def in_rounds(
    ref_logp: Float[Tensor, "prompt completion"],
    reward: Float[Tensor, "prompt completion"],
    beta: float,
    rounds: int,
) -> Float[Tensor, "prompt completion"]:
    """Return where n rounds of E[reward] - beta·KL end, the reference moved to the result after each.

    It is the optimum of one round at beta/n: each round adds reward/beta to the log-ratio. So moving the
    reference is right where the leash is for one round, and no leash at all where it never stops.

    Example:
        >>> world = world_of("small", 0)
        >>> moved = in_rounds(world.ref_seq_logp, world.task.reward, 1.0, 4)
        >>> once = optimal_policy(world.ref_seq_logp, world.task.reward, 0.25)[0]
        >>> bool((moved - once).abs().max() < 1e-12)
        True
    """
    for _ in range(rounds):
        ref_logp, _ = optimal_policy(ref_logp, reward, beta)
    return ref_logp


@scene("wrong-reference")
def wrong_reference(seed: int, cured: bool) -> Produced:
    """Start at a tuned model with the KL to its base: at step 0 there is a KL, and it pulls back.

    Beta is from 0.3 to 1, and the tuned model at least 0.3 nats from its base. The cure takes the tuned model
    as the reference.
    """
    draw = dice("wrong-reference", seed)
    how, place = practice(draw), draw.choice(("small", "all words"))
    beta, gain = draw.uniform(0.3, 1.0), draw.uniform(0.5, 1.5)

    def shows(base: World) -> bool:
        sft = exact.seq_logp(tuned(base, gain, seed), base.task).detach()
        return bool(exact.mean_kl(sft, base.ref_seq_logp, base.task) > LEAST)

    own, base = next(find(seed, lambda own: world_of(place, own), shows))
    sft = tuned(base, gain, seed)
    run = Run(task=name_of(place), beta=beta, world_seed=own, seed=seed, **how)
    if cured:
        return play(run, World.around(base.task, sft, run), route="KL to the tuned model")
    training = train(run, world=base)
    training.policy.load_state_dict(sft.state_dict())
    return Produced(run, list(training), base, "KL to the base")
