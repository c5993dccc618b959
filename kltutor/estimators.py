"""Per-sample estimators of KL(policy ‖ ref), from log-probabilities alone.

The samples are drawn from the policy. Everywhere in this package

    log_ratio = logp - ref_logp = log(policy(x) / ref(x))        [nats]

so it is positive where the policy likes x more than the reference does. Schulman (2020) writes
r = ref(x) / policy(x), here w: his log r is our -log_ratio. Estimators are elementwise. They neither
mask nor average; `kltutor.masking` does. Fill masked positions first: `logp.masked_fill(~mask, 0)`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_logits, check_number, check_pair
from kltutor.divergences import kl


def k1(logp: Float[Tensor, "*dims"], ref_logp: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Estimate KL(policy ‖ ref) as log_ratio, one value per sample.

    Unbiased by definition. Single values are negative wherever ref likes the sample more. As a loss,
    with the samples held fixed, its mean gradient is zero.

    Args:
        logp: log policy(x) in nats, of samples x drawn from the policy.
        ref_logp: log ref(x) in nats, of the same samples.

    Returns:
        One estimate per sample in nats; inf where the reference gives a sample probability zero.

    Raises:
        jaxtyping.TypeCheckError: a dtype is not floating, or the two shapes differ.
        ValueError: a value is nan or above 0, both are -inf at once, or the dtypes differ.

    Source:
        Schulman (2020), k1.

    Example:
        >>> policy, ref = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
        >>> k1(policy.log(), ref.log())
        tensor([ 0.2231, -0.2877,  0.0000])
    """
    check_pair(logp, ref_logp)
    return logp - ref_logp


def k2(logp: Float[Tensor, "*dims"], ref_logp: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Estimate KL(policy ‖ ref) as log_ratio² / 2, one value per sample.

    Never negative, and biased: E[k2] - KL is third order in the distance, of either sign. As a loss on
    one action or on a whole-sequence log-ratio its mean gradient is that of KL(policy ‖ ref).

    Args:
        logp: log policy(x) in nats, of samples x drawn from the policy.
        ref_logp: log ref(x) in nats, of the same samples.

    Returns:
        One estimate per sample in nats; inf where the reference gives a sample probability zero.

    Raises:
        jaxtyping.TypeCheckError: a dtype is not floating, or the two shapes differ.
        ValueError: a value is nan or above 0, both are -inf at once, or the dtypes differ.

    Source:
        Schulman (2020), k2.

    Example:
        >>> k2(torch.tensor([-1.0]), torch.tensor([-3.0]))
        tensor([2.])
    """
    check_pair(logp, ref_logp)
    return (logp - ref_logp).square() / 2


def k3(logp: Float[Tensor, "*dims"], ref_logp: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Estimate KL(policy ‖ ref) as expm1(-log_ratio) + log_ratio, one value per sample.

    Never negative, since e^u >= 1 + u. Unbiased, since E_policy[ref / policy] = 1, provided the
    policy can draw whatever the reference can: true of a softmax, false after top-k sampling.
    As a loss, with the samples held fixed, its mean gradient is that of KL(ref ‖ policy).

    Args:
        logp: log policy(x) in nats, of samples x drawn from the policy.
        ref_logp: log ref(x) in nats, of the same samples.

    Returns:
        One estimate per sample in nats; inf where either model gives a sample probability zero, and
        where expm1 overflows (log_ratio below about -88 in float32, -709 in float64).

    Raises:
        jaxtyping.TypeCheckError: a dtype is not floating, or the two shapes differ.
        ValueError: a value is nan or above 0, both are -inf at once, or the dtypes differ.

    Source:
        Schulman (2020), k3. Shao et al. (2024), eq. 4.

    Example:
        >>> policy, ref = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
        >>> estimate = k3(policy.log(), ref.log())  # one per outcome, so weighting them ...
        >>> round((policy @ estimate).item(), 4)  # ... gives the exact expectation
        0.0253
    """
    check_pair(logp, ref_logp)
    log_ratio = logp - ref_logp
    estimate = torch.expm1(-log_ratio) + log_ratio
    undrawn = log_ratio == -torch.inf  # the limit of e^u - 1 - u is inf, not inf - inf
    return torch.where(undrawn, torch.inf, estimate)


def control_variate(
    logp: Float[Tensor, "*dims"], ref_logp: Float[Tensor, "*dims"], coef: float
) -> Float[Tensor, "*dims"]:
    """Estimate KL(policy ‖ ref) as k1 + coef·(w - 1) with w = ref/policy, one value per sample.

    E_policy[w - 1] = 0 where the policy covers the reference, so every coef is unbiased: 0 gives k1, 1
    gives k3, the only member that is never negative. `optimal_coef` has the least variance.

    Args:
        logp: log policy(x) in nats, of samples x drawn from the policy.
        ref_logp: log ref(x) in nats, of the same samples.
        coef: weight of the control variate, any finite number.

    Raises:
        jaxtyping.TypeCheckError: a dtype is not floating, or the two shapes differ.
        ValueError: coef is not finite; a value is nan or above 0, both are -inf at once, or the dtypes
            differ.

    Source:
        Schulman (2020).

    Example:
        >>> control_variate(torch.tensor([-1.0]), torch.tensor([-1.5]), coef=0.0)
        tensor([0.5000])
    """
    check_pair(logp, ref_logp)
    check_number(coef=coef)
    log_ratio = logp - ref_logp
    if coef == 0:
        return log_ratio  # 0·inf would be nan
    estimate = log_ratio + coef * torch.expm1(-log_ratio)
    undrawn = log_ratio == -torch.inf  # there the exponential wins: coef·inf, not inf - inf
    return torch.where(undrawn, coef * torch.inf, estimate)


def full_vocab_kl(
    logits: Float[Tensor, "*dims vocab"], ref_logits: Float[Tensor, "*dims vocab"]
) -> Float[Tensor, "*dims"]:
    """Return KL(policy ‖ ref) of the next-token distributions, summed over the vocabulary.

    This is E[k1 | prefix], the Rao-Blackwell form of the sampled log-ratio: the same mean, and never a
    larger variance given the prefix. A sum over positions of a sequence may still vary more than the
    sum of k1 does, because the prefixes are random.

    Args:
        logits: policy scores in any normalisation; -inf bans a token.
        ref_logits: reference scores at the same positions, over the same vocabulary.

    Returns:
        Nats per position, in the dtype of the logits though summed in float32 at least; inf where the
        policy can draw a token that the reference cannot.

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: a logit is nan or +inf, or a whole row is -inf.

    Source:
        Amini, Vieira and Cotterell (2025).

    Example:
        >>> full_vocab_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([0.])
    """
    check_logits(logits=logits, ref_logits=ref_logits)
    dtype = torch.promote_types(logits.dtype, ref_logits.dtype)
    wide = torch.promote_types(dtype, torch.float32)  # half precision would drown a small KL in rounding
    logp, ref_logp = logits.log_softmax(-1, dtype=wide), ref_logits.log_softmax(-1, dtype=wide)
    return kl(logp, ref_logp).to(dtype)
