"""Best of n: the law of the draw that is kept, and how far it lies from the reference."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions, check_finite
from kltutor.divergences import kl

NOTHING = -1e30  # log-probability of an impossible outcome where -inf would spoil a gradient


def best_of_n(
    ref_logp: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"], n: int
) -> Float[Tensor, "*batch outcome"]:
    """Return the log-probabilities of the best of n independent draws from the reference.

    With F the probability of a reward at most as large and F₋ of a smaller one, an outcome is chosen with
    probability ref·(Fⁿ - F₋ⁿ)/(F - F₋): outcomes of equal reward share in proportion to the reference.

    Args:
        ref_logp: log-probabilities of every outcome, normalised along the last axis; -inf allowed.
        reward: finite; equal rewards are ties.
        n: number of draws, at least 1; 1 gives the reference back.

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: ref_logp is not normalised, a reward is not finite, or n is below 1.

    Example:
        >>> best_of_n(torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]), n=3).exp()
        tensor([0.8750, 0.1250])
    """
    check_distributions(ref_logp=ref_logp)
    check_finite(reward=reward)
    if n < 1:
        raise ValueError(f"n is {n}; at least 1 draw is expected.")
    possible = ref_logp > -torch.inf
    below, level, above = _masses(ref_logp, reward)
    # log F from whichever tail is smaller, so that it keeps its digits near 0 and near 1.
    at_most = torch.where(
        above.exp() < 0.5, (-above.exp().clamp(max=0.5)).log1p(), torch.logaddexp(below, level)
    )
    # With s = (F - F₋)/F the law is ref·Fⁿ⁻¹·(1 - (1 - s)ⁿ)/s; the quotient is 1 for the worst, n as s → 0.
    inner = possible & (below > -torch.inf)
    log_s = torch.where(inner, level - at_most, -1)
    rest = torch.where(log_s < -1, (-log_s.clamp(max=-1).exp()).log1p(), below - at_most)  # log(1 - s)
    rare = log_s < math.log(torch.finfo(log_s.dtype).tiny)
    quotient = (-torch.expm1(n * torch.where(inner & ~rare, rest, -1))).log() - log_s
    quotient = torch.where(inner, torch.where(rare, math.log(n), quotient), 0)
    return torch.where(possible, ref_logp + (n - 1) * at_most + quotient, -torch.inf)


def best_of_n_kl(
    ref_logp: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"], n: int
) -> Float[Tensor, "*batch"]:
    """Return KL(best-of-n ‖ ref) in nats, exactly; arguments and errors as `best_of_n`.

    It is below `best_of_n_kl_bound(n)` for n > 1, as one of finitely many outcomes can be drawn twice.

    Example:
        >>> ref_logp, reward = torch.full((4,), 0.25).log(), torch.arange(4.0)
        >>> bool(best_of_n_kl(ref_logp, reward, 4) < best_of_n_kl_bound(4))
        True
    """
    return kl(best_of_n(ref_logp, reward, n), ref_logp)


def best_of_n_kl_bound(n: int) -> float:
    """Return log n - (n - 1)/n, the KL of best-of-n for a continuous reward and a bound for any other.

    Raises:
        ValueError: n is below 1.

    Source:
        Stiennon et al. (2020) use it as the KL; Beirami et al. (2025) show that it bounds the KL.

    Example:
        >>> round(best_of_n_kl_bound(4), 6)
        0.636294
    """
    if n < 1:
        raise ValueError(f"n is {n}; at least 1 draw is expected.")
    return math.log(n) - (n - 1) / n


def _masses(
    ref_logp: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"]
) -> tuple[Float[Tensor, "*batch outcome"], Float[Tensor, "*batch outcome"], Float[Tensor, "*batch outcome"]]:
    """Return for each outcome the log-mass of smaller, of equal and of larger rewards.

    In logs, so that a mass too small for a float still counts; by sorting, so that thousands of outcomes do.
    """
    ordered, order = reward.sort(-1)
    logp = ref_logp.gather(-1, order).clamp_min(NOTHING)
    rises = (ordered[..., 1:] != ordered[..., :-1]).cumsum(-1)
    group = torch.cat([torch.zeros_like(order[..., :1]), rises], -1)
    nothing = torch.full_like(logp, NOTHING)
    largest = nothing.scatter_reduce(-1, group, logp.detach(), "amax")
    share = torch.zeros_like(logp).scatter_add(-1, group, (logp - largest.gather(-1, group)).exp())
    level = torch.where(share > 0, largest + torch.where(share > 0, share, 1).log(), NOTHING)
    edge = nothing[..., :1]
    below = torch.cat([edge, level.logcumsumexp(-1)[..., :-1]], -1)
    above = torch.cat([level.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:], edge], -1)
    place = order.argsort(-1)
    below, level, above = (mass.gather(-1, group).gather(-1, place) for mass in (below, level, above))
    return below.masked_fill(below <= NOTHING / 2, -torch.inf), level, above
