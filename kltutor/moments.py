"""Exact mean and variance of k1, k2 and k3, by a sum over outcomes or in closed form for Gaussians."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions, check_number, check_positive, first
from kltutor.divergences import chi2, jeffreys, kl
from kltutor.estimators import k1, k2, k3


class Moments(NamedTuple):
    """Mean, variance and bias of one estimator under the policy, in nats, nats² and nats."""

    mean: Tensor
    variance: Tensor
    bias: Tensor  # mean minus KL(policy ‖ ref)


def estimator_moments(
    policy_logp: Float[Tensor, "*batch outcome"], ref_logp: Float[Tensor, "*batch outcome"]
) -> dict[str, Moments]:
    """Return the exact moments of one draw of k1, k2 and k3, by a sum over all outcomes.

    Outcomes of probability zero under the policy are never drawn, so they do not count: where the
    policy misses a mass m of the reference, the bias of k3 is -m.

    Args:
        policy_logp: log-probabilities of every outcome under the policy, which is also the sampler.
        ref_logp: the same under the reference.

    Returns:
        ``{"k1": Moments, "k2": Moments, "k3": Moments}``, one value per batch entry; mean and variance
        are inf where the policy can draw what the reference cannot.

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: either argument is not a normalised distribution, or an outcome is so much rarer under
            the policy than under the reference that k3 overflows.

    Example:
        >>> logp = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
        >>> ref_logp = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
        >>> moments = estimator_moments(logp, ref_logp)
        >>> [round(moments[name].mean.item(), 4) for name in ("k1", "k2", "k3")]
        [0.3681, 0.285, 0.3681]
    """
    check_distributions(policy_logp=policy_logp, ref_logp=ref_logp)
    drawn = policy_logp > -torch.inf
    possible = ref_logp > -torch.inf
    infinite = (drawn & ~possible).any(-1)  # then every estimator is inf with positive probability
    logp, other = (x.masked_fill(~(drawn & possible), 0) for x in (policy_logp, ref_logp))
    divergence = kl(policy_logp, ref_logp)
    moments = {}
    for estimator in (k1, k2, k3):
        value = estimator(logp, other)
        if value.isinf().any():
            raise ValueError(
                f"policy_logp{first(value.isinf())} is so far below ref_logp that {estimator.__name__} "
                f"overflows {value.dtype}. Pass float64, or set outcomes that are never drawn to -inf."
            )
        mean = (policy_logp.exp() * value).sum(-1)
        scatter = (policy_logp / 2).exp() * (value - mean.unsqueeze(-1))  # squared last: it may be large
        mean, variance = (torch.where(infinite, torch.inf, x) for x in (mean, scatter.square().sum(-1)))
        bias = torch.where(infinite, 0, mean - divergence)
        moments[estimator.__name__] = Moments(mean, variance, bias)
    return moments


def optimal_coef(
    policy_logp: Float[Tensor, "*batch outcome"], ref_logp: Float[Tensor, "*batch outcome"]
) -> Float[Tensor, "*batch"]:
    """Return the coef of `control_variate` with the least variance, J(policy, ref) / χ²(ref ‖ policy).

    J is Jeffreys' divergence KL(policy ‖ ref) + KL(ref ‖ policy); Cov(k1, w - 1) = -J exactly. The least
    variance is Var k1 - J²/χ². It tends to 1 as the two meet, and may exceed 1.

    Args:
        policy_logp: log-probabilities of every outcome under the policy.
        ref_logp: the same under the reference.

    Returns:
        One coefficient per batch entry, without unit.

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: not normalised; the two are equal (every coef then has variance 0); or one gives
            probability zero where the other does not, so that J is infinite.

    Example:
        >>> logp = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
        >>> round(optimal_coef(logp, logp.flip(-1)).item(), 4)
        0.8727
    """
    check_distributions(policy_logp=policy_logp, ref_logp=ref_logp)
    spread, distance = chi2(ref_logp, policy_logp), jeffreys(policy_logp, ref_logp)
    if (spread == 0).any():
        raise ValueError("policy_logp equals ref_logp, so every coef has variance 0 and none is optimal.")
    if distance.isinf().any():
        raise ValueError(
            "policy_logp and ref_logp have different supports, so Jeffreys' divergence is infinite."
        )
    return distance / spread


def gaussian_moments(mu: float, sigma: float = 1.0) -> dict[str, Moments]:
    """Return the exact moments of k1, k2 and k3 for policy N(0, 1) and reference N(mu, sigma²).

    log_ratio = a(y² - 1) + b y + KL with a = (1/sigma² - 1)/2 and b = -mu/sigma². Its cumulants
    c_n = n!·[(2a)^n/(2n) + b²(2a)^(n-2)/2] give k1 and k2. For k3,
    Var k3 = Var k1 + χ²(ref ‖ policy) - 2 J, which is inf from sigma = √2 on.

    Args:
        mu: mean of the reference, any finite number.
        sigma: standard deviation of the reference, above 0.

    Returns:
        ``{"k1": Moments, "k2": Moments, "k3": Moments}`` as float64 scalars. The variance of k3 comes from
        a difference, so its relative error grows like 1e-16/KL when the two nearly agree.

    Raises:
        ValueError: mu is not finite, or sigma is not above 0.

    Example:
        >>> moments = gaussian_moments(0.5)
        >>> round(moments["k2"].mean.item(), 7), round(moments["k3"].variance.item(), 10)
        (0.1328125, 0.0340254167)
        >>> gaussian_moments(0.0, 1.5)["k3"].variance
        tensor(inf, dtype=torch.float64)
    """
    check_number(mu=mu)
    check_positive(sigma=sigma)
    m, s = torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    excess = s.square() - 1
    a, b = -excess / (2 * s.square()), -m / s.square()
    divergence = s.log() + (m.square() - excess) / (2 * s.square())
    c2, c3, c4 = 2 * a**2 + b**2, 8 * a**3 + 6 * a * b**2, 48 * a**4 + 48 * a**2 * b**2
    second = c2 + divergence**2
    var_square = c4 + 2 * c2**2 + 4 * divergence * c3 + 4 * divergence**2 * c2  # of log_ratio²
    both = (excess**2 + 2 * m**2 + m**2 * excess) / (2 * (1 + excess))  # Jeffreys, free of cancellation
    if excess < 1:  # χ²(ref ‖ policy) = E_ref[w] - 1 exists
        exponent = m**2 / (1 - excess) - torch.log1p(-(excess**2)) / 2
        var_k3 = torch.expm1(exponent) - m**2 if excess == 0 else c2 + torch.expm1(exponent) - 2 * both
    else:
        var_k3 = torch.full_like(m, torch.inf)
    zero = torch.zeros_like(m)
    return {
        "k1": Moments(divergence, c2, zero),
        "k2": Moments(second / 2, var_square / 4, second / 2 - divergence),
        "k3": Moments(divergence, var_k3, zero),
    }
