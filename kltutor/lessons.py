"""What one run does in a step of its algorithm, less what involves parameters.

A step is a generator. It asks to `Draw` completions, to `Learn` from them, to `Look` at some, or to `Move`
down a loss, and whoever holds the parameters answers: `Learner` for one run, `Stack` for many at a time.
"""

from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor import exact
from kltutor.algorithms import FROM_PAIRS, Comparison, sft
from kltutor.estimators import full_vocab_kl
from kltutor.finite import check_loss, logits_stay_finite
from kltutor.masking import reduce
from kltutor.offline import Offline
from kltutor.records import Record, measure, pair_metrics, rollout_metrics
from kltutor.rollout import Rollout, ask
from kltutor.run import Run
from kltutor.schedules import Controller
from kltutor.tasks import Policy
from kltutor.world import World


class Draw(NamedTuple):
    """Asks for a completion to each prompt, by its number: a `Rollout`."""

    prompt: Int[Tensor, "*stack batch"]


class Look(NamedTuple):
    """Asks what the policy says of completions: a `Now`."""

    prompts: Int[Tensor, "*stack batch length"]
    tokens: Int[Tensor, "*stack batch time"]
    mask: Bool[Tensor, "*stack batch time"]
    differentiable: bool


class Move(NamedTuple):
    """Asks for a step down a loss, at the rates of policy and critic: the norm of the policy's gradient."""

    loss: Float[Tensor, ""]
    rate: float
    value_rate: float


class Learn(NamedTuple):
    """Asks for a look at drawn completions and a step down the loss of the algorithm: what both show."""

    rollout: Rollout
    beta: float
    rate: float
    value_rate: float


Request = Draw | Look | Move | Learn
Result = TypeVar("Result")
Lesson = Generator[Request, Any, Result]


class Update(NamedTuple):
    """What one step reports; loss and norm are means over its updates."""

    loss: float
    gradient_norm: float  # of the policy, before it is shortened
    sampled: dict[str, float]
    kl: float | None  # what the controller measures, if anything


class Course:
    """The steps of one run, with the generator of everything it draws, and its data."""

    def __init__(self, run: Run, world: World) -> None:
        """Seed the generator; ValueError as `Offline`."""
        self.run, self.world = run, world
        self.generator = torch.Generator().manual_seed(run.seed)
        reads = run.data != "rollouts" and run.algorithm != "exact"
        self.offline = Offline(run, world) if reads else None
        rule = run.rule()
        self._moves, self._whole = rule.measures == "old‖policy", rule.unit == "nats per sequence"

    def record(
        self, step: int, controller: Controller, policy: Policy, clock: Callable[[], float]
    ) -> Lesson[Record]:
        """Measure the policy, make a step unless the last is made, move the controller: the record of it."""
        run, beta = self.run, controller.beta
        share = 1 - step / run.steps if run.decay == "linear" else 1.0
        found, made = None, None
        if step % run.exact_every == 0 or step == run.steps:
            with logits_stay_finite(step):
                found = measure(run, self.world, policy, beta)
        if step < run.steps:
            made = yield from self.lesson(step, share, beta, policy)
            if made.kl is not None:
                controller.update(made.kl, max(run.batch, 1))
        return Record(
            step=step,
            episodes=run.batch * min(step + 1, run.steps),
            seconds=clock(),
            beta=beta,
            rate=share * run.rate,
            loss=None if made is None else made.loss,
            gradient_norm=None if made is None else made.gradient_norm,
            sampled={} if made is None else made.sampled,
            exact=found,
        )

    def lesson(self, step: int, share: float, beta: float, policy: Policy) -> Lesson[Update]:
        """Make one step at a share of the rates; `policy` is only called, for sums over all completions."""
        if self.run.data == "rollouts":
            return self._from_rollouts(share, beta)
        if self.run.algorithm == "exact":
            return self._from_sums(step, share, beta, policy)
        return self._from_data(step, share, beta, policy)

    def precision(self) -> AbstractContextManager[None]:
        """Return the context in which the policy computes."""
        if self.run.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(torch.device(self.run.device).type, torch.bfloat16)

    def _from_rollouts(self, share: float, beta: float) -> Lesson[Update]:
        run = self.run
        rollout: Rollout = yield Draw(ask(run, self.world, self.generator))
        look_again = Look(*rollout.shown(self.world.task), differentiable=False)
        before = (yield look_again) if self._moves else None
        seen: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(run.epochs):
            for part in self._parts(rollout):
                shown = yield Learn(part, beta, share * run.rate, share * run.value_rate)
                for name, value in shown.items():
                    seen[name].append(value)
        means = {name: sum(values) / len(values) for name, values in seen.items()}
        sampled = rollout_metrics(run, beta, rollout)
        kl = sampled["kl" if self._whole else "kl_token"]
        if before is not None:
            apart = full_vocab_kl(before.logps, (yield look_again).logps)
            kl = reduce(apart, rollout.mask, "sequence_sum" if self._whole else "token_mean").item()
            sampled["kl_step"] = kl
        return Update(means.pop("loss"), means.pop("norm"), sampled | means, kl)

    def _parts(self, rollout: Rollout) -> list[Rollout]:
        """Return the minibatches of one epoch, each of whole groups."""
        run = self.run
        if run.minibatches == 1:
            return [rollout]
        order = torch.randperm(run.batch // run.group, generator=self.generator).to(rollout.group.device)
        rows = order[:, None] * run.group + torch.arange(run.group, device=order.device)
        return [rollout.rows(part.flatten()) for part in rows.chunk(run.minibatches)]

    def _move(self, step: int, share: float, loss: Tensor) -> Move:
        check_loss(step, loss)
        return Move(loss, share * self.run.rate, share * self.run.value_rate)

    def _from_data(self, step: int, share: float, beta: float, policy: Policy) -> Lesson[Update]:
        run, offline = self.run, self.offline
        assert offline is not None
        with logits_stay_finite(step):
            if run.data == "population":
                with self.precision():
                    read = offline.read_all(policy)
            else:
                shown = offline.draw(self.generator)
                read = shown.read((yield Look(*shown.rows(run.device), differentiable=True)).logp)
            if isinstance(read, Comparison):
                loss, sampled = FROM_PAIRS[run.algorithm](run, beta, read), pair_metrics(beta, read)
            else:
                loss, sampled = sft(*read), {}
        return Update(loss.item(), (yield self._move(step, share, loss)), sampled, None)

    def _from_sums(self, step: int, share: float, beta: float, policy: Policy) -> Lesson[Update]:
        run, world = self.run, self.world
        with logits_stay_finite(step):
            logp = exact.seq_logp(policy, world.task)
            gain = exact.expectation(world.reward(run).to(logp.device), logp, world.task)
            cost = exact.mean_kl(logp, world.ref_seq_logp.to(logp.device), world.task)
        loss, kl = beta * cost - gain, cost.item()
        if not self._whole:
            lengths = world.task.mask.sum(-1).double().to(logp.device).expand_as(logp)
            kl /= exact.expectation(lengths, logp.detach(), world.task).item()
        if run.optimiser == "natural":
            share /= beta  # natural steps are in units of 1/beta
        return Update(loss.item(), (yield self._move(step, share, loss)), {}, kl)
