"""Runs that go well, runs that do not move, and runs that nothing holds."""

import dataclasses
from random import Random
from typing import Any

from kltutor.failures import Produced, play, scene
from kltutor.failures.worlds import TASKS, along, beta_for, dice, find, name_of, practice, surprise, world_of
from kltutor.run import Run
from kltutor.world import World

EVERYWHERE = ("small", *TASKS)
DEAD = 40.0  # standard deviation of the logits of a reference without entropy
AWAY = 2.2  # times the entropy of the reference: where the optimum of a runaway is at least
PAID = 1.25  # times the length it had: a healthy proxy makes phrases no longer, or shorter, than that
BUDGET = 0.7  # of the KL at which the gold reward is highest


@scene("healthy")
def healthy(seed: int, cured: bool) -> Produced:
    """Train on the gold reward with a beta from 0.3 to 0.8, or on a proxy within its KL budget.

    Beta is from 0.1 to 0.3 where GRPO's z-scores make rewards larger. Four algorithms, three tasks, batches
    of 128 to 384, 80 to 120 steps, rates from 0.06 to 0.12.
    """
    draw = dice("healthy", seed)
    how, place = practice(draw), draw.choice(EVERYWHERE)
    if draw.random() < 0.25:
        # GRPO's z-scores would make of the beta within the budget a smaller one.
        how, place = practice(draw, z_scores=False), draw.choice(("small", "all words"))
        size = draw.choice((500, 1000, 2000))
        own, world = next(find(seed, lambda own: world_of(place, own, pairs=size), _rises))
        how |= {"reward": "proxy", "world_seed": own}
        beta = beta_for(world, world.proxy, BUDGET * _budget(world))
        return play(_run(place, seed, how, beta=beta), world, route="proxy within its budget")
    world = world_of(place, seed)
    z_scores = Run(**how).advantages == "z_score"
    beta = draw.uniform(0.1, 0.3) if z_scores else draw.uniform(0.3, 0.8)
    return play(_run(place, seed, how, beta=beta), world, route="gold reward")


@scene("collapse")
def collapse(seed: int, cured: bool) -> Produced:
    """Train with a beta from 20 to 200, or from a reference that says one thing; the policy stays there.

    Cures: the beta at which the optimum is 0.5 to 1.5 nats away (less where the best completions are nearer),
    or a controller that aims there; for the reference without entropy one that has it.
    """
    draw = dice("collapse", seed)
    how, place, target = practice(draw), draw.choice(EVERYWHERE), draw.uniform(0.5, 1.5)
    dead, too_large = draw.random() < 0.3, 10 ** draw.uniform(1.3, 2.3)
    if dead:
        own, world = next(find(seed, lambda own: world_of(place, own, scale=DEAD), _says_one_thing))
        run = _run(place, seed, how | {"world_seed": own}, beta=draw.uniform(0.1, 0.3))
        if not cured:
            return play(run, world, route="dead entropy")
        return play(run, world_of(place, own), route="reference with entropy")
    world = world_of(place, seed)
    if not cured:
        return play(_run(place, seed, how, beta=too_large), world, route="beta too large")
    farthest = along(world, world.task.reward, (0.01,)).kl.item()
    target = min(target, BUDGET * farthest)  # where the best completions are near, so is the target
    return cure_by_target(_run(place, seed, how, beta=too_large), world, target, draw)


@scene("runaway")
def runaway(seed: int, cured: bool) -> Produced:
    """Train on a proxy with next to no beta, or on one whose scale leaves beta nothing to say; KL climbs on.

    The over-confident proxy is sure of its labels 8 to 20 times too much, beside which a beta from 0.3 to 0.8
    is small. The optimum is farther away than 2.2 times the entropy of the reference. Cures: the beta at
    which the gold reward peaks, or a controller that aims at the KL there.
    """
    draw = dice("runaway", seed)
    sure = draw.random() < 0.5
    how = practice(draw, z_scores=not sure)  # which would take the scale out again
    how |= {"decay": "constant", "batch": draw.choice((256, 512)), "reward": "proxy"}
    how |= {"rate": draw.uniform(0.06, 0.09), "steps": draw.randrange(120, 165, 5)}
    pairs, scale = draw.choice((200, 500, 1000)), draw.uniform(8, 20) if sure else 1.0
    beta = draw.uniform(0.3, 0.8) if sure else draw.choice((0.0, 0.001, 0.003))

    def shows(world: World) -> bool:
        settled = along(world, world.proxy, (max(beta, 0.003) / scale,)).kl.item()
        return settled > AWAY * surprise(world) and _leads_far(world)

    own, world = next(find(seed, lambda own: world_of("all words", own, pairs=pairs), shows))
    budget, world = _budget(world), dataclasses.replace(world, proxy=scale * world.proxy)
    run = _run("all words", seed, how | {"world_seed": own}, beta=beta)
    if not cured:
        return play(run, world, route="over-confident proxy" if sure else "tiny beta")
    return cure_by_target(run, world, budget, draw)


def cure_by_target(run: Run, world: World, target_kl: float, draw: Random) -> Produced:
    """Make a run with the beta whose optimum has a KL, or with a controller that aims at that KL."""
    beta = beta_for(world, world.reward(run), target_kl)
    # What GRPO's z-scores train on is not the reward, so beta is in another unit there: let the KL decide.
    if draw.random() < 0.5 and run.advantages != "z_score":
        return play(dataclasses.replace(run, beta=beta), world, route="beta by target KL")
    rule = {"class": "PIDBeta", "target_kl": target_kl, "kp": 1.0, "ki": 0.5, "horizon": 10 * run.batch}
    rule |= {"lower": beta / 20, "upper": 20 * beta}
    guess = beta * 2 ** draw.uniform(0, 2)  # too large by a factor of up to 4: that is the side to start from
    return play(dataclasses.replace(run, beta=guess, controller=rule), world, route="controller")


def _run(place: str, seed: int, how: dict[str, Any], **rest: Any) -> Run:
    return Run(task=name_of(place), seed=seed, **({"world_seed": seed} | how), **rest)


def _budget(world: World) -> float:
    """Return the KL at which the gold reward of the proxy's optimum peaks."""
    found = along(world, world.proxy)
    return found.kl[found.at_peak()].item()


def _rises(world: World) -> bool:
    """Return whether the proxy leads somewhere before it leads astray, and not into length."""
    found = along(world, world.proxy, (100.0, beta_for(world, world.proxy, BUDGET * _budget(world))))
    times = found.length[1] / found.length[0]
    return bool(found.gold[1] > found.gold[0] + 0.2 and 1 / PAID < times < PAID)


def _leads_far(world: World) -> bool:
    """Return whether the proxy's optimum first gains gold, and loses it in longer phrases 3 nats away."""
    found = along(world, world.proxy)
    peak, far = found.at_peak(), int((found.kl > 3).int().argmax())
    rises = found.kl[peak] > 0.15 and found.gold[peak] > found.gold[0] + 0.1
    falls = found.kl[-1] > 6 and found.gold[far] < found.gold[peak] - 0.3
    return bool(rises and falls and found.length[far] > 1.4 * found.length[0])


def _says_one_thing(world: World) -> bool:
    """Return whether the reference never says anything else in a run, and something better exists."""
    logp = world.ref_seq_logp
    said = (logp.exp() * world.task.reward).sum(-1)
    better = world.task.reward.amax(-1) > said + 0.5
    return bool((logp.amax(-1) > -1e-5).all() and better.all())
