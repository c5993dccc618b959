"""Optima of the regularised objectives over listed outcomes: one for each direction of the KL."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions, check_finite, check_pair, check_positive, first
from kltutor.divergences import kl


def optimal_policy(
    ref_logp: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"], beta: float
) -> tuple[Float[Tensor, "*batch outcome"], Float[Tensor, "*batch"]]:
    """Return log π* and log Z of the maximiser of E_π[reward] - beta·KL(π ‖ ref).

    π*(y) = ref(y) exp(reward(y)/beta) / Z with Z = Σ ref exp(reward/beta). It is unique for beta > 0, and
    zero exactly where ref is. The maximum itself is beta·log Z.

    Args:
        ref_logp: log-probabilities of every outcome, normalised along the last axis; -inf allowed.
        reward: finite, in the same unit as beta times a nat.
        beta: coefficient of the KL, above 0.

    Returns:
        (log-probabilities of π*, log Z in nats).

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: ref_logp is not normalised, a reward is not finite, or beta is not above 0 or so small
            that reward / beta overflows.

    Source:
        Rafailov et al. (2023), eq. 4. Korbak et al. (2022) read it as a posterior.

    Example:
        >>> ref_logp = torch.tensor([0.5, 0.5]).log()
        >>> logp, log_z = optimal_policy(ref_logp, torch.tensor([1.0, 0.0]), beta=1.0)
        >>> logp.exp(), round(log_z.item(), 4)
        (tensor([0.7311, 0.2689]), 0.6201)
    """
    check_distributions(ref_logp=ref_logp)
    check_finite(reward=reward)
    check_positive(beta=beta)
    tilt = reward / beta
    check_finite(**{"reward / beta": tilt})
    scores = ref_logp + tilt
    log_z = scores.logsumexp(-1)
    return scores - log_z.unsqueeze(-1), log_z


BISECTIONS = 120  # of log x over at most 1 + log(1/ref) nats: below rounding long before


def rational_tilt(
    ref_logp: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"], beta: float
) -> Float[Tensor, "*batch outcome"]:
    """Return log π of the maximiser of E_π[reward] - beta·KL(ref ‖ π), the KL in the other direction.

    π(y) = beta·ref(y)/(λ - reward(y)), with the λ ≥ max reward at which the probabilities sum to 1. This is
    where k3 as a loss comes to rest, since its mean gradient is that of KL(ref ‖ π). A loser keeps a
    probability that falls like beta, not like exp(-gap/beta).

    Where the reference has no mass, KL(ref ‖ π) costs nothing, so the maximiser puts the mass that is left
    over on the best such outcomes, equal shares to equal rewards, if they pay more than all others. A
    policy that samples from itself and starts without mass there never finds them: leave those outcomes out
    to get its resting point.

    Args:
        ref_logp: log-probabilities of every outcome, normalised along the last axis; -inf allowed.
        reward: finite, in the same unit as beta times a nat.
        beta: coefficient of the KL, above 0.

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: ref_logp is not normalised, a reward is not finite, or beta is not above 0 in their dtype.

    Example:
        >>> ref_logp = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
        >>> rational_tilt(ref_logp, torch.tensor([1.0, 0.0], dtype=torch.float64), beta=1.0).exp()
        tensor([0.7071, 0.2929], dtype=torch.float64)
    """
    check_distributions(ref_logp=ref_logp)
    check_finite(reward=reward)
    check_positive(beta=beta)
    check_positive(**{f"beta as {reward.dtype}": torch.tensor(beta, dtype=reward.dtype).item()})
    gap = reward.amax(-1, keepdim=True) - reward  # at least 0; λ = max reward + x
    share = beta * ref_logp.exp()
    free = (gap == 0) & (share == 0)  # the best outcomes, where the reference has no mass
    taken = torch.where(gap > 0, share / torch.where(gap > 0, gap, 1), 0).sum(-1, keepdim=True)
    spare = free.any(-1, keepdim=True) & ~((gap == 0) & (share > 0)).any(-1, keepdim=True) & (taken <= 1)
    floor = torch.where(gap == 0, share, 0).sum(-1, keepdim=True)  # x is at least this: the best alone give 1
    low = torch.where(floor > 0, floor, torch.finfo(gap.dtype).tiny).detach().log()
    high = torch.full_like(low, beta).log()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = (share.detach() / (gap.detach() + middle.exp())).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    total = share / (gap + high.exp())
    mass, bend = total.sum(-1, keepdim=True), (total / (gap + high.exp())).sum(-1, keepdim=True)
    x = high.exp() + (mass - mass.detach()) / bend.detach()  # adds 0, but with the gradient of the root
    log_share = ref_logp + math.log(beta)
    tilted = log_share - (gap + x).log()
    left = (1 - taken).clamp_min(0) / free.sum(-1, keepdim=True).clamp_min(1)
    log_left = torch.where(free & (left > 0), torch.where(left > 0, left, 1).log(), -torch.inf)
    at_best = torch.where(gap > 0, log_share - torch.where(gap > 0, gap, 1).log(), log_left)
    return torch.where(spare, at_best, tilted - tilted.logsumexp(-1, keepdim=True))


def implicit_reward(
    logp: Float[Tensor, "*dims"], ref_logp: Float[Tensor, "*dims"], beta: float
) -> Float[Tensor, "*dims"]:
    """Return beta·log_ratio: the reward of which `logp` is the optimum, up to a constant for each prompt.

    Inverting π* = ref·exp(r/beta)/Z gives r = beta·log(π*/ref) + beta·log Z. One value is not a KL; its mean
    over samples of the policy is beta·KL(policy ‖ ref), its mean over other data is not.

    Args:
        logp: log policy(y | x), nats per sequence.
        ref_logp: log ref(y | x), nats per sequence.
        beta: reward units per nat, above 0.

    Raises:
        jaxtyping.TypeCheckError: a dtype is not floating, or the two shapes differ.
        ValueError: a value is no log-probability, both are -inf at once, the dtypes differ, or beta is not
            above 0.

    Source:
        Rafailov et al. (2023), eq. 5.

    Example:
        >>> implicit_reward(torch.tensor([-1.0]), torch.tensor([-3.0]), beta=0.1)
        tensor([0.2000])
    """
    check_positive(beta=beta)
    check_pair(logp, ref_logp)
    return beta * (logp - ref_logp)


def regularised_value(
    logp: Float[Tensor, "*batch outcome"],
    ref_logp: Float[Tensor, "*batch outcome"],
    reward: Float[Tensor, "*batch outcome"],
    beta: float,
) -> Float[Tensor, "*batch"]:
    """Return J = E_π[reward] - beta·KL(π ‖ ref), by a sum over outcomes; -inf where ref misses some of π.

    J(π) = beta·log Z - beta·KL(π ‖ π*), so it falls short of its maximum by beta times a KL.

    Args:
        logp: log-probabilities of every outcome under the policy, normalised; -inf allowed.
        ref_logp: the same under the reference.
        reward: finite.
        beta: reward units per nat, above 0.

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: a distribution is not normalised, a reward is not finite, or beta is not above 0.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> regularised_value(half, half, torch.tensor([1.0, 0.0]), beta=1.0)
        tensor(0.5000)
    """
    check_positive(beta=beta)
    check_distributions(logp=logp, ref_logp=ref_logp)
    check_finite(reward=reward)
    return (logp.exp() * reward).sum(-1) - beta * kl(logp, ref_logp)


class Frontier(NamedTuple):
    """What the optimum is worth along beta, one value for each batch entry and beta."""

    beta: Float[Tensor, " beta"]
    reward: Float[Tensor, "*batch beta"]  # E_π*[reward]
    kl: Float[Tensor, "*batch beta"]  # KL(π* ‖ ref), nats
    value: Float[Tensor, "*batch beta"]  # J* = beta·log Z
    variance: Float[Tensor, "*batch beta"]  # Var_π*(reward)


def frontier(
    ref_logp: Float[Tensor, "*batch outcome"],
    reward: Float[Tensor, "*batch outcome"],
    betas: Float[Tensor, " beta"],
) -> Frontier:
    """Return reward, KL, value and reward variance of the optimum along beta: the best reward at each KL.

    dJ*/dbeta = -KL*, dKL*/dbeta = -Var*/beta³ and dE*[r]/dKL* = beta. For large beta KL* ≈ Var_ref/(2 beta²);
    as beta goes to 0 it tends to -log ref(best outcomes). Both ends keep their digits: nothing is computed
    as a difference of larger numbers, for beta from 1e-6 to 1e6 at rewards of order 1.

    Args:
        ref_logp: log-probabilities of every outcome, normalised along the last axis; -inf allowed, and such
            outcomes keep probability 0.
        reward: finite.
        betas: coefficients above 0, in any order.

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: ref_logp is not normalised, a reward is not finite, or a beta is not finite and above 0.

    Example:
        >>> half, reward, betas = torch.tensor([[0.5, 0.5], [1.0, 0.0], [1e-6, 1e6]], dtype=torch.float64)
        >>> frontier(half.log(), reward, betas).kl
        tensor([6.9315e-01, 1.2500e-13], dtype=torch.float64)
    """
    check_distributions(ref_logp=ref_logp)
    check_finite(reward=reward, betas=betas)
    if (betas <= 0).any():
        raise ValueError(f"betas{first(betas <= 0)} is {betas.min().item()}; numbers above 0 are expected.")
    ref = ref_logp.exp().unsqueeze(-2)
    ref_logp, possible = ref_logp.unsqueeze(-2), ref > 0
    reward = torch.where(possible, reward.unsqueeze(-2), 0)
    mean = (ref * reward).sum(-1, keepdim=True)
    best = reward.masked_fill(~possible, -torch.inf).amax(-1, keepdim=True)
    # Measured from the mean a small tilt keeps its digits, measured from the best a large one.
    beta = betas.unsqueeze(-1)
    small = (torch.where(possible, reward - mean, 0).abs().amax(-1, keepdim=True) / beta) < 1
    origin = torch.where(small, mean, best)
    tilt = torch.where(possible, (reward - origin) / beta, 0)
    check_finite(**{"reward / betas": tilt})
    log_z = torch.where(
        small,
        (ref * torch.where(small, tilt, 0).expm1()).sum(-1, keepdim=True).log1p(),
        (ref_logp + tilt).logsumexp(-1, keepdim=True),
    )
    log_ratio = tilt - log_z
    probs = torch.where(possible, (ref_logp + log_ratio).exp(), 0)
    # p·(e^-d - 1 + d) is ref - p + p·d, and either form loses digits where the other keeps them.
    near = log_ratio.abs() < 1
    terms = torch.where(
        near,
        probs * (torch.where(near, -log_ratio, 0).expm1() + log_ratio),
        ref - probs + torch.where(probs > 0, probs * log_ratio, 0),
    )
    gain = (probs * (reward - origin)).sum(-1, keepdim=True)
    away = torch.where(probs > 0, reward - origin - gain, 0)  # so that 0·∞ is 0
    spread = (probs * away.square()).sum(-1)
    expected, value = ((origin + x).squeeze(-1) for x in (gain, beta * log_z))
    return Frontier(betas, expected, terms.sum(-1), value, spread)
