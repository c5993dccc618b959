"""Over-optimisation of a proxy that was learnt from few pairs, and ensembles of proxies as a cure."""

import dataclasses
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_nonnegative
from kltutor.failures import Produced, play, scene
from kltutor.failures.worlds import along, beta_for, dice, find, practice, surprise, world_of
from kltutor.pairs import Pairs, sample_pairs
from kltutor.proxy import fit_proxy
from kltutor.run import Run
from kltutor.train import train
from kltutor.world import World

MEMBERS = 8
LOST, SHARE = 0.15, 0.3  # gold reward that an over-optimised run loses at least, and part of what it gained
CURES = ("larger beta", "early stop", "ensemble, min", "ensemble, mean - 3 sd")


def proxies(
    world: World, *, pairs: Literal["bootstrap", "fresh"], flip: float, generator: torch.Generator
) -> Float[Tensor, "member prompt completion"]:
    """Return an ensemble of 8 proxies, each less its mean under the reference, prompt by prompt.

    Preferences leave a constant for each prompt open. A minimum over members with constants of their own
    would compare these constants too; the mean of the reference is the one zero that they share.

    Args:
        world: whose pairs, or as many of its reference's, the members are fitted to.
        pairs: for each member "bootstrap" draws of the world's, or "fresh" ones labelled for it alone.
        flip: of the fresh pairs.
        generator: source of the draws.
    """
    task, ref_logp, count = world.task, world.ref_seq_logp, len(world.pairs.prompt)
    members = []
    for _ in range(MEMBERS):
        if pairs == "bootstrap":
            chosen = torch.randint(count, (count,), generator=generator)
            own = Pairs(*(part[chosen] for part in world.pairs))
        else:
            own = sample_pairs(task, ref_logp, count, generator, flip=flip)
        fitted = fit_proxy(task, own)
        members.append(fitted - (ref_logp.exp() * fitted).sum(-1, keepdim=True))
    return torch.stack(members)


def lower_confidence(
    members: Float[Tensor, "member prompt completion"], k: float
) -> Float[Tensor, "prompt completion"]:
    """Return mean - k·sd over the members of an ensemble, or their minimum for k = inf.

    Example:
        >>> members = torch.tensor([[[1.0, 4.0]], [[3.0, 4.0]]])
        >>> lower_confidence(members, 2.0), lower_confidence(members, math.inf)
        (tensor([[0., 4.]]), tensor([[1., 4.]]))
    """
    if k == math.inf:
        return members.amin(0)
    check_nonnegative(k=k)
    return members.mean(0) - k * members.std(0, correction=0)


@scene("over-optimisation")
def over_optimisation(seed: int, cured: bool) -> Produced:
    """Train on a proxy learnt from 30 to 150 pairs, some labels flipped; gold rises, then falls.

    Worlds are those in which the optimum at this beta, from 0.08 to 0.2, has lost 0.4 of the gold that the
    best optimum of the proxy has, no farther away than the entropy of the reference, and in which the run
    loses 0.15 of its own best and 30 % of what it gained. Cures: the beta at the peak; stopping at the KL of
    the peak; the minimum, or mean - 3 sd, of an ensemble that was fitted to bootstrap draws of the same
    pairs. Where exact sums show that it does not help, since its members share an error, beta is the cure
    instead.
    """
    draw = dice("over-optimisation", seed)
    how, cure = practice(draw), draw.choice(CURES)
    size, flip, beta = draw.randrange(30, 150), draw.choice((0.0, 0.1, 0.2)), draw.uniform(0.08, 0.2)

    def shows(world: World) -> bool:
        found, ends = along(world, world.proxy), along(world, world.proxy, (100.0, beta))
        peak, far = found.at_peak(), 1
        rises = found.kl[peak] > 0.15 and found.gold[peak] > found.gold[0] + 0.1
        held = 1 < ends.kl[far] < surprise(world)  # else the run is a runaway
        return bool(rises and held and ends.gold[far] < found.gold[peak] - 0.4)

    how |= {"reward": "proxy", "seed": seed, "beta": beta}
    for own, world in find(seed, lambda own: world_of("small", own, pairs=size, flip=flip), shows):
        run, found = Run(world_seed=own, **how), along(world, world.proxy)
        lost = play(run, world, route=f"{size} pairs")
        gold = [record.exact.gold for record in lost.records if record.exact is not None]
        if gold[-1] < max(gold) - max(
            LOST, SHARE * (max(gold) - gold[0])
        ):  # a run need not follow the optimum that it will not reach
            break
    if not cured:
        return lost
    budget = found.kl[found.at_peak()].item()
    if cure.startswith("ensemble"):
        members = proxies(world, pairs="bootstrap", flip=flip, generator=torch.Generator().manual_seed(own))
        careful = lower_confidence(members, math.inf if cure == "ensemble, min" else 3.0)
        if along(world, careful, (beta,)).gold > found.gold.max() - 0.1:  # else its members share the error
            return play(run, dataclasses.replace(world, proxy=careful), route=cure)
    if cure == "early stop":
        return stop_at(run, world, budget)
    gentle = dataclasses.replace(run, beta=beta_for(world, world.proxy, budget))
    return play(gentle, world, route="larger beta")


def stop_at(run: Run, world: World, budget: float) -> Produced:
    """Make a run that ends at the first exact measurement after its KL, as sampled, reaches a budget."""
    records, spent = [], False
    for record in train(run, world=world):
        records.append(record)
        spent = spent or record.sampled.get("kl", 0.0) >= budget
        if spent and record.exact is not None:
            break
    return Produced(run, records, world, "early stop")
