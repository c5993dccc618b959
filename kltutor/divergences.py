"""Divergences between listed distributions, given as log-probabilities along the last axis, and Gaussian KL.

`p` and `q` are log-probability vectors: float tensors of one shape whose exponentials sum to 1 along the
last axis. -inf is allowed and follows the conventions 0 log 0 = 0 and p log(p/0) = inf. All results are
in nats where they have a unit, one value per leading index. Every function raises a ValueError for nan,
a value above 0 or an unnormalised vector, and a jaxtyping.TypeCheckError for shapes that differ.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions, check_finite, check_number


def kl(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Return KL(p ‖ q) = Σ p log(p/q), the expectation of log(p/q) under p.

    Non-negative, zero iff p = q, not symmetric; inf where p has mass that q lacks.

    Source:
        Kullback and Leibler (1951).

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> round(kl(p, q).item(), 4), round(kl(q, p).item(), 4)
        (0.5108, 0.3681)
    """
    check_distributions(p=p, q=q)
    in_p, in_q = p > -torch.inf, q > -torch.inf
    both = in_p & in_q  # 0 log 0 = 0, in the gradient too
    log_ratio = torch.where(both, p, 0) - torch.where(both, q, 0)
    inside = (p.exp() * log_ratio).sum(-1)
    return torch.where((in_p & ~in_q).any(-1), torch.inf, inside)  # even where exp(p) rounds to 0


def jeffreys(
    p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]
) -> Float[Tensor, "*batch"]:
    """Return Jeffreys' divergence J(p, q) = KL(p ‖ q) + KL(q ‖ p) = Σ (p - q) log(p/q).

    Symmetric; inf unless the supports agree. Summed as non-negative terms, it keeps its digits near p = q.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> round(jeffreys(p, q).item(), 4)
        0.8789
    """
    check_distributions(p=p, q=q)
    in_p, in_q = p > -torch.inf, q > -torch.inf
    both = in_p & in_q
    second = torch.where(both, q, 0)
    log_ratio = torch.where(both, p, 0) - second
    inside = (_scaled_expm1(second, log_ratio) * log_ratio).sum(-1)
    return torch.where((in_p ^ in_q).any(-1), torch.inf, inside)


def js(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Return the Jensen-Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2.

    Symmetric, finite, at most log 2. Its square root is a metric; it is not one itself.

    Source:
        Endres and Schindelin (2003) for the metric.

    Example:
        >>> round(js(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()).item(), 4)
        0.6931
    """
    check_distributions(p=p, q=q)
    possible = torch.maximum(p, q) > -torch.inf  # logaddexp(-inf, -inf) has no gradient
    middle = torch.logaddexp(torch.where(possible, p, 0), torch.where(possible, q, 0)) - math.log(2)
    middle = torch.where(possible, middle, -torch.inf)
    return (kl(p, middle) + kl(q, middle)) / 2


def tv(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Return the total variation distance ½ Σ |p - q|, a metric with values in [0, 1] and without unit.

    Example:
        >>> round(tv(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()).item(), 4)
        0.4
    """
    check_distributions(p=p, q=q)
    return (p.exp() - q.exp()).abs().sum(-1) / 2


def hellinger2(
    p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]
) -> Float[Tensor, "*batch"]:
    """Return the squared Hellinger distance H² = ½ Σ (√p - √q)² = 1 - Σ √(pq), without unit.

    Symmetric, in [0, 1]; its square root is a metric. The sum of squares keeps its digits near p = q.

    Example:
        >>> round(hellinger2(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()).item(), 4)
        0.1056
    """
    check_distributions(p=p, q=q)
    return ((p / 2).exp() - (q / 2).exp()).square().sum(-1) / 2


def chi2(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Return χ²(p ‖ q) = Σ (p - q)²/q = E_q[(p/q - 1)²], without unit.

    Not symmetric; inf where p has mass that q lacks. χ²(ref ‖ policy) is the variance of w = ref/policy
    under the policy, and decides whether k3 is any good; χ²(policy ‖ ref) is another number.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> round(chi2(p, q).item(), 4), round(chi2(q, p).item(), 4)
        (1.7778, 0.64)
    """
    check_distributions(p=p, q=q)
    shared = q > -torch.inf
    second = torch.where(shared, q, 0)
    root = _scaled_expm1(second / 2, torch.where(shared, p, 0) - second)  # (p - q)/√q
    inside = root.square().sum(-1)
    return torch.where((~shared & (p > -torch.inf)).any(-1), torch.inf, inside)


def alpha_divergence(
    p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"], alpha: float
) -> Float[Tensor, "*batch"]:
    """Return (1 - Σ p^α q^(1-α)) / (α(1 - α)), and its limits KL(p ‖ q) at α = 1 and KL(q ‖ p) at α = 0.

    α = ½ gives 4 H², α = 2 gives χ²(p ‖ q)/2, α = -1 gives χ²(q ‖ p)/2. It is summed as non-negative terms,
    so it keeps its digits near p = q. Infinite where α ≥ 1 and p has mass that q lacks, or where α ≤ 0
    and q has mass that p lacks.

    Args:
        p: first distribution.
        q: second distribution.
        alpha: order, any finite number. Rounding grows like 1e-16/|α| near 0 and like 1e-16/|1 - α| near 1.

    Raises:
        ValueError: alpha is not finite, or as for the whole module.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> [round(alpha_divergence(p, q, alpha).item(), 4) for alpha in (0.0, 0.5, 1.0, 2.0)]
        [0.3681, 0.4223, 0.5108, 0.8889]
    """
    check_number(alpha=alpha)
    check_distributions(p=p, q=q)
    if alpha == 1:
        return kl(p, q)
    if alpha == 0:
        return kl(q, p)
    in_p, in_q = p > -torch.inf, q > -torch.inf
    both = in_p & in_q
    first, second = torch.where(both, p, 0), torch.where(both, q, 0)
    log_ratio = first - second
    # f(t) = (t^α - αt - (1-α)) / (α(α-1)) with t = p/q is a non-negative generator of the same divergence.
    terms = _scaled_expm1(second, alpha * log_ratio) - alpha * _scaled_expm1(second, log_ratio)
    inside = terms.sum(-1) / (alpha * (alpha - 1))
    # Where only p has mass, t = inf and f(t)/t -> 1/(1-α); where only q has, t = 0 and f(t) = 1/α.
    outside = torch.where(both, 0, p.exp()) / (1 - alpha) + torch.where(both, 0, q.exp()) / alpha
    lacking = in_p & ~in_q if alpha > 1 else in_q & ~in_p if alpha < 0 else torch.zeros_like(both)
    return torch.where(lacking.any(-1), torch.inf, inside + outside.sum(-1))


def gaussian_kl(
    mean: Float[Tensor, "*dims"],
    sd: Float[Tensor, "*dims"],
    ref_mean: Float[Tensor, "*dims"],
    ref_sd: Float[Tensor, "*dims"],
) -> Float[Tensor, "*dims"]:
    """Return KL(N(mean, sd²) ‖ N(ref_mean, ref_sd²)).

    It is log(ref_sd/sd) + (sd² + (mean - ref_mean)²)/(2 ref_sd²) - ½.
    Elementwise, in nats, never negative; equal standard deviations give (mean - ref_mean)²/(2 sd²).

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: a value is not finite, or a standard deviation is not above 0.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> gaussian_kl(zero, one, torch.tensor(0.5), one)
        tensor(0.1250)
    """
    check_finite(mean=mean, sd=sd, ref_mean=ref_mean, ref_sd=ref_sd)
    for name, value in (("sd", sd), ("ref_sd", ref_sd)):
        if not (value > 0).all():
            raise ValueError(f"{name} is {value.min().item()} somewhere; standard deviations are above 0.")
    log_scale = (sd / ref_sd).log()
    shape = torch.expm1(2 * log_scale) - 2 * log_scale  # e^u - 1 - u, so it keeps its digits near 0
    return (shape + ((mean - ref_mean) / ref_sd).square()) / 2


def _scaled_expm1(log_scale: Float[Tensor, "*dims"], u: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Return e^log_scale·(e^u - 1): exact near u = 0, and finite whenever the product is."""
    far = u > 1
    near = log_scale.exp() * torch.expm1(torch.where(far, 0, u))
    return torch.where(far, (log_scale + torch.where(far, u, 0)).exp() - log_scale.exp(), near)
