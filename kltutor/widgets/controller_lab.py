"""A rule for beta in its loop with a policy: its answer to a new target, and what linear theory says."""

import cmath
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from kltutor.controllers import PIDBeta, PPOPenaltyBeta, UnreachableTargetWarning, ZieglerBeta
from kltutor.schedules import AnnealedBeta, Controller, FixedBeta
from kltutor.widgets.base import Choice, Number, Real, StateError, Whole, Widget

N = 512  # episodes an update
ETA = 2  # -dlog KL/dlog beta of the policy below
LOWER, UPPER = 0.01, 100.0  # bounds of beta
HORIZONS = tuple(256 * (100_000 / 256) ** (i / 60) for i in range(61))  # where the curve is drawn
OCTAVES = range(-6, 7)  # doublings of the first beta that are drawn
NAN = math.nan
Shape = Literal["linear", "exponential", "cosine"]


class ControllerLab(Widget):
    """A policy that answers to beta like Gaussian rewards of variance 1, and a controller from the package.

    The policy is ref·exp(tilt·reward), and KL(policy ‖ ref) is tilt²/2 nats. Each update moves the tilt the
    part `rate` of its way to 1/beta. PPO's rule prices the distance to the last policy instead: its update
    adds rate/beta to the tilt, and KL(old ‖ policy) is what it controls. An update has 512 episodes.

    The controller is told a KL that is `lag` updates old (0: after the update, 1: before it, as trainers
    usually do) times a random factor of mean 1.

    Example:
        >>> w = ControllerLab(controller="ziegler", horizon=1280, lag=1)
        >>> round(w.loop_gain, 2), round(w.multiplier, 3)
        (0.8, 0.894)
        >>> w.lag = 0
        >>> round(w.multiplier, 3), w.settled
        (0.2, 4.0)
    """

    controller = Choice(
        "ziegler", ("fixed", "annealed", "ppo", "ziegler", "pid"), help="the rule that sets beta"
    )
    target_kl = Real(1.5, 0.1, 2.5, help="nats")
    start_kl = Real(1.0, 0.0, 2.5, help="KL(policy ‖ ref) before the first update, nats; 0 is the reference")
    start_beta = Real(0.7071, 0.1, 10.0, help="the first beta, reward per nat")
    horizon = Whole(1280, 256, 100_000, help="episodes: of a schedule, or over which an error of 1 adds up")
    clip = Real(0.2, 0.05, 10.0, help="the largest relative error that counts (ziegler, pid)")
    kp = Real(0.1, 0.0, 3.0, help="proportional gain (pid)")
    ki = Real(0.5, 0.0, 3.0, help="integral gain (pid)")
    kd = Real(0.0, 0.0, 1.0, help="derivative gain (pid)")
    end_beta = Real(0.5774, 0.1, 10.0, help="the last beta (annealed)")
    shape = Choice("linear", ("linear", "exponential", "cosine"), help="of the schedule (annealed)")
    lag = Whole(1, 0, 6, help="age of the KL that the controller is told, in updates")
    rate = Real(1.0, 0.02, 1.0, help="the part of its way that the policy moves per update")
    noise = Real(0.0, 0.0, 1.0, help="sd of the logarithm of a reading, whose mean is right")
    seed = Whole(7, 0, 9999, help="seed of the noise")
    updates = Whole(50, 10, 120, help="how many policy updates")

    gain = Number("K = n / horizon, the part of an error that one update adds to log beta")
    loop_gain = Number("K·η with η = 2")
    kl = Number("KL after each update, nats, first that before: to ref, for PPO's rule to the last policy")
    beta = Number("beta after each update, reward per nat, first that before")
    told = Number("KL that the controller is told at each update, nats")
    distance = Number("KL(policy ‖ ref) after each update, nats, first that before")
    band = Number("edges of the band around the target, nats: a factor of 1.5 for PPO's rule, else 5 %")
    settled = Number("first update from which on the KL stays in the band; inf if it ends outside")
    overshoot = Number("how far the KL goes beyond the target, seen from its start, in targets")
    crossings = Number("how often the KL goes from above the band to below or back")
    doubled = Number("first update after which beta is twice or half its first value; inf if none is")
    mean_kl = Number("mean KL after the updates of the second half, nats")
    held = Number("updates after which beta is at a bound, 0.01 or 100")
    rest_kl = Number(
        "KL at which clipped errors cancel on average, for a small gain, nats; nan for PPO's rule"
    )
    multiplier = Number("|z|, by which an error close to rest shrinks per update; nan for PPO's rule")
    period = Number("updates that a swing takes close to rest; inf where there is none")
    damping = Number("damping ratio close to rest; negative where swings grow")
    swings_from = Number("K·η from which on Ziegler's rule swings; nan for others")
    grows_from = Number("K·η from which on it does not settle; nan for others")
    gains = Number("K·η at 61 horizons from 256 to 100 000 episodes")
    multipliers = Number("|z| at the same horizons")
    rungs = Number("KL(old ‖ policy) at the first beta times 2^-6, …, 2^6, nats")
    rungs_in_band = Number("how many of these are within a factor of 1.5 of the target: 0 or 1")

    def check(self) -> None:
        """Raise StateError where the rule would refuse its settings."""
        if self.controller == "ziegler" and self.clip * N >= self.horizon:
            raise StateError(
                f"clip is {self.clip:g} and horizon {self.horizon}; a horizon above clip·512 ="
                f" {self.clip * N:g} is expected, since one update could multiply beta by 0 or less."
            )
        if self.controller == "pid" and not max(self.kp, self.ki, self.kd) > 0:
            raise StateError("kp, ki and kd are 0, 0 and 0; one gain above 0 is expected.")

    @property
    def rule(self) -> Controller:
        """A fresh controller with these settings."""
        self.check()
        first, target, horizon = self.start_beta, self.target_kl, float(self.horizon)
        if self.controller == "fixed":
            return FixedBeta(first)
        if self.controller == "annealed":
            return AnnealedBeta(first, self.end_beta, episodes=int(horizon), shape=cast(Shape, self.shape))
        if self.controller == "ppo":
            return PPOPenaltyBeta(first, target, lower=LOWER, upper=UPPER)
        if self.controller == "ziegler":
            return ZieglerBeta(first, target, horizon, clip=self.clip, lower=LOWER, upper=UPPER)
        kp, ki, kd, clip = self.kp, self.ki, self.kd, self.clip
        return PIDBeta(
            first, target, kp=kp, ki=ki, kd=kd, horizon=horizon, clip=clip, lower=LOWER, upper=UPPER
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """What follows from the state: the package's controller, stepped."""
        found = self._run()
        kl, beta, target, updates = found["kl"], found["beta"], self.target_kl, int(self.updates)
        wide = [target / 1.5, 1.5 * target]
        band = wide if self.controller == "ppo" else [0.95 * target, 1.05 * target]
        sides = [(x > band[1]) - (x < band[0]) for x in kl]
        outside = [k for k, side in enumerate(sides) if side]
        met = [side for side in sides if side]
        past = (max(kl) - target if self.start_kl <= target else target - min(kl)) / target
        moved = [k for k, b in enumerate(beta) if b >= 2 * beta[0] or b <= beta[0] / 2]
        last = outside[-1] if outside else -1
        later = kl[updates // 2 + 1 :]
        rungs = [(self.rate / (self.start_beta * 2.0**k)) ** 2 / 2 for k in OCTAVES]
        return {
            **found,
            **self._theory(),
            "gain": N / self.horizon,
            "loop_gain": ETA * N / self.horizon,
            "band": band,
            "settled": float(last + 1) if last < updates else math.inf,
            "overshoot": past if past > 1e-12 else 0.0,  # less is rounding
            "crossings": sum(a != b for a, b in itertools.pairwise(met)),
            "doubled": float(moved[0]) if moved else math.inf,
            "mean_kl": math.fsum(later) / len(later),
            "held": sum(b in (LOWER, UPPER) for b in beta),
            "gains": [ETA * N / horizon for horizon in HORIZONS],
            "rungs": rungs,
            "rungs_in_band": sum(wide[0] <= rung <= wide[1] for rung in rungs),
        }

    def _run(self) -> dict[str, list[float]]:
        """Step the controller and the policy."""
        rule, ppo = self.rule, self.controller == "ppo"
        lag, factors = int(self.lag), _factors(self.noise, int(self.seed), int(self.updates))
        tilt, kl, beta = math.sqrt(2 * self.start_kl), [self.start_kl], [float(rule.beta)]
        told: list[float] = []
        distance = [self.start_kl]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreachableTargetWarning)  # `held` says it
            for k, factor in enumerate(factors):
                step = self.rate * (1 / beta[-1] if ppo else 1 / beta[-1] - tilt)
                tilt += step
                distance.append(tilt * tilt / 2)
                kl.append(step * step / 2 if ppo else distance[-1])
                told.append(kl[max(k + 1 - lag, 0)] * factor)
                beta.append(float(rule.update(told[-1], N)))
        return {"kl": kl, "beta": beta, "told": told, "distance": distance}

    def _theory(self) -> dict[str, Any]:
        """Linearise the loop at rest."""
        name = {"swings_from": NAN, "grows_from": NAN}
        if self.controller == "ppo":
            none = {key: NAN for key in ("rest_kl", "multiplier", "period", "damping")}
            return name | none | {"multipliers": [NAN] * len(HORIZONS)}
        if self.controller in ("fixed", "annealed"):
            rest = 1 / (2 * (self.start_beta if self.controller == "fixed" else self.end_beta) ** 2)
            curve = [1 - self.rate] * len(HORIZONS)
            return name | {"rest_kl": rest, "multipliers": curve} | _slowest(complex(1 - self.rate))
        if self.controller == "ziegler":
            name = {"swings_from": self._onset(), "grows_from": self._bound()}
        slope = self._rest(0.0)
        slope *= abs(slope - 1) < self.clip  # an error at its clip answers to nothing
        curve = [abs(self._root(horizon, slope)) for horizon in HORIZONS]
        slowest = _slowest(self._root(self.horizon, slope))
        return name | {"rest_kl": self.target_kl * self._rest(self.noise), "multipliers": curve} | slowest

    def _rest(self, noise: float) -> float:
        """Return the KL in targets at which the rule rests on average, if beta hardly moves."""
        if self.controller == "ziegler" or self.ki > 0:
            return _root_of(lambda m: _clipped_mean(m, noise, self.clip))
        first = math.log(self.start_beta) + math.log(2 * self.target_kl) / 2
        rest = _root_of(
            lambda m: first + math.log(m) / 2 + (self.kp and self.kp * _clipped_mean(m, noise, self.clip))
        )
        low, high = (1 / (2 * b * b * self.target_kl) for b in (UPPER, LOWER))
        return min(max(rest, low), high)

    def _root(self, horizon: float, slope: float) -> complex:
        """Return the largest root of the loop's characteristic polynomial."""
        dt, delay = N / horizon, np.array([1.0] + [0.0] * int(self.lag))
        policy = np.convolve(delay, [1.0, self.rate - 1])  # z^lag (z - 1 + rate)
        scale = ETA * self.rate * slope
        if self.controller == "ziegler":
            loop = np.polyadd(np.convolve(policy, [1.0, -1.0]), [scale * dt, 0.0])
        elif self.ki > 0:
            terms = [self.kp + self.ki * dt + self.kd / dt, -self.kp - 2 * self.kd / dt, self.kd / dt]
            loop = np.polyadd(np.convolve(policy, [1.0, -1.0, 0.0]), scale * np.array(terms))
        else:
            terms = [self.kp + self.kd / dt, -self.kd / dt]
            loop = np.polyadd(np.convolve(policy, [1.0, 0.0]), scale * np.array(terms))
        return _largest(np.roots(loop).tolist())

    def _onset(self) -> float:
        """Return the loop gain of a double real root: it maximises z^(lag-1) (1 - z)(z - 1 + rate)."""
        d, p = self.lag, self.rate
        middle = d * (2 - p)
        z = (middle + math.sqrt(middle**2 + 4 * (1 - d * d) * (1 - p))) / (2 * (d + 1))
        return float(z ** (d - 1) * (1 - z) * (z - 1 + p) / p) if z > 0 else 1.0

    def _bound(self) -> float:
        """Return the loop gain whose roots lie on the unit circle, at the angle that turns a phase by π."""
        d, p = self.lag, self.rate
        if d == 0:
            return (4 - 2 * p) / p

        def phase(angle: float) -> float:
            return (d - 0.5) * angle + cmath.phase(cmath.rect(1, angle) - 1 + p) - math.pi / 2

        z = cmath.rect(1, brentq(phase, 1e-9, math.pi, xtol=1e-14))
        return abs((z - 1) * (z - 1 + p)) / p


def _factors(noise: float, seed: int, updates: int) -> list[float]:
    """Return log-normal factors of mean 1, on multiples of 1e-9, so that a browser has the same."""
    drawn = np.random.RandomState(seed).standard_normal(updates).tolist()
    return [math.floor(math.exp(noise * z - noise * noise / 2) * 1e9 + 0.5) / 1e9 for z in drawn]


def _clipped_mean(m: float, noise: float, clip: float) -> float:
    """Return the mean of m·factor - 1, clipped, for the factors above."""
    if noise == 0:
        return min(max(m - 1, -clip), clip)
    low, high = 1 - clip, 1 + clip
    a = (math.log(low / m) + noise * noise / 2) / noise if low > 0 else -math.inf
    b = (math.log(high / m) + noise * noise / 2) / noise
    inside = m * (ndtr(b - noise) - ndtr(a - noise))
    return float(max(low, 0) * ndtr(a) + inside + high * ndtr(-b) - 1)


def _root_of(rises: Callable[[float], float]) -> float:
    """Return where a function that rises with the KL, in targets, is 0."""
    return math.exp(brentq(lambda u: rises(math.exp(u)), -30.0, 30.0, xtol=1e-13))


def _largest(roots: list[complex]) -> complex:
    """Return the largest root; of several on one circle that of the slowest swing."""
    size = max(map(abs, roots), default=0.0)
    rim = [complex(z) for z in roots if abs(z) > size * (1 - 1e-9)]
    return min(rim, key=lambda z: abs(cmath.phase(z)), default=0j)


def _slowest(z: complex) -> dict[str, float]:
    """Return size, period and damping ratio of the solution z^k."""
    swing = abs(cmath.phase(z)) if abs(z.imag) > 1e-6 or z.real < 0 else 0.0
    fall = -math.log(abs(z)) if z else math.inf
    damping = 1.0 if fall == math.inf else fall / math.hypot(fall, swing) if fall or swing else 0.0
    period = 2 * math.pi / swing if swing else math.inf
    return {"multiplier": abs(z), "period": period, "damping": damping}
