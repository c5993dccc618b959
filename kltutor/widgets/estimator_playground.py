"""Two Gaussians to pull at: how k1, k2 and k3 are distributed, and what a batch of draws shows of that."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import Normal

from kltutor.divergences import gaussian_kl
from kltutor.estimators import k1, k2, k3
from kltutor.moments import gaussian_moments
from kltutor.widgets.base import Number, Real, Whole, Widget

NAMES = ("k1", "k2", "k3")
GRID = torch.linspace(-6, 6, 181, dtype=torch.float64)  # where the two densities are drawn
BINS = 96  # of the distribution of an estimator
SHIFTS = tuple(i / 20 for i in range(61))  # of the curve on the map where k3 is as noisy as k1
MAP = (0.05, 2.6)  # the widths that the map has room for
RUG = 100  # draws that are shown one by one


class EstimatorPlayground(Widget):
    """Policy and reference are Gaussians; k1, k2 and k3 estimate KL(policy ‖ ref) from draws of the policy.

    Set the two means and sds, `n` and `seed`; read the numbers. Lists of three are for k1, k2 and k3.
    The draws are policy_mean + policy_sd · np.random.RandomState(seed).standard_normal(n), a stream that
    NumPy has promised never to change.

    Example:
        >>> w = EstimatorPlayground(ref_mean=0.5)
        >>> [round(mean, 4) for mean in w.mean]
        [0.125, 0.1328, 0.125]
        >>> w.ref_sd = 1.5
        >>> w.sd[2]
        inf
    """

    policy_mean = Real(0.0, -3.0, 3.0, help="mean of the policy")
    policy_sd = Real(1.0, 0.4, 2.5, help="standard deviation of the policy")  # no density is above 1
    ref_mean = Real(1.0, -3.0, 3.0, help="mean of the reference")
    ref_sd = Real(1.0, 0.4, 2.5, help="standard deviation of the reference")
    n = Whole(100, 10, 10_000, help="draws in the batch")
    seed = Whole(7, 0, 9999, help="seed of the draws")

    mu = Number("shift of the reference, in sds of the policy")
    sigma = Number("width of the reference, in sds of the policy")
    kl = Number("KL(policy ‖ ref), nats")
    chi2 = Number("χ²(ref ‖ policy); inf from sigma = √2 on")
    jeffreys = Number("KL(policy ‖ ref) + KL(ref ‖ policy), nats")
    mean = Number("exact mean of one draw, nats")
    bias = Number("exact mean less KL(policy ‖ ref), nats")
    variance = Number("exact variance of one draw, nats²")
    sd = Number("exact standard deviation of one draw, nats")
    standard_error = Number("exact standard deviation of the mean of n draws, nats")
    draws_needed = Number("draws for a standard error of a tenth of the KL; does not count bias")
    negative = Number("probability that one draw of k1 is below zero")
    sample_mean = Number("mean of the n draws, nats")
    sample_sd = Number("standard deviation of the n draws, nats")
    largest = Number("largest of the n draws, nats")
    counts = Number("numbers of draws after which `running` is read, up to n")
    running = Number("mean of so many first draws, nats")
    draws = Number("the first draws of the policy, at most 100")
    policy_density = Number("density of the policy at 181 points from -6 to 6")
    ref_density = Number("density of the reference at the same points")
    edges = Number("edges of 98 bins of equal width, nats")
    density = Number("probability of each bin divided by its width, 1/nats")
    rim = Number("width (sigma) at which k3 is as noisy as k1, for shifts (mu) of 0, 0.05, …, 3")
    same_kl = Number("shifts and widths of references at the same KL, half a turn around the policy")

    @property
    def numbers(self) -> dict[str, Any]:
        """What follows from the state, by the package."""
        mu, sigma = (self.ref_mean - self.policy_mean) / self.policy_sd, self.ref_sd / self.policy_sd
        exact = [gaussian_moments(mu, sigma)[name] for name in NAMES]
        mean, bias, variance = (
            torch.stack([getattr(moment, field) for moment in exact])
            for field in ("mean", "bias", "variance")
        )
        variance = variance.clamp_min(0)  # of k3 next to the policy, where all that is left is rounding
        kl, n = mean[0].item(), int(self.n)
        policy, ref = _normal(self.policy_mean, self.policy_sd), _normal(self.ref_mean, self.ref_sd)
        normal = torch.from_numpy(np.random.RandomState(int(self.seed)).standard_normal(n))
        drawn = self.policy_mean + self.policy_sd * normal
        logp, ref_logp = policy.log_prob(drawn), ref.log_prob(drawn)
        estimates = torch.stack([estimate(logp, ref_logp) for estimate in (k1, k2, k3)])
        counts = torch.tensor(_counts(n))
        edges = _edges(kl, mean[1].item(), variance[0].sqrt().item())
        found = {
            "chi2": _chi2(mu, sigma),
            "jeffreys": _gaussian_kl(mu, sigma) + _gaussian_kl(-mu / sigma, 1 / sigma),
            "mean": mean,
            "bias": bias,
            "variance": variance,
            "sd": variance.sqrt(),
            "standard_error": (variance / n).sqrt(),
            "draws_needed": 100 * variance / kl**2 if kl else torch.full_like(variance, torch.nan),
            "sample_mean": estimates.mean(-1),
            "sample_sd": estimates.std(-1),
            "largest": estimates.amax(-1),
            "counts": counts,
            "running": estimates.cumsum(-1)[:, counts - 1] / counts,
            "draws": drawn[:RUG],
            "policy_density": policy.log_prob(GRID).exp(),
            "ref_density": ref.log_prob(GRID).exp(),
            "edges": edges,
            "density": _masses(edges, mu, sigma, kl) / edges.diff(),
            "same_kl": _same_kl(kl),
        }
        negative = (
            0.0
            if (mu, sigma) == (0, 1)
            else _below(torch.zeros(1, dtype=torch.float64), mu, sigma, kl).item()
        )
        plain = {"mu": mu, "sigma": sigma, "kl": kl, "negative": negative, "rim": list(_rim())}
        return plain | {name: numbers.tolist() for name, numbers in found.items()}


def _normal(mean: float, sd: float) -> Normal:
    """Return the distribution in float64, whatever torch's default is."""
    return Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(sd, dtype=torch.float64))


def _gaussian_kl(mu: float, sigma: float) -> Tensor:
    """Return KL(N(0, 1) ‖ N(mu, sigma²))."""
    return gaussian_kl(*(torch.tensor(x, dtype=torch.float64) for x in (0.0, 1.0, mu, sigma)))


def _chi2(mu: float, sigma: float) -> Tensor:
    """Return χ²(N(mu, sigma²) ‖ N(0, 1)), which exists below sigma = √2."""
    excess = torch.tensor(sigma * sigma - 1, dtype=torch.float64)
    exponent = mu * mu / (1 - excess) - torch.log1p(-(excess**2)) / 2
    return torch.where(excess < 1, torch.expm1(exponent), torch.inf)


def _counts(n: int) -> list[int]:
    """Return whole numbers from 1 to n, at first all of them, then each a sixteenth larger."""
    counts = [1]
    while counts[-1] < n:
        counts.append(min(n, counts[-1] + max(1, counts[-1] // 16)))
    return counts


def _edges(kl: float, mean_k2: float, sd_k1: float) -> Tensor:
    """Return edges of equal bins that hold most of k1 and the mean of k2; zero is one, not the first."""
    low, high = min(0.0, kl - 2.6 * sd_k1), max(kl + 2.6 * sd_k1, 1.1 * mean_k2, 0.02)
    width = (high - low) / BINS
    return (math.floor(low / width) - 1 + torch.arange(BINS + 3, dtype=torch.float64)) * width


def _below(bound: Tensor, mu: float, sigma: float, kl: float) -> Tensor:
    """Return P(log_ratio <= bound), where log_ratio = a·y² + b·y + kl - a with y standard normal."""
    a, b = (1 / (sigma * sigma) - 1) / 2, -mu / (sigma * sigma)
    c = kl - a - bound
    phi: Callable[[Tensor], Tensor] = torch.special.ndtr
    if a == 0 and b == 0:
        return (c <= 0).double()
    if a == 0:
        return phi(math.copysign(1, b) * -c / b)
    inside = b * b - 4 * a * c
    q = -(b + math.copysign(1, b) * inside.clamp_min(0).sqrt()) / 2
    low, high = torch.minimum(q / a, c / q), torch.maximum(q / a, c / q)
    if a < 0:
        return torch.where(inside > 0, phi(low) + phi(-high), 1)
    between = torch.where(low > 0, phi(-low) - phi(-high), phi(high) - phi(low))  # from the nearer tail
    return torch.where(inside > 0, between, 0)


def _masses(edges: Tensor, mu: float, sigma: float, kl: float) -> Tensor:
    """Return the exact probability of each bin, for k1, k2 and k3.

    k2 <= t where |log_ratio| <= √(2t), and k3 <= t between the two roots x of e^-x - 1 + x = t.
    """
    t = edges.clamp_min(0)
    root = (2 * t).sqrt()
    right, left = root + 2 * t / 3, (t + root).log1p()  # beyond the roots: Newton comes back without a turn
    for _ in range(30):
        slope = torch.where(t > 0, -torch.expm1(-right), 1)
        right = right - (torch.expm1(-right) + right - t) / slope
        slope = torch.where(t > 0, torch.expm1(left), 1)
        left = left - (torch.expm1(left) - left - t) / slope
    cumulative = [_below(edges, mu, sigma, kl)]
    for low, high in ((-root, root), (-left, right)):
        held = _below(high, mu, sigma, kl) - _below(low, mu, sigma, kl)
        if (mu, sigma) == (0, 1):
            held = torch.ones_like(t)  # the log-ratio is zero, always
        cumulative.append(torch.where(edges < 0, 0, held))
    return torch.stack(cumulative).diff()


@lru_cache(maxsize=1)
def _rim() -> tuple[float, ...]:
    """Return the width at which Var k3 = Var k1, for each of SHIFTS; narrower references make k3 quieter."""

    def louder(sigma: float, mu: float) -> float:
        moments = gaussian_moments(mu, sigma)
        return math.log(moments["k3"].variance / moments["k1"].variance)

    return tuple(brentq(louder, 0.1, 1.4, args=(mu,), xtol=1e-13) for mu in SHIFTS)


def _same_kl(kl: float) -> Tensor:
    """Return shifts and widths with this KL, in 41 steps from the narrowest to the widest on the map."""

    def excess(sigma: float) -> float:
        return _gaussian_kl(0.0, sigma).item() - kl

    low, high = (
        brentq(excess, 1.0, end, xtol=1e-14) if excess(end) > 0 else end if kl > 0 else 1.0 for end in MAP
    )
    turn = (1 - torch.cos(torch.arange(41, dtype=torch.float64) * math.pi / 40)) / 2
    width = low + (high - low) * turn
    shift = (
        (2 * width.square() * (kl - width.log() + 0.5) - 1).clamp_min(0).sqrt()
    )  # 0 at an end, less rounding
    return torch.stack([shift, width])
