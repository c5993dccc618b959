"""A policy that learns: the parameters of one run, and the optimiser that moves them."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from kltutor import exact
from kltutor.algorithms import FROM_ROLLOUTS
from kltutor.checkpoints import below
from kltutor.finite import check_loss, check_module, check_now, logits_stay_finite
from kltutor.lessons import Course, Draw, Learn, Look, Move, Request
from kltutor.model import TinyGPT, ValueHead
from kltutor.records import Record, update_metrics
from kltutor.rollout import TabularValue, complete, draw, look
from kltutor.run import Run
from kltutor.schedules import Controller
from kltutor.tasks import TabularPolicy, Task
from kltutor.world import World

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}


class Learner(Course):
    """A policy, its critic if it has one, their optimiser, and the course of steps that they make."""

    def __init__(self, run: Run, world: World) -> None:
        """Start at the reference, or untrained where the reference is what is learnt.

        Raises:
            ValueError: as `start`.
        """
        super().__init__(run, world)
        self.policy = start(run, world, self.generator)
        self.critic = new_critic(self.policy, None) if run.algorithm == "ppo" else None
        groups = [{"params": list(self.policy.parameters()), "lr": run.rate}]
        if self.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "lr": run.value_rate})
        self.optimiser = torch.optim.Adam(groups)
        self._moved = False

    def advance(self, step: int, controller: Controller, clock: Callable[[], float]) -> Record:
        """Return the record of a step, made unless the last one has been, and move the controller."""
        lesson, reply = self.record(step, controller, self.policy, clock), None
        try:
            while True:
                request = lesson.send(reply)
                try:
                    reply = self._answer(step, request)
                except (ValueError, ArithmeticError) as error:
                    lesson.throw(error)
        except StopIteration as stop:
            return cast(Record, stop.value)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        found = {"generator": self.generator.get_state()}
        for name, module in self._modules():
            found |= {f"{name}.{own}": value for own, value in module.state_dict().items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{i}.{own}": value for own, value in moments.items()}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to where `tensors` was taken."""
        self.generator.set_state(tensors["generator"])
        for name, module in self._modules():
            module.load_state_dict(below(name, tensors))
        moments: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in below("optimiser", tensors).items():
            index, own = name.split(".")
            moments[int(index)][own] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": dict(moments), "param_groups": groups})

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [("policy", self.policy)] + ([("critic", self.critic)] if self.critic is not None else [])

    def _answer(self, step: int, request: Request) -> Any:
        run = self.run
        if isinstance(request, Move):
            return self._descend(step, *request)
        with self.precision(), logits_stay_finite(step, moved=self._moved):
            said = read(request, self.policy, self.critic, self.world.task, self.generator)
        if isinstance(request, Draw):
            return complete(run, self.world, request.prompt, *said)
        if isinstance(request, Look):
            return said
        (rollout, beta, *rates), now = request, said
        check_now(step, run, beta, rollout, now)
        loss = FROM_ROLLOUTS[run.algorithm](run, beta, rollout, now)
        check_loss(step, loss)
        norm = self._descend(step, loss, *rates)
        return {"loss": loss.item(), "norm": norm} | update_metrics(run, beta, rollout, now)

    def _descend(self, step: int, loss: Tensor, *rates: float) -> float:
        """Make an optimiser's step down a loss and return the norm of the policy's gradient."""
        for group, rate in zip(self.optimiser.param_groups, rates, strict=False):
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        self._moved = True
        norms = []
        for name, module in self._modules():
            check_module(step, name, module, gradient=True)
            norms.append(clip_grad_norm_(module.parameters(), self.run.max_gradient_norm or math.inf).item())
        if self.run.optimiser == "natural":
            natural_step(step, self.policy, self.world.task, rates[0])
        else:
            self.optimiser.step()
        for name, module in self._modules():
            check_module(step, name, module, gradient=False)
        return norms[0]


def start(run: Run, world: World, generator: torch.Generator) -> TinyGPT | TabularPolicy:
    """Return the policy that a run starts from: a copy of the reference, or untrained to learn it.

    Raises:
        ValueError: the policy cannot start as a copy of the reference: a gpt where that is none, or a table
            where it gives some token probability 0.
    """
    dtype = DTYPES[run.dtype]
    if run.policy == "gpt":
        if run.algorithm == "sft":
            return TinyGPT.for_task(
                world.task,
                generator=generator,
                dtype=dtype,
                device=run.device,
                layers=run.layers,
                heads=run.heads,
                width=run.width,
            )
        if not isinstance(world.ref, TinyGPT):
            kind = type(world.ref).__name__
            raise ValueError(f"ref is a {kind}; a gpt starts as a copy of a TinyGPT.")
        return copy.deepcopy(world.ref).to(run.device, dtype).requires_grad_(True)
    logits = torch.zeros_like(world.ref_logps) if run.algorithm == "sft" else world.ref_logps
    if not logits.isfinite().all():
        raise ValueError(
            "the reference gives some token probability 0, so no table of logits can start as its copy. "
            "Pass a world whose reference says everything, however rarely."
        )
    return TabularPolicy(world.task, logits.to(run.device, dtype))


def read(
    request: Draw | Look | Learn,
    policy: TinyGPT | TabularPolicy,
    critic: nn.Module | None,
    task: Task,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Any:
    """Return what a policy draws, as `draw`, or says of completions, as `look`; or what a stack does.

    Raises:
        ValueError: its logits are not finite.
    """
    if isinstance(request, Draw):
        return draw(policy, critic, task.prompt_tokens[request.prompt], task.horizon, generator)
    if isinstance(request, Learn):
        return look(policy, critic, *request.rollout.shown(task))
    with torch.set_grad_enabled(request.differentiable):
        return look(policy, None, request.prompts, request.tokens, request.mask)


def new_critic(policy: TinyGPT | TabularPolicy, policies: int | None) -> nn.Module:
    """Return values that fit a policy, 0 everywhere; for a stack, as many as it holds."""
    parameter = next(policy.parameters())
    like: dict[str, Any] = {"dtype": parameter.dtype, "device": parameter.device, "policies": policies}
    if isinstance(policy, TinyGPT):
        return ValueHead(policy.shape.width, **like)
    return TabularValue(policy.task, **like)


def natural_step(step: int, policy: nn.Module, task: Task, size: float) -> None:
    """Go down the gradient that a table holds, divided by the Fisher matrix of each prefix."""
    gradients = [each.grad for each in policy.parameters() if each.grad is not None]
    downhill = -parameters_to_vector(gradients)
    with logits_stay_finite(step, moved=True):
        moved = exact.ascend(policy, lambda _: downhill, task, steps=1, step_size=size)
    with torch.no_grad():
        vector_to_parameters(parameters_to_vector(moved.parameters()), policy.parameters())
