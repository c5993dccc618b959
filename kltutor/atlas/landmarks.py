"""Names for what a KL term turns out to be: what its value may estimate, and what its gradient may be."""

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kltutor import exact
from kltutor.atlas.placements import Placement, Samples, angle, field
from kltutor.checks import check_number
from kltutor.placement import Estimator, Level
from kltutor.tasks import Policy, Task


def landmarks(
    policy: nn.Module, ref: Policy, old: Policy, task: Task
) -> dict[str, Float[Tensor, " parameter"]]:
    """Return the gradients that a KL term may turn out to have, by name, at the given policies.

    "per token" means Σ_t E[·| prefix] with the prefixes drawn by the policy but not differentiated; E_old
    holds the samples of the older policy fixed.

    Example:
        >>> from kltutor import TabularPolicy, tasks
        >>> task, seed = tasks.bandit(), torch.Generator().manual_seed(0)
        >>> list(landmarks(*(TabularPolicy.random(task, seed) for _ in range(3)), task))[:2]
        ['KL(π‖ref)', 'KL(ref‖π)']
    """
    ref_logp = exact.seq_logp(ref, task).detach()

    def field_of(estimator: Estimator, level: Level = "token", samples: Samples = "on-policy") -> Tensor:
        return field(Placement(estimator, "loss", level, samples), policy, ref, old, task).mean

    def mean_of(value: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ∇E_π[value(log-ratio of the sequence)], sampler and value both differentiated."""

        def objective(p: nn.Module) -> Tensor:
            logp = exact.seq_logp(p, task)
            log_ratio = (logp - ref_logp).masked_fill(logp == -torch.inf, 0)  # never drawn: no part in it
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


def name_gradient(
    gradient: Float[Tensor, " parameter"], policy: nn.Module, ref: Policy, old: Policy, task: Task
) -> str:
    """Return which landmark a mean gradient is, up to a positive factor, or its angle to ∇KL(π‖ref).

    Raises:
        ValueError: the gradient is nan or infinite, or has another length than the policy has parameters;
            or KL(π‖ref) is infinite, so that no angle to its gradient exists.
    """
    if not gradient.isfinite().all():
        raise ValueError("gradient holds nan or an infinite entry; a finite one is expected.")
    known = landmarks(policy, ref, old, task)
    true = known["KL(π‖ref)"]
    if gradient.shape != true.shape:
        raise ValueError(f"gradient has {len(gradient)} entries; {len(true)} parameters are expected.")
    if not true.isfinite().all():
        raise ValueError("∇KL(π‖ref) is not finite; a ref that can draw all that policy can is expected.")
    if gradient.norm() <= 1e-10 * true.norm():
        return "0"
    for name, landmark in known.items():
        factor = gradient @ landmark / landmark.square().sum()
        if factor > 0 and (gradient - factor * landmark).norm() <= 1e-8 * gradient.norm():
            sign, scale = "-" * name.startswith("-"), f"{factor.item():.4g}·"
            return f"{sign}{'' if abs(factor - 1) < 1e-8 else scale}∇{name.removeprefix('-')}"
    return f"none known, {angle(gradient, true).item():.0f}° from ∇KL(π‖ref)"


def name_value(value: float, policy: nn.Module, ref: Policy, old: Policy, task: Task) -> str:
    """Return which quantity an expectation is, per sequence or per token of the mean length, with its factor.

    Known are the KLs of the sequence in all directions between policy, ref and old, ½E[log²] and E|log| of
    tokens and sequences under policy and old, χ²(π‖ref) - KL(π‖ref), and 0.

    Raises:
        ValueError: value is nan or infinite.

    Example:
        >>> from kltutor import TabularPolicy, exact, tasks
        >>> task, seed = tasks.bandit(), torch.Generator().manual_seed(0)
        >>> policy, ref, old = (TabularPolicy.random(task, seed) for _ in range(3))
        >>> name_value(exact.kl(old, policy, task).item(), policy, ref, old, task)
        'KL(old‖π)'
    """
    check_number(value=value)
    found = _quantities(policy, ref, old, task)
    quantities = {name: quantity for name, quantity in found.items() if math.isfinite(quantity)}
    scale = quantities.get("KL(π‖ref)", 0.0)
    if abs(value) <= 1e-10 * scale:
        return "0"
    length = exact.expectation(
        task.mask.sum(-1).double().expand(len(task.prompts), -1), exact.seq_logp(policy, task).detach(), task
    ).item()
    for name, quantity in quantities.items():
        for factor, words in (
            (1.0, ""),
            (-1.0, "-"),
            (1 / length, "per-token "),
            (-1 / length, "-per-token "),
        ):
            if abs(value - factor * quantity) <= 1e-9 * abs(quantity):
                return words + name
    return f"none known, {value / scale:.4g}·KL(π‖ref)" if scale > 0 else f"none known, {value:.4g}"


def _quantities(policy: nn.Module, ref: Policy, old: Policy, task: Task) -> dict[str, float]:
    with torch.no_grad():
        tokens = {"π": exact.token_logps(policy, task), "ref": exact.token_logps(ref, task)}
        tokens["old"] = exact.token_logps(old, task)
    logps = {name: x.sum(-1) for name, x in tokens.items()}
    found = {
        f"KL({a}‖{b})": exact.expectation(logps[a] - logps[b], logps[a], task).item()
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
            found[kind] = exact.expectation(value, logps[sampler], task).item()
    chi2 = exact.expectation((logps["π"] - logps["ref"]).expm1(), logps["π"], task).item()
    return found | {"χ²(π‖ref) - KL(π‖ref)": chi2 - found["KL(π‖ref)"]}
