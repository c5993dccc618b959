"""Runs whose parts are put together wrongly: reference, controller, sign, sampler and price of the KL.

Losses, optimiser and records are those of `train`. A fault sits where a trainer has it: in the learner that
draws, scores, charges and logs, or in the settings of the controller. Exact quantities stay true, so they
show what the log does not.
"""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kltutor.controllers import UnreachableTargetWarning
from kltutor.estimators import k3
from kltutor.failures import Produced, play, scene
from kltutor.failures.worlds import TASKS, dice, name_of, practice, world_of
from kltutor.learner import Learner
from kltutor.lessons import Draw, Learn, Request
from kltutor.masking import masked_mean, masked_sum
from kltutor.records import Record
from kltutor.rollout import Rollout, complete, draw, look
from kltutor.run import Run
from kltutor.schedules import Controller
from kltutor.tasks import Policy
from kltutor.train import train
from kltutor.world import World

PLACES = ("small", *TASKS)
ROOMY = ("small", "all words")  # where the best there is lies beyond every target of a controller
NATS_PER_BIT = math.log(2)

Follow = Callable[[int, nn.Module, nn.Module], None]  # step, reference, policy: moves the reference
Engine = Callable[[Policy, World], Policy]  # from the policy that scores to the one that draws
Charge = Callable[[Rollout, float], Tensor]  # what the KL adds to the reward of each completion at a beta


class _Following(Learner):
    """Scores completions with a reference that follows the policy. What is exact keeps to the first one."""

    def __init__(self, run: Run, world: World, follow: Follow | None) -> None:
        """Copy the policy before its first step, or, where there is no `follow`, do not."""
        super().__init__(run, world)
        self.follow = follow
        self.ref = self.policy if follow is None else copy.deepcopy(self.policy).requires_grad_(False)

    def _answer(self, step: int, request: Request) -> Any:
        if not isinstance(request, Draw):
            return super()._answer(step, request)
        if self.follow is not None and step:
            with torch.no_grad():
                self.follow(step, self.ref, self.policy)
        first, self.world = self.world, replace(self.world, ref=self.ref)
        try:
            return super()._answer(step, request)
        finally:
            self.world = first


def average(step: int, ref: nn.Module, policy: nn.Module, *, share: float) -> None:
    """Move every weight of the reference a share of the way to the policy's."""
    for mine, its in zip(ref.parameters(), policy.parameters(), strict=True):
        mine.lerp_(its, share)


def reset(step: int, ref: nn.Module, policy: nn.Module, *, every: int) -> None:
    """Make the reference a copy of the policy on every so manieth step."""
    if step % every == 0:
        average(step, ref, policy, share=1.0)


class _Elsewhere(Learner):
    """Draws completions from an engine of its own, and scores them with the policy that learns."""

    def __init__(self, run: Run, world: World, engine: Engine) -> None:
        super().__init__(run, world)
        self.engine = engine(self.policy, world)

    def _answer(self, step: int, request: Request) -> Any:
        if not isinstance(request, Draw):
            return super()._answer(step, request)
        task = self.world.task
        prompts = task.prompt_tokens[request.prompt]
        drawn, _ = draw(self.engine, None, prompts, task.horizon, self.generator)
        with torch.no_grad():
            said = look(self.policy, self.critic, prompts, drawn.tokens, drawn.mask)
        return complete(self.run, self.world, request.prompt, drawn._replace(logp=said.logp), said.values)


@dataclass(frozen=True)
class Tempered:
    """A policy as a sampler would have it: its logits over a temperature, and of these the k largest."""

    policy: Policy
    temperature: float
    top_k: int | None = None

    def __call__(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Return the logits that tokens are drawn from."""
        logits = self.policy(tokens) / self.temperature
        if self.top_k is None:
            return logits
        least = logits.topk(self.top_k, -1).values[..., -1:]
        return logits.masked_fill(logits < least, -math.inf)


def tempered(policy: Policy, world: World, *, temperature: float, top_k: int | None = None) -> Policy:
    """Draw at a temperature, from the k most probable tokens."""
    return Tempered(policy, temperature, top_k)


def first_weights(policy: Policy, world: World) -> Policy:
    """Draw from weights that were sent once, before the first step."""
    return copy.deepcopy(world.ref)


class _Charging(Learner):
    """Adds to the score of a completion what a rule says, and logs that; the log may have the wrong sign.

    The KL is charged when a completion ends, and not token by token, which without a discount comes to the
    same return.
    """

    def __init__(self, run: Run, world: World, charge: Charge, *, swapped: bool = False) -> None:
        super().__init__(run, world)
        self.charge, self.swapped = charge, swapped
        self.drawn: Rollout | None = None

    def _answer(self, step: int, request: Request) -> Any:
        if isinstance(request, Learn):
            part = request.rollout
            paid = part._replace(scores=part.scores + self.charge(part, request.beta))
            return super()._answer(step, request._replace(rollout=paid, beta=0.0))
        answer = super()._answer(step, request)
        if isinstance(request, Draw):
            self.drawn = answer
        return answer

    def advance(self, step: int, controller: Controller, clock: Callable[[], float]) -> Record:
        beta = controller.beta
        record = super().advance(step, controller, clock)
        if not record.sampled or self.drawn is None:
            return record
        logged = {"penalty": self.charge(self.drawn, beta).mean().item()}
        if self.swapped:
            logged |= {name: -record.sampled[name] for name in ("kl", "kl_token")}
            logged["k3"] = masked_sum(k3(self.drawn.ref_logp, self.drawn.logp), self.drawn.mask).mean().item()
        return replace(record, sampled=record.sampled | logged)


def per_nat(rollout: Rollout, beta: float, *, times: float = -1.0) -> Float[Tensor, " batch"]:
    """Charge beta so many times for each nat of the sequence; rightly -1."""
    return times * beta * masked_sum(rollout.logp - rollout.ref_logp, rollout.mask)


def per_mean(rollout: Rollout, beta: float) -> Float[Tensor, " batch"]:
    """Charge beta for the mean over tokens."""
    return -beta * masked_mean(rollout.logp - rollout.ref_logp, rollout.mask)


@scene("moving-reference")
def moving_reference(seed: int, cured: bool) -> Produced:
    """Let the reference follow the policy: as the same weights, an average, or a copy made every n steps.

    By turns of the seed. The average takes a share of 0.02 to 0.3 a step, the copies are 10 to 40 steps
    apart, of at least 80 steps. beta is 0.2 to 0.6, or 0.1 to 0.3 beside z-scores. Cure: a frozen copy.
    """
    dealt = dice("moving-reference", seed)
    run, world = _run_in_world(seed, dealt, practice(dealt), 0.2, 0.6)
    share, every = 10 ** dealt.uniform(math.log10(0.02), math.log10(0.3)), dealt.randrange(10, 41)
    ways: tuple[tuple[str, Follow | None], ...] = (
        ("the policy's own weights", None),
        (f"average, share {share:.3f}", partial(average, share=share)),
        (f"reset every {every} steps", partial(reset, every=every)),
    )
    route, follow = ways[seed % 3]
    if cured:
        return play(run, world, route="frozen copy")
    return _play_with(_Following(run, world, follow), route)


@scene("controller-oscillation")
def controller_oscillation(seed: int, cured: bool) -> Produced:
    """Let beta answer to the KL faster than the KL can answer to beta.

    Ziegler's rule (clip 0.9) and a PID rule by turns, with a horizon of 1.4 to 4 batches, where the KL takes
    tens of steps to answer; targets from 0.4 to 0.8 nats, bounds of beta a factor of 10 to 20 either way,
    rates from 0.12 to 0.2, 180 steps. Cure: a horizon 15 times as long.
    """
    dealt = dice("controller-oscillation", seed)
    how = _in_reward(dealt) | {"batch": 256, "steps": 180, "epochs": 1, "decay": "constant"}
    how["rate"] = dealt.uniform(0.12, 0.2)
    run, world = _run_in_world(seed, dealt, how, 0.3, 0.6, ROOMY)
    gain, spread = dealt.uniform(0.25, 0.7), dealt.uniform(10, 20)
    rule: dict[str, Any] = {"target_kl": dealt.uniform(0.4, 0.8)}
    rule |= {"horizon": run.batch / gain * (15 if cured else 1)}
    rule |= {"lower": run.beta / spread, "upper": run.beta * spread}
    kind = (
        {"class": "ZieglerBeta", "clip": 0.9},
        {"class": "PIDBeta", "kp": dealt.uniform(0, 1), "ki": 1.0},
    )[seed % 2]
    route = f"{kind['class']}, horizon of {rule['horizon'] / run.batch:.3g} batches"
    with warnings.catch_warnings():
        # A swing may rest at a bound for longer than the controller bears. The log is to show it unaided.
        warnings.simplefilter("ignore", UnreachableTargetWarning)
        return play(replace(run, controller=kind | rule), world, route=route)


@scene("negative-kl")
def negative_kl(seed: int, cured: bool) -> Produced:
    """Log as KL what is none, by two causes: seeds that are even swap the sign, odd ones the sampler.

    ref - policy is charged and logged, or only logged. Completions are drawn from the first weights, at a
    temperature from 0.5 to 0.75, from the two most probable tokens, or at a temperature from 1.3 to 1.7, and
    scored with the policy at temperature 1. beta is 0.2 to 0.5. Cure: the right sign, the same distribution.
    """
    dealt = dice("negative-kl", seed)
    run, world = _run_in_world(seed, dealt, practice(dealt) if seed % 2 else _in_reward(dealt), 0.2, 0.5)
    cold, hot = dealt.uniform(0.5, 0.75), dealt.uniform(1.3, 1.7)
    signs: tuple[tuple[str, Charge], ...] = (
        ("sign swapped in charge and log", partial(per_nat, times=1.0)),
        ("sign swapped in the log", per_nat),
    )
    samplers: tuple[tuple[str, Engine], ...] = (
        ("drawn from the first weights", first_weights),
        (f"drawn at temperature {cold:.2f}", partial(tempered, temperature=cold)),
        ("drawn from the top 2", partial(tempered, temperature=1.0, top_k=2)),
        (f"drawn at temperature {hot:.2f}", partial(tempered, temperature=hot)),
    )
    if cured:
        return play(run, world, route="same distribution" if seed % 2 else "right sign")
    if seed % 2:
        route, engine = samplers[seed // 2 % 4]
        return _play_with(_Elsewhere(run, world, engine), route)
    route, charge = signs[seed // 2 % 2]
    return _play_with(_Charging(run, world, charge, swapped=True), route)


@scene("unit-mix-up")
def unit_mix_up(seed: int, cured: bool) -> Produced:
    """Set beta as a price per nat of the sequence, and charge something else.

    By turns of the seed the mean over tokens, bits, the KL twice, or nothing. beta is 0.2 to 0.6. Cure:
    charge beta for every nat, once.
    """
    dealt = dice("unit-mix-up", seed)
    run, world = _run_in_world(seed, dealt, _in_reward(dealt), 0.2, 0.6)
    ways: tuple[tuple[str, Charge], ...] = (
        ("mean over tokens", per_mean),
        ("bits", partial(per_nat, times=-1 / NATS_PER_BIT)),
        ("charged twice", partial(per_nat, times=-2.0)),
        ("never charged", partial(per_nat, times=0.0)),
    )
    route, charge = ways[seed % 4]
    if cured:
        return play(run, world, route="every nat once")
    return _play_with(_Charging(run, world, charge), route)


def _in_reward(dealt: Random) -> dict[str, Any]:
    """Return an algorithm that has its KL in the reward, and how it is trained."""
    while (how := practice(dealt))["algorithm"] == "grpo":
        pass
    return how


def _run_in_world(
    seed: int,
    dealt: Random,
    how: dict[str, Any],
    least: float,
    most: float,
    places: tuple[str, ...] = PLACES,
) -> tuple[Run, World]:
    """Return a run on the gold reward, with a beta between two, and a world for it."""
    place = dealt.choice(places)
    scale = 0.5 if how.get("advantages", "z_score") == "z_score" and how["algorithm"] == "grpo" else 1.0
    beta = scale * dealt.uniform(least, most)  # beside z-scores it is in another unit
    run = Run(task=name_of(place), seed=seed, world_seed=seed, beta=beta, **how)
    return run, world_of(place, seed)


def _play_with(learner: Learner, route: str) -> Produced:
    """Train as `play` does, but with another learner."""
    training = train(learner.run, world=learner.world)
    training.learner = learner
    return Produced(learner.run, list(training), learner.world, route)
