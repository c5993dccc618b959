"""A policy that learns: one step of any algorithm, from a batch to moved parameters."""

import copy
import math
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from kltutor import exact
from kltutor.algorithms import FROM_PAIRS, FROM_ROLLOUTS, sft
from kltutor.checkpoints import below
from kltutor.estimators import full_vocab_kl
from kltutor.finite import check_loss, check_module, check_now, logits_stay_finite
from kltutor.masking import reduce
from kltutor.model import TinyGPT, ValueHead
from kltutor.offline import Offline
from kltutor.records import pair_metrics, rollout_metrics, update_metrics
from kltutor.rollout import Now, Rollout, TabularValue, look, roll_out
from kltutor.run import Run
from kltutor.schedules import Controller
from kltutor.tasks import TabularPolicy
from kltutor.world import World

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}


class Update(NamedTuple):
    """What one step reports; loss and norm are means over its updates."""

    loss: float
    gradient_norm: float  # of the policy, before it is shortened
    sampled: dict[str, float]
    kl: float | None  # what the controller measures, if anything


class Learner:
    """A policy, its critic if it has one, their optimiser, and the generator of everything they draw."""

    def __init__(self, run: Run, world: World) -> None:
        """Start at the reference, or untrained where the reference is what is learnt.

        Raises:
            ValueError: the policy cannot start as a copy of the reference: a gpt where that is none, or a
                table where it gives some token probability 0.
        """
        self.run, self.world = run, world
        self.generator = torch.Generator().manual_seed(run.seed)
        self.policy = self._start()
        self.critic = self._start_critic() if run.algorithm == "ppo" else None
        reads = run.data != "rollouts" and run.algorithm != "exact"
        self.offline = Offline(run, world) if reads else None
        groups = [{"params": list(self.policy.parameters()), "lr": run.rate}]
        if self.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "lr": run.value_rate})
        self.optimiser = torch.optim.Adam(groups)

    def update(self, step: int, share: float, controller: Controller) -> Update:
        """Make one step at a share of the rates, with the controller's beta, which it does not move."""
        for group, rate in zip(
            self.optimiser.param_groups, (self.run.rate, self.run.value_rate), strict=False
        ):
            group["lr"] = share * rate
        if self.run.data == "rollouts":
            return self._from_rollouts(step, controller)
        if self.run.algorithm == "exact":
            return self._from_sums(step, share, controller)
        return self._from_data(step, controller.beta)

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

    def _start(self) -> nn.Module:
        run, world = self.run, self.world
        dtype = DTYPES[run.dtype]
        if run.policy == "gpt":
            if run.algorithm == "sft":
                return TinyGPT.for_task(
                    world.task,
                    generator=self.generator,
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

    def _start_critic(self) -> nn.Module:
        dtype, device = DTYPES[self.run.dtype], self.run.device
        if isinstance(self.policy, TinyGPT):
            return ValueHead(self.policy.shape.width, dtype=dtype, device=device)
        return TabularValue(self.world.task, dtype=dtype, device=device)

    def _precision(self) -> AbstractContextManager[None]:
        if self.run.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(torch.device(self.run.device).type, torch.bfloat16)

    def _from_rollouts(self, step: int, controller: Controller) -> Update:
        run, beta = self.run, controller.beta
        with self._precision(), logits_stay_finite(step):
            rollout = roll_out(run, self.world, self.policy, self.critic, self.generator)
        between = controller.measures == "old‖policy"
        before = self._look_again(rollout) if between else None
        seen: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(run.epochs):
            for part in self._parts(rollout):
                now = self._look(part)
                check_now(step, run, beta, part, now)
                loss = FROM_ROLLOUTS[run.algorithm](run, beta, part, now)
                moved = {"loss": loss.item(), "norm": self._move(step, loss)}
                for name, value in (moved | update_metrics(run, beta, part, now)).items():
                    seen[name].append(value)
        means = {name: sum(values) / len(values) for name, values in seen.items()}
        sampled = rollout_metrics(rollout)
        kl = sampled["kl" if controller.unit == "nats per sequence" else "kl_token"]
        if before is not None:
            apart = full_vocab_kl(before.logps, self._look_again(rollout).logps)
            whole = controller.unit == "nats per sequence"
            kl = reduce(apart, rollout.mask, "sequence_sum" if whole else "token_mean").item()
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

    def _look(self, rollout: Rollout) -> Now:
        prompts = self.world.task.prompt_tokens.to(rollout.tokens.device)[rollout.prompt]
        with self._precision():
            return look(self.policy, self.critic, prompts, rollout.tokens, rollout.mask)

    @torch.no_grad()
    def _look_again(self, rollout: Rollout) -> Now:
        return self._look(rollout)

    def _from_data(self, step: int, beta: float) -> Update:
        run, offline = self.run, self.offline
        assert offline is not None
        with logits_stay_finite(step):
            if run.algorithm == "sft":
                with self._precision():
                    shown, weights = offline.show(self.policy, self.generator)
                loss, sampled = sft(shown, weights), {}
            else:
                with self._precision():
                    pairs = offline.compare(self.policy, self.generator)
                loss, sampled = FROM_PAIRS[run.algorithm](run, beta, pairs), pair_metrics(beta, pairs)
        return Update(loss.item(), self._move(step, loss), sampled, None)

    def _from_sums(self, step: int, share: float, controller: Controller) -> Update:
        run, world, policy = self.run, self.world, self.policy
        length = world.task.mask.sum(-1).double()

        def value(policy: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
            logp = exact.seq_logp(policy, world.task)
            gain = exact.expectation(world.reward(run).to(logp.device), logp, world.task)
            cost = exact.mean_kl(logp, world.ref_seq_logp.to(logp.device), world.task)
            return gain - controller.beta * cost, cost, logp

        with logits_stay_finite(step):
            objective, cost, logp = value(policy)
        kl = cost.item()
        if controller.unit == "nats per token":
            lengths = length.to(logp.device).expand_as(logp)
            kl /= exact.expectation(lengths, logp.detach(), world.task).item()
        if run.optimiser == "adam":
            return Update(-objective.item(), self._move(step, -objective), {}, kl)
        self.optimiser.zero_grad()
        (-objective).backward()
        norm = clip_grad_norm_(policy.parameters(), math.inf).item()
        size = share * run.rate / controller.beta
        moved = exact.ascend(policy, lambda p: value(p)[0], world.task, steps=1, step_size=size)
        with torch.no_grad():
            vector_to_parameters(parameters_to_vector(moved.parameters()), policy.parameters())
        check_module(step, "policy", policy, gradient=False)
        return Update(-objective.item(), norm, {}, kl)

    def _move(self, step: int, loss: Tensor) -> float:
        """Make an optimiser's step down a loss and return the norm of the policy's gradient."""
        check_loss(step, loss)
        self.optimiser.zero_grad()
        loss.backward()
        norms = []
        for name, module in self._modules():
            check_module(step, name, module, gradient=True)
            norms.append(clip_grad_norm_(module.parameters(), self.run.max_gradient_norm or math.inf).item())
        self.optimiser.step()
        for name, module in self._modules():
            check_module(step, name, module, gradient=False)
        return norms[0]
