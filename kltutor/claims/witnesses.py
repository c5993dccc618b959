"""What checks share: two unlike distributions, a grid of them, and comparisons that survive `python -O`."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Number = Tensor | float


def logp(*probs: float) -> Float[Tensor, " outcome"]:
    """Return the log-probabilities of the listed probabilities, in float64."""
    return torch.tensor(probs, dtype=torch.float64).log()


POLICY = logp(0.50, 0.30, 0.20)  # the distribution that is sampled
REF = logp(0.05, 0.15, 0.80)  # so unlike it that a swapped argument cannot hide

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


def proof(name: str, **broken: bool | int) -> str:
    """Build a derivation, make sure that its broken variant is rejected, and return how many steps it has."""
    from kltutor import derivations

    build = getattr(derivations, name)
    try:
        build(**broken)
    except derivations.DerivationError:
        return f"{len(build().steps)} lines proven"
    raise AssertionError(f"the derivation {name} also goes through with {broken}, so it proves nothing.")


def ensure(truth: bool, otherwise: str) -> None:
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


def num(value: Number, digits: int = 5) -> str:
    """Write a number with the given count of significant digits."""
    return f"{float(value):.{digits}g}"


def _gap(value: Number, other: Number) -> Float[Tensor, "..."]:
    first, second = torch.as_tensor(value).double(), torch.as_tensor(other).double()
    return torch.where(first == second, 0, (first - second).abs())  # inf equals inf
