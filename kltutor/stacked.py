"""Many runs in one program: their policies on one leading axis, each run as if it were alone.

Every run has its own `Course`: generator, controller, rates, records. What involves parameters is done for
all at once: one forward, one backward, one step of Adam. Runs that share the options of their loss have it
computed together. Natural steps are the exception: the gradients are stacked, and the steps are made one
policy after another.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kltutor.algorithms import FROM_ROLLOUTS
from kltutor.axis import alike, join, pick, split
from kltutor.checks import check_device
from kltutor.descent import Descent
from kltutor.finite import NonFiniteError, check_loss, check_now, logits_stay_finite
from kltutor.learner import natural_step, new_critic, read, start
from kltutor.lessons import Course, Draw, Learn, Move
from kltutor.model import TinyGPT
from kltutor.records import Record, update_metrics
from kltutor.rollout import Now, Rollout, complete
from kltutor.run import Run
from kltutor.sampling import Sample
from kltutor.tasks import TabularPolicy
from kltutor.train import make_world
from kltutor.world import World

# What has to be the same. All else is each run's own: beta, controller, seed, rates, loss and its KL, reward.
SHARED = (
    *("task", "algorithm", "policy", "layers", "heads", "width", "device", "dtype", "optimiser"),
    *("world_seed", "ref_scale", "ref_steps", "data", "data_size", "flip"),
    *("steps", "batch", "epochs", "minibatches"),
)
# What runs share whose losses are computed together, besides whether beta is above 0.
LOSS = (
    *("kl_placement", "kl_estimator", "kl_level", "kl_reduction", "kl_correction", "kl_ratio"),
    *("reduction", "advantages", "clip_eps", "gamma", "gae_lambda"),
)


def stack_key(run: Run) -> tuple[object, ...]:
    """Return what runs must have in common to train in one program.

    Example:
        >>> runs = [Run(beta=0.1), Run(beta=0.2, seed=5, rate=0.01), Run(steps=7)]
        >>> [stack_key(run) == stack_key(runs[0]) for run in runs]
        [True, True, False]
    """
    # KL(old ‖ policy) takes two more looks at each batch, and what is asked for is asked for by all.
    return *(getattr(run, name) for name in SHARED), run.rule().measures


class Stack(Iterator[tuple[Record | None, ...]]):
    """Runs under way together: an iterator of their records, one tuple a step.

    The records are those of `train(run)` for each run alone, `seconds` apart, which are those of the whole
    stack, and up to rounding: about 1e-13 in float64, more where a gradient is nothing but rounding, which
    Adam enlarges, or where a count hangs on a tie. A run that leaves the numbers stops; the others go on as
    without it.

    Attributes:
        runs, world: as given.
        step: how many have been made.
        failed: what stopped each run that was stopped, by its index.

    Example:
        >>> stack = Stack([Run(algorithm="exact", beta=beta, steps=30) for beta in (0.5, 2.0)])
        >>> first, *_, last = stack
        >>> last[0].exact.kl > last[1].exact.kl > 0
        True
    """

    def __init__(self, runs: Sequence[Run], *, world: World | None = None) -> None:
        """Stand before the first step.

        Args:
            runs: of one `stack_key`, at least one.
            world: what to act in, instead of the task and the reference that the runs name.

        Raises:
            ValueError: there is no run, two runs do not share a key, or as `train`.
        """
        if not runs:
            raise ValueError("runs is empty; at least one is expected.")
        names = (*SHARED, "what the controller measures")
        for i, run in enumerate(runs):
            for name, first, own in zip(names, stack_key(runs[0]), stack_key(run), strict=True):
                if first != own:
                    raise ValueError(
                        f"runs[0] and runs[{i}] differ in {name}, {first!r} and {own!r}; the runs of a stack "
                        "share their `stack_key`."
                    )
        check_device(runs[0].device)
        self.runs, self.world = tuple(runs), world or make_world(runs[0])
        self.step, self.failed = 0, dict[int, NonFiniteError]()
        self._courses = [Course(run, self.world) for run in runs]
        for course in self._courses:
            course.offline = self._courses[0].offline  # the same data, of which a population is large
        self._controllers = [run.rule() for run in runs]
        self._live = list(range(len(runs)))  # which run each policy of the stack is of
        starts: list[Any] = [start(each.run, self.world, each.generator) for each in self._courses]
        self._policy: TinyGPT | TabularPolicy = type(starts[0]).stack(starts)
        self._critic = new_critic(self._policy, len(runs)) if runs[0].algorithm == "ppo" else None
        critics = {} if self._critic is None else {"critic": self._critic}
        self._descent, self._has_moved = Descent({"policy": self._policy} | critics), False
        self._said: dict[bool, tuple[Tensor, Sequence[Tensor]]] = {}  # by whether it can be learnt from
        self._since = time.perf_counter()

    def policy(self, index: int) -> TinyGPT | TabularPolicy:
        """Return a copy of the policy of one run as it now is; ValueError if that was stopped."""
        if index in self.failed or index not in self._live:
            why = f"was stopped, {self.failed[index]}" if index in self.failed else "does not exist."
            raise ValueError(f"run {index} {why}")
        return self._policy.policy(self._live.index(index))

    def __next__(self) -> tuple[Record | None, ...]:
        """Make one step of every run and return their records, None for one that was stopped."""
        live = [i for i in self._live if i not in self.failed]
        if self.step > self.runs[0].steps or not live:
            raise StopIteration
        self._keep(live)
        lessons = {
            i: self._courses[i].record(self.step, self._controllers[i], _View(self, i), self._clock)
            for i in live
        }
        records, replies = dict[int, Record](), dict[int, Any].fromkeys(live)
        while replies:
            requests = {}
            for i, reply in replies.items():
                go_on: Callable[[Any], Any] = lessons[i].send
                if isinstance(reply, Exception):
                    go_on = lessons[i].throw
                try:
                    requests[i] = go_on(reply)
                except StopIteration as stop:
                    records[i] = stop.value
                except NonFiniteError as error:
                    self.failed[i] = error
            replies = self._answer(requests)
        self.step += 1
        return tuple(records.get(i) for i in range(len(self.runs)))

    def say(self, index: int, rows: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of one run, at rows that all are asked for: the first call answers for all."""
        learns = torch.is_grad_enabled()
        asked, every = self._said.get(learns, (None, ()))
        if asked is None or not torch.equal(asked, rows):
            home = next(self._policy.parameters()).device
            every = self._policy(rows.to(home).expand(len(self._live), *rows.shape)).unbind()
            self._said[learns] = rows, every
        return every[self._live.index(index)]

    def _clock(self) -> float:
        return time.perf_counter() - self._since

    def _answer(self, requests: Mapping[int, Any]) -> dict[int, Any]:
        """Return the answer to each run that asks, or the error that it gets. All ask for the same."""
        if not requests:
            return {}
        kind = type(next(iter(requests.values())))
        if kind is Move:
            return self._move(requests)
        self._keep(list(requests))
        generators = [self._courses[i].generator for i in requests]
        states = [generator.get_state() for generator in generators]
        asked = join(list(requests.values()))
        try:
            with self._courses[0].precision():
                said = read(asked, self._policy, self._critic, self.world.task, generators)
        except ValueError:  # of which policy?
            errors = dict[int, Any]()
            for i, generator, state in zip(requests, generators, states, strict=True):
                generator.set_state(state)
                try:
                    self._read_alone(i, requests[i], torch.Generator().set_state(state))
                except NonFiniteError as error:
                    errors[i] = error
            if not errors:
                raise
            return errors | self._answer({i: each for i, each in requests.items() if i not in errors})
        if kind is Draw:
            return self._complete(requests, asked.prompt, said)
        if kind is Learn:
            return self._learn(requests, asked.rollout, said)
        return dict(zip(requests, split(said), strict=True))

    def _read_alone(self, index: int, request: Any, generator: torch.Generator) -> None:
        """Have one policy answer, for its error."""
        with (
            torch.no_grad(),
            self._courses[0].precision(),
            logits_stay_finite(self.step, moved=self._has_moved),
        ):
            read(request, self.policy(index), None, self.world.task, generator)

    def _complete(
        self, requests: Mapping[int, Any], prompt: Int[Tensor, "stack batch"], drawn: tuple[Sample, Any]
    ) -> dict[int, Rollout]:
        """Return the rollout of each run."""
        found: dict[int, Rollout] = {}
        scored = {i: (self.runs[i].reward, self.runs[i].group) for i in requests}
        for runs, rows in alike(scored):
            sample, values, asked = pick((*drawn, prompt), rows, len(requests))
            every = complete(self.runs[runs[0]], self.world, asked, sample, values)
            found |= zip(runs, split(every), strict=True)
        return found

    def _learn(self, requests: Mapping[int, Any], rollouts: Rollout, now: Now) -> dict[int, Any]:
        """Make one step of every run down its loss, and return what it shows or the error of the run."""
        found: dict[int, Any] = {}
        options = {
            i: (*(getattr(self.runs[i], name) for name in LOSS), request.beta > 0)
            for i, request in requests.items()
        }
        for runs, rows in alike(options):
            betas = [requests[i].beta for i in runs]
            found |= zip(
                runs, self._losses(runs, betas, *pick((rollouts, now), rows, len(requests))), strict=True
            )
        moves = {
            i: Move(found[i], request.rate, request.value_rate)
            for i, request in requests.items()
            if isinstance(found[i], Tensor)
        }
        norms = self._move(moves)
        with torch.no_grad():
            shown = split(now)
        for (i, request), own in zip(requests.items(), shown, strict=True):
            norm = norms.get(i, found[i])
            if not isinstance(norm, Exception):
                metrics = update_metrics(self.runs[i], request.beta, request.rollout, own)
                norm = {"loss": found[i].item(), "norm": norm} | metrics
            found[i] = norm
        return found

    def _losses(self, runs: list[int], betas: list[float], rollouts: Rollout, now: Now) -> list[Any]:
        """Return the loss of each of some runs with the same options, or its error."""
        run = self.runs[runs[0]]
        try:
            check_now(self.step, run, betas[0], rollouts, now)
            losses = FROM_ROLLOUTS[run.algorithm](run, now.logp.new_tensor(betas), rollouts, now)
            check_loss(self.step, losses)
        except (ValueError, NonFiniteError) as error:
            if len(runs) == 1:
                return [error]
            each = [pick((rollouts, now), [k], len(runs)) for k in range(len(runs))]
            return [
                self._losses([i], [beta], *own)[0] for i, beta, own in zip(runs, betas, each, strict=True)
            ]
        return list(losses.unbind())

    def _move(self, requests: Mapping[int, Move]) -> dict[int, Any]:
        """Make one step of every run that asks, and return the norm of its gradient or its error."""
        if not requests:
            return {}
        descent = self._descent
        descent.slopes([request.loss for request in requests.values()])
        errors = {self._live[k]: error for k, error in descent.check(self.step, gradient=True).items()}
        norms = descent.shorten([self.runs[i].max_gradient_norm for i in self._live])
        idle = Move(torch.zeros(()), 0.0, 0.0)  # of runs that have failed since the stack was last cut
        moves = [requests.get(i, idle) for i in self._live]
        if self.runs[0].optimiser == "natural":
            errors = self._move_naturally(moves, errors)
        else:
            descent.step([(move.rate, move.value_rate) for move in moves])
        after = descent.check(self.step, gradient=False)
        errors = {self._live[k]: error for k, error in after.items()} | errors
        self._has_moved = True
        self._said.clear()
        return {i: errors.get(i, norm) for i, norm in zip(self._live, norms, strict=True) if i in requests}

    def _move_naturally(
        self, moves: Sequence[Move], errors: dict[int, NonFiniteError]
    ) -> dict[int, NonFiniteError]:
        """Make the natural steps of runs without an error, and return the errors there are then."""
        (table,), errors = self._policy.parameters(), dict(errors)
        for k, (i, move) in enumerate(zip(self._live, moves, strict=True)):
            if move.rate == 0 or i in errors:
                continue
            single = self._policy.policy(k)
            (own,) = single.parameters()
            own.grad = None if table.grad is None else table.grad[k]
            try:
                natural_step(self.step, single, self.world.task, move.rate)
            except NonFiniteError as error:
                errors[i] = error
                continue
            with torch.no_grad():
                table[k] = own
        return errors

    def _keep(self, runs: list[int]) -> None:
        """Leave the policies of other runs out. Nothing may have yet to go backward."""
        self._said.clear()
        if runs == self._live:
            return
        self._descent.keep([self._live.index(i) for i in runs])
        if isinstance(self._policy, TinyGPT):
            self._policy.policies = len(runs)
        self._live = runs


class _View:
    """One policy of a stack, to be called."""

    def __init__(self, stack: Stack, index: int) -> None:
        self.stack, self.index = stack, index

    def __call__(self, rows: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        return self.stack.say(self.index, rows)
