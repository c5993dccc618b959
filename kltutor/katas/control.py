"""A kata on controllers: one update of Ziegler's rule."""

import math
from collections.abc import Callable

from kltutor.controllers import ZieglerBeta
from kltutor.katas.calls import Case
from kltutor.katas.kata import Misconception, register


def ziegler_update(
    beta: float, measured_kl: float, target_kl: float, n: int, horizon: float, clip: float
) -> float:
    """Return the next beta of Ziegler's controller.

        e = (measured_kl - target_kl)/target_kl, clipped to ±clip        beta·(1 + e·n/horizon)

    Args:
        beta: the coefficient in force, reward units per nat.
        measured_kl: an estimate of KL(policy ‖ ref), nats per sequence; noise may make it negative.
        target_kl: nats per sequence, above 0.
        n: episodes of this update.
        horizon: in episodes; n/horizon is the gain.
        clip: the largest relative error that counts.

    Returns:
        The next beta, a number.
    """
    raise NotImplementedError


def _update(beta: float, measured_kl: float, target_kl: float, n: int, horizon: float, clip: float) -> float:
    return ZieglerBeta(beta, target_kl, horizon, clip=clip).update(measured_kl, n)


def _clipped(error: float, clip: float) -> float:
    return min(max(error, -clip), clip)


def _wrong(rule: Callable[[float, float, float, float], float]) -> Callable[..., float]:
    """Return an answer from a rule of the beta, the relative error, the gain and the clip."""
    return lambda beta, kl, target, n, horizon, clip: rule(beta, (kl - target) / target, n / horizon, clip)


def _case(label: str, measured_kl: float, beta: float = 0.2, target_kl: float = 6.0, n: int = 1000,
          horizon: float = 10_000.0, clip: float = 0.2) -> Case:  # fmt: skip
    numbers = {"beta": beta, "measured_kl": measured_kl, "target_kl": target_kl}
    return Case(label, numbers | {"n": n, "horizon": horizon, "clip": clip})


register(
    ziegler_update,
    level=1,
    section="4.2 Two adaptive rules",
    reference=_update,
    cases=(
        _case("a little above the target", 6.6),
        _case("a little below", 5.1),
        _case("far above", 60.0),
        _case("far below", 0.5),
        _case("a negative reading", -0.3),
        _case("on the target", 6.0),
        _case("another size", 0.021, beta=3.0, target_kl=0.02, n=256, horizon=2560.0, clip=1.0),
        _case("a large beta", 6.3, beta=1e6, n=64),
        _case("a small beta and a wide clip", 60.0, beta=1e-6, clip=0.5),
    ),
    misconceptions=(
        Misconception(
            "sign",
            "The error has the wrong sign: too large a KL must raise beta, and here it falls to {got}; "
            "{right} is right.",
            _wrong(lambda beta, e, gain, clip: beta * (1 - _clipped(e, clip) * gain)),
        ),
        Misconception(
            "not-clipped",
            "The error is not clipped: one reading far off moves beta as far as it likes.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + e * gain)),
        ),
        Misconception(
            "clipped-above-only",
            "The error is clipped above only; below, it may reach -1 and more.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + min(e, clip) * gain)),
        ),
        Misconception(
            "product-clipped",
            "The product e·n/horizon is clipped; clip the error first, then multiply.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + _clipped(e * gain, clip))),
        ),
        Misconception(
            "absolute-error",
            "The error is in nats; divide it by the target, so that it has no unit.",
            lambda beta, kl, target, n, horizon, clip: beta * (1 + _clipped(kl - target, clip) * n / horizon),
        ),
        Misconception(
            "relative-to-the-reading",
            "The error is divided by the reading; divide it by the target.",
            lambda beta, kl, target, n, horizon, clip: (
                beta * (1 + _clipped((kl - target) / kl, clip) * n / horizon)
            ),
        ),
        Misconception(
            "ratio-for-error",
            "The error is measured_kl/target_kl - 1. Without the -1 it is hardly ever below 0, and beta "
            "grows on the target too.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + _clipped(e + 1, clip) * gain)),
        ),
        Misconception(
            "quotient-inverted",
            "The quotient is upside down: target/measured - 1 is below 0 where the KL is too large, so beta "
            "falls to {got}; {right} is right.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + _clipped(1 / (1 + e) - 1, clip) * gain)),
        ),
        Misconception(
            "clip-of-0.2",
            "The clip is always 0.2; it is an argument.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + _clipped(e, 0.2) * gain)),
        ),
        Misconception(
            "without-gain",
            "The gain n/horizon is missing: {got} where {right} is right.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + _clipped(e, clip))),
        ),
        Misconception(
            "gain-inverted",
            "The gain is upside down: horizon/n in place of n/horizon gives {got} where {right} is right.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + _clipped(e, clip) / gain)),
        ),
        Misconception(
            "added",
            "The step is added to beta; it multiplies it: {got} where {right} is right.",
            _wrong(lambda beta, e, gain, clip: beta + _clipped(e, clip) * gain),
        ),
        Misconception(
            "exponential",
            "This multiplies by exp(e·n/horizon). It agrees to first order and never turns negative, but "
            "Ziegler's factor is 1 + e·n/horizon.",
            _wrong(lambda beta, e, gain, clip: beta * math.exp(_clipped(e, clip) * gain)),
        ),
        Misconception(
            "factor-only",
            "This is the factor; beta is to be multiplied by it.",
            _wrong(lambda beta, e, gain, clip: 1 + _clipped(e, clip) * gain),
        ),
        Misconception(
            "never-falls",
            "Errors below 0 are dropped, so beta never falls.",
            _wrong(lambda beta, e, gain, clip: beta * (1 + min(max(e, 0.0), clip) * gain)),
        ),
        Misconception(
            "doubled-or-halved",
            "This doubles or halves beta, which is the rule of the PPO paper.",
            _wrong(lambda beta, e, gain, clip: beta * 2.0 ** ((e > 0.5) - (1 + e < 1 / 1.5))),
        ),
    ),
)
