"""What checks share: two unlike distributions, a grid of them, and comparisons that survive `python -O`."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Number = Tensor | float


def logp(*probs: float) -> Float[Tensor, " outcome"]:
    """Return the log-probabilities of the listed probabilities, in float64."""
    return torch.tensor(probs, dtype=torch.float64).log()


POLICY = logp(0.50, 0.30, 0.20)  # the distribution that is sampled
REF = logp(0.05, 0.15, 0.80)  # so unlike it that a swapped argument cannot hide
OLD = logp(0.30, 0.20, 0.50)  # an earlier policy, which drew stale samples

KL = r"$\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$"  # for statements
REVERSED_KL = r"$\mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi)$"


def simplex(outcomes: int, parts: int) -> Float[Tensor, "point outcome"]:
    """Return the log-probabilities of every distribution whose probabilities are multiples of 1/parts."""
    axes = torch.meshgrid(*[torch.arange(parts + 1)] * (outcomes - 1), indexing="ij")
    free = torch.stack([axis.flatten() for axis in axes], 1)
    counts = torch.cat([free, parts - free.sum(1, keepdim=True)], 1)
    return (counts[counts[:, -1] >= 0].double() / parts).log()


def normal_mean(value: Callable[[Tensor], Tensor]) -> Float[Tensor, ""]:
    """Return E[value(y)] for y ~ N(0, 1), by the trapezoid rule: exact to rounding for a smooth value."""
    y = torch.linspace(-30, 30, 30001, dtype=torch.float64)
    return (value(y) * torch.exp(-(y**2) / 2)).sum() * (y[1] - y[0]) / math.sqrt(2 * math.pi)


def gaussian_log_ratio(y: Float[Tensor, " y"], sigma: float, mu: float = 0.0) -> Float[Tensor, " y"]:
    """Return log N(y; 0, 1) - log N(y; mu, sigma²)."""
    return math.log(sigma) + ((y - mu) / sigma) ** 2 / 2 - y**2 / 2


def gaussian_variances(mu: float, sigma: float = 1.0) -> tuple[float, float, float]:
    """Return the variances of k1, k2 and k3 by numerical integration, from the estimators' definitions."""

    def variance(estimator: Callable[[Tensor], Tensor]) -> float:
        mean = normal_mean(lambda y: estimator(gaussian_log_ratio(y, sigma, mu)))
        return normal_mean(lambda y: (estimator(gaussian_log_ratio(y, sigma, mu)) - mean) ** 2).item()

    return variance(lambda d: d), variance(lambda d: d**2 / 2), variance(lambda d: torch.expm1(-d) + d)


@cache
def proof(name: str, **broken: bool | int) -> str:
    """Build a derivation and count its lines; where a broken variant is named, it must be rejected."""
    from kltutor import derivations

    build = getattr(derivations, name)
    lines = len(build().steps)
    if broken:
        try:
            build(**broken)
        except derivations.DerivationError:
            return f"{lines} lines proven"
        raise AssertionError(f"the derivation {name} also goes through with {broken}, so it proves nothing.")
    return f"{lines} lines proven"


def ensure(truth: bool | np.bool_ | Tensor, otherwise: str) -> None:
    """Raise AssertionError with the given words unless the truth is one."""
    if not truth:
        raise AssertionError(otherwise)


def agree(value: Number, expected: Number, what: str, tolerance: float = 1e-10) -> None:
    """Raise AssertionError unless two numbers, or all entries of two tensors, are equal within tolerance."""
    gap = _gap(value, expected)
    if not gap.max().item() <= tolerance:  # so written, nan fails too
        raise AssertionError(f"{what}: off by {gap.max().item():.3g}, at most {tolerance:.3g} is expected.")


def differ(value: Number, other: Number, what: str, margin: float = 0.01) -> None:
    """Raise AssertionError unless the two differ by the margin at least: the false variant would be seen."""
    gap = _gap(value, other)
    if not gap.max().item() >= margin:
        raise AssertionError(f"{what}: only {gap.max().item():.3g} apart, so the check could not tell them.")


def gradient(value: Float[Tensor, ""], logits: Float[Tensor, " outcome"]) -> Float[Tensor, " outcome"]:
    """Return the gradient of a value in the logits, and keep the graph for another."""
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def num(value: Number, digits: int = 5) -> str:
    """Write a number with the given count of significant digits."""
    return f"{float(value):.{digits}g}"


def vector(values: Float[Tensor, " outcome"]) -> str:
    """Write the numbers between brackets with three digits each; what rounding left of zero is zero."""
    return "(" + ", ".join(num(value if abs(value) > 1e-12 else 0.0, 3) for value in values) + ")"


def _gap(value: Number, other: Number) -> Float[Tensor, "..."]:
    first, second = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (value, other))
    if first.shape != second.shape and first.ndim and second.ndim:
        raise AssertionError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be compared.")
    return torch.where(first == second, 0, (first - second).abs())  # inf equals inf
