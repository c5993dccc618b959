"""Finding the name of what was measured: one quantity, with one factor, in every world asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.audit import catalogue
from kltutor.audit.calls import Subject
from kltutor.audit.worlds import DISTANCES, Distance, Samples, World, kl, worlds

NONE = "none of the known"
DETACHED = "no gradient (detached)"
# Factors that a value may have and keep its name; any other makes it another quantity.
SIZES = ((1.0, "{}"), (2.0, "2·{}"), (0.5, "½·{}"), (1 / math.log(2), "{} in bits"))
FACTORS = tuple((sign * size, mark + words) for sign, mark in ((1, ""), (-1, "-")) for size, words in SIZES)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a function gives in one world with one kind of samples.

    Attributes:
        world: where.
        mean: expectation of its value of a completion.
        sd: standard deviation of that value.
        least: the smallest value of a completion that can be drawn.
        gradient: mean gradient in the policy's logits of its value as a loss; None if it has none.
        single: the function works in single precision at best.
    """

    world: World
    mean: float
    sd: float
    least: float
    gradient: Float[Tensor, " parameter"] | None
    single: bool


class Found(NamedTuple):
    """A name, and the largest distance at which it still holds; None if there is no name."""

    name: str
    reach: Distance | None


def measure(subject: Subject, world: World, samples: Samples) -> Measured:
    """Return expectation, spread and mean gradient of a function, summed over all completions.

    Raises:
        ValueError: it returns nan near the reference, or see `Subject.call`.
    """
    rows = world.rows(samples)
    values = subject.per_completion(rows, f"{world.name}, {samples} samples")
    if values.isnan().any() and world.distance != "far":
        raise ValueError(f"{subject.name} returned nan ({world.name}); a number is expected.")
    single = values.dtype != torch.float64
    values, weights = values.double(), rows.weights.detach()
    mean = weights @ values.detach()
    sd = (weights @ (values.detach() - mean).square()).sqrt()
    gradient = None
    if values.requires_grad:
        (found,) = torch.autograd.grad(
            weights @ values, world.policy.logits, allow_unused=True, retain_graph=True
        )
        gradient = None if found is None else found.flatten()
    return Measured(world, mean.item(), sd.item(), values.min().item(), gradient, single)


def name_value(measured: Sequence[Measured], samples: Samples) -> Found:
    """Return which known quantity the means are, in all worlds up to some distance."""
    for reach in reversed(DISTANCES):
        inside = [each for each in measured if _within(each.world, reach)]
        means = torch.tensor([each.mean for each in inside], dtype=torch.float64)
        if not means.isfinite().all():
            continue
        tolerance = 2e-3 if any(each.single for each in inside) else 1e-9
        scale = torch.tensor([kl(each.world) for each in inside], dtype=torch.float64)
        if (means.abs() <= tolerance / 10 * scale).all():
            return Found("0", reach)
        known = [_quantities(each.world, samples) for each in inside]
        for name in known[0]:
            truth = torch.tensor([quantity[name] for quantity in known], dtype=torch.float64)
            for factor, words in FACTORS:
                if ((means - factor * truth).abs() <= tolerance * (factor * truth).abs()).all():
                    return Found(_pretty(words.format(name if factor == 1 else _grouped(name))), reach)
    return Found(NONE, None)


def name_gradient(measured: Sequence[Measured], samples: Samples) -> Found:
    """Return which known gradient the mean gradients are, in all worlds up to some distance."""
    if all(each.gradient is None for each in measured):
        return Found(DETACHED, DISTANCES[-1])
    for reach in reversed(DISTANCES):
        inside = [each for each in measured if _within(each.world, reach)]
        got = [_or_zero(each) for each in inside]
        if not all(gradient.isfinite().all() for gradient in got):
            continue
        tolerance = 2e-3 if any(each.single for each in inside) else 1e-8
        known = [_gradients(each.world, samples) for each in inside]
        true = [_gradients(each.world, "fresh")["KL(π‖ref)"] for each in inside]
        if all(g.norm() <= tolerance / 10 * t.norm() for g, t in zip(got, true, strict=True)):
            return Found("0", reach)
        for name in known[0]:
            factors = [g @ k[name] / k[name].square().sum() for g, k in zip(got, known, strict=True)]
            factor = factors[-1].item()
            if all(
                (g - factor * k[name]).norm() <= tolerance * abs(factor) * k[name].norm()
                for g, k in zip(got, known, strict=True)
            ):
                return Found(_scaled(name, factor, tolerance), reach)
    return Found(NONE, None)


def angle(measured: Measured) -> float:
    """Return the angle between the mean gradient and ∇KL(π‖ref) in degrees; nan where there is none."""
    gradient, true = _or_zero(measured), _gradients(measured.world, "fresh")["KL(π‖ref)"]
    if not gradient.isfinite().all() or gradient.norm() <= 1e-10 * true.norm():
        return math.nan
    cosine = torch.nn.functional.cosine_similarity(gradient, true, dim=0)
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine.item()))))


def measure_all(subject: Subject, samples: Samples) -> tuple[Measured, ...]:
    """Return what a function gives in every world."""
    return tuple(measure(subject, world, samples) for world in worlds())


def _within(world: World, reach: Distance) -> bool:
    return DISTANCES.index(world.distance) <= DISTANCES.index(reach)


def _or_zero(measured: Measured) -> Float[Tensor, " parameter"]:
    if measured.gradient is None:
        return torch.zeros(measured.world.policy.logits.numel(), dtype=torch.float64)
    return measured.gradient


def _scaled(name: str, factor: float, tolerance: float) -> str:
    if abs(abs(factor) - 1) <= 10 * tolerance:
        return f"{'-' * (factor < 0)}∇{_grouped(name)}"
    return _pretty(f"{factor:.4g}·∇{_grouped(name)}")


def _grouped(name: str) -> str:
    """Return a sum in brackets, so that something may stand before it."""
    if not (" - " in name or " + " in name):
        return name
    head, level, tail = name.partition(" per token")
    return f"({head}){level}{tail}"


def _pretty(name: str) -> str:
    """Leave out a factor that cancels."""
    return name.replace("2·½", "").replace("2·∇½", "∇").replace("0.5·∇2·", "∇").replace("½·2·", "")


@cache
def _quantities(world: World, samples: Samples) -> dict[str, float]:
    return catalogue.quantities(world, samples)


@cache
def _gradients(world: World, samples: Samples) -> dict[str, Float[Tensor, " parameter"]]:
    return catalogue.gradients(world, samples)
