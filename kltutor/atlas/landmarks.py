"""The known gradients and quantities of one triple (policy, ref, old): summed once, asked many times."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kltutor import exact
from kltutor.atlas.placements import Placement, Samples, angle, mean_field
from kltutor.checks import check_number
from kltutor.placement import Estimator, Level
from kltutor.tasks import Policy, Task


@dataclass(frozen=True, eq=False)
class Landmarks:
    """What a KL term may turn out to estimate, and which gradients it may have, at the given policies.

    Each sum is made when it is first asked for, and kept: the policies must not move in between.

    Attributes:
        policy: the policy that learns.
        ref: the reference.
        old: the policy that drew stale samples.
        task: what to sum over.

    Example:
        >>> from kltutor import TabularPolicy, tasks
        >>> task, seed = tasks.bandit(), torch.Generator().manual_seed(0)
        >>> known = Landmarks(*(TabularPolicy.random(task, seed) for _ in range(3)), task)
        >>> known.name_gradient(2 * known.gradients["KL(ref‖π)"])
        '2·∇KL(ref‖π)'
        >>> known.name_value(known.quantities["KL(old‖π)"])
        'KL(old‖π)'
    """

    policy: nn.Module
    ref: Policy
    old: Policy
    task: Task

    @cached_property
    def gradients(self) -> dict[str, Float[Tensor, " parameter"]]:
        """Return the known gradients by name.

        "per token" means Σ_t E[·| prefix] with the prefixes drawn by the policy but not differentiated;
        E_old holds the samples of the older policy fixed.
        """
        policy, ref, old, task = self.policy, self.ref, self.old, self.task
        ref_logp = exact.seq_logp(ref, task).detach()

        def field_of(
            estimator: Estimator, level: Level = "token", samples: Samples = "on-policy"
        ) -> Float[Tensor, " parameter"]:
            return mean_field(Placement(estimator, "loss", level, samples), policy, ref, old, task)

        def mean_of(value: Callable[[Tensor], Tensor]) -> Float[Tensor, " parameter"]:
            """Return ∇E_π[value(log-ratio of the sequence)], sampler and value both differentiated."""

            def objective(p: nn.Module) -> Float[Tensor, ""]:
                logp = exact.seq_logp(p, task)
                log_ratio = (logp - ref_logp).masked_fill(logp == -torch.inf, 0)  # never drawn: no part
                return exact.expectation(value(log_ratio), logp, task)

            return exact.gradient(objective, policy)

        reverse, forward = mean_of(lambda d: d), field_of("k3", "sequence")
        return {
            "KL(π‖ref)": reverse,
            "KL(ref‖π)": forward,
            "KL(π‖ref) per token": field_of("k2"),
            "KL(ref‖π) per token": field_of("k3"),
            "-KL(old‖π)": -exact.gradient(lambda p: exact.kl(old, p, task), policy),
            "½E[log²] of the sequence": mean_of(lambda d: d.square() / 2),
            "½χ²(π‖ref)": mean_of(lambda d: d.exp() / 2),
            "KL(π‖ref) - KL(ref‖π)": reverse - forward,
            "E_old[k2] of the sequence": field_of("k2", "sequence", "stale"),
            "E_old[k3] of the sequence": field_of("k3", "sequence", "stale"),
        }

    @cached_property
    def quantities(self) -> dict[str, float]:
        """Return the known quantities by name, nats per sequence where they are KLs.

        They are the KLs of the sequence in all directions between policy, ref and old, ½E[log²] and E|log|
        of tokens and sequences under policy and old, and χ²(π‖ref) - KL(π‖ref).
        """
        with torch.no_grad():
            tokens = {
                name: exact.token_logps(policy, self.task)
                for name, policy in (("π", self.policy), ("ref", self.ref), ("old", self.old))
            }
        logps = {name: x.sum(-1) for name, x in tokens.items()}
        found = {
            f"KL({a}‖{b})": exact.expectation(logps[a] - logps[b], logps[a], self.task).item()
            for a, b in itertools.permutations(logps, 2)
        }
        for other, sampler in (("ref", "π"), ("ref", "old"), ("old", "π"), ("old", "old")):
            each = tokens["π"] - tokens[other]
            whole = each.sum(-1)
            for kind, value in (
                (f"½E_{sampler}[log²(π/{other})] of tokens", each.square().sum(-1) / 2),
                (f"½E_{sampler}[log²(π/{other})] of the sequence", whole.square() / 2),
                (f"E_{sampler}|log(π/{other})| of tokens", each.abs().sum(-1)),
            ):
                found[kind] = exact.expectation(value, logps[sampler], self.task).item()
        chi2 = exact.expectation((logps["π"] - logps["ref"]).expm1(), logps["π"], self.task).item()
        return found | {"χ²(π‖ref) - KL(π‖ref)": chi2 - found["KL(π‖ref)"]}

    @cached_property
    def length(self) -> float:
        """Return the mean length of the policy's completions, tokens."""
        lengths = self.task.mask.sum(-1).double().expand(len(self.task.prompts), -1)
        return exact.expectation(lengths, exact.seq_logp(self.policy, self.task).detach(), self.task).item()

    def name_gradient(self, gradient: Float[Tensor, " parameter"]) -> str:
        """Return which known one a mean gradient is, up to a positive factor, or its angle to ∇KL(π‖ref).

        Raises:
            ValueError: the gradient is nan or infinite, or has another length than the policy has
                parameters; or KL(π‖ref) is infinite, so that no angle to its gradient exists.
        """
        if not gradient.isfinite().all():
            raise ValueError("gradient holds nan or an infinite entry; a finite one is expected.")
        true = self.gradients["KL(π‖ref)"]
        if gradient.shape != true.shape:
            raise ValueError(f"gradient has {len(gradient)} entries; {len(true)} parameters are expected.")
        if not true.isfinite().all():
            raise ValueError("∇KL(π‖ref) is not finite; a ref that can draw all that policy can is expected.")
        if gradient.norm() <= 1e-10 * true.norm():
            return "0"
        for name, landmark in self.gradients.items():
            factor = gradient @ landmark / landmark.square().sum()
            if factor > 0 and (gradient - factor * landmark).norm() <= 1e-8 * gradient.norm():
                sign, scale = "-" * name.startswith("-"), f"{factor.item():.4g}·"
                return f"{sign}{'' if abs(factor - 1) < 1e-8 else scale}∇{name.removeprefix('-')}"
        return f"none known, {angle(gradient, true).item():.0f}° from ∇KL(π‖ref)"

    def name_value(self, value: float) -> str:
        """Return which known quantity an expectation is, per sequence or per token of the mean length.

        Raises:
            ValueError: value is nan or infinite.
        """
        check_number(value=value)
        quantities = {name: found for name, found in self.quantities.items() if math.isfinite(found)}
        scale = quantities.get("KL(π‖ref)", 0.0)
        if abs(value) <= 1e-10 * scale:
            return "0"
        for name, quantity in quantities.items():
            for factor, words in (
                (1.0, ""),
                (-1.0, "-"),
                (1 / self.length, "per-token "),
                (-1 / self.length, "-per-token "),
            ):
                if abs(value - factor * quantity) <= 1e-9 * abs(quantity):
                    return words + name
        return f"none known, {value / scale:.4g}·KL(π‖ref)" if scale > 0 else f"none known, {value:.4g}"


def landmarks(
    policy: nn.Module, ref: Policy, old: Policy, task: Task
) -> dict[str, Float[Tensor, " parameter"]]:
    """Return the gradients that a KL term may turn out to have, by name: `Landmarks.gradients`.

    Example:
        >>> from kltutor import TabularPolicy, tasks
        >>> task, seed = tasks.bandit(), torch.Generator().manual_seed(0)
        >>> list(landmarks(*(TabularPolicy.random(task, seed) for _ in range(3)), task))[:2]
        ['KL(π‖ref)', 'KL(ref‖π)']
    """
    return Landmarks(policy, ref, old, task).gradients


def name_gradient(
    gradient: Float[Tensor, " parameter"], policy: nn.Module, ref: Policy, old: Policy, task: Task
) -> str:
    """Return the name of one gradient; keep a `Landmarks` and ask it where there are several."""
    return Landmarks(policy, ref, old, task).name_gradient(gradient)


def name_value(value: float, policy: nn.Module, ref: Policy, old: Policy, task: Task) -> str:
    """Return the name of one expectation; keep a `Landmarks` and ask it where there are several.

    Example:
        >>> from kltutor import TabularPolicy, exact, tasks
        >>> task, seed = tasks.bandit(), torch.Generator().manual_seed(0)
        >>> policy, ref, old = (TabularPolicy.random(task, seed) for _ in range(3))
        >>> name_value(exact.kl(old, policy, task).item(), policy, ref, old, task)
        'KL(old‖π)'
    """
    return Landmarks(policy, ref, old, task).name_value(value)
