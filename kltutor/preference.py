"""Losses that learn from preferences, one value a pair, and what to watch beside them.

DPO, IPO and KTO take log-probabilities of whole completions, nats per sequence: `masked_sum` of the token
log-probabilities. SimPO and ORPO take means per token, nats per token: `masked_mean`. The argument names say
which; a mean where a sum belongs changes beta by the length of the completion.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from kltutor.checks import check_detached, check_finite, check_logps, check_nonnegative, check_positive, first


def bradley_terry(reward: Float[Tensor, "*dims"], other: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Return the probability that a completion of the first reward is preferred, σ(reward - other).

    Only the difference matters, so a reward is known up to a constant for each prompt.

    Raises:
        jaxtyping.TypeCheckError: a dtype is not floating, or the two shapes differ.
        ValueError: a reward is not finite.

    Source:
        Bradley and Terry (1952); Rafailov et al. (2023), eq. 1.

    Example:
        >>> bradley_terry(torch.tensor([1.0]), torch.tensor([0.0]))
        tensor([0.7311])
    """
    check_finite(reward=reward, other=other)
    return torch.sigmoid(reward - other)


def dpo_loss(
    chosen_seq_logp: Float[Tensor, " batch"],
    rejected_seq_logp: Float[Tensor, " batch"],
    ref_chosen_seq_logp: Float[Tensor, " batch"],
    ref_rejected_seq_logp: Float[Tensor, " batch"],
    beta: float,
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Return -(1 - ε) log σ(h) - ε log σ(-h) with h = beta·(log_ratio of chosen - log_ratio of rejected).

    The gradient in h is σ(h) - (1 - ε): zero at σ(h) = 1 - ε, and never zero at ε = 0, so that without
    noise the margin has no finite optimum. Values are log 2 where the policy is the reference.

    Args:
        chosen_seq_logp: log policy(chosen | prompt), nats per sequence.
        rejected_seq_logp: log policy(rejected | prompt), nats per sequence.
        ref_chosen_seq_logp: the same under the reference.
        ref_rejected_seq_logp: the same under the reference.
        beta: reward units per nat, above 0.
        label_smoothing: ε, the probability that a label is flipped, from 0 to below one half.

    Returns:
        One loss a pair, no unit.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: a value is no log-probability or is -inf, the dtypes differ, a reference requires grad,
            beta is not above 0, or label_smoothing lies outside 0 to 0.5.

    Source:
        Rafailov et al. (2023), eq. 7; with label_smoothing the conservative DPO of their code.

    Example:
        >>> logps = torch.tensor([-5.0]), torch.tensor([-7.0]), torch.tensor([-6.0]), torch.tensor([-6.0])
        >>> dpo_loss(*logps, beta=0.5)
        tensor([0.3133])
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; from 0 to below 0.5 is expected.")
    margin = beta * _margin(
        chosen_seq_logp, rejected_seq_logp, ref_chosen_seq_logp, ref_rejected_seq_logp, beta
    )
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def ipo_loss(
    chosen_seq_logp: Float[Tensor, " batch"],
    rejected_seq_logp: Float[Tensor, " batch"],
    ref_chosen_seq_logp: Float[Tensor, " batch"],
    ref_rejected_seq_logp: Float[Tensor, " batch"],
    beta: float,
) -> Float[Tensor, " batch"]:
    """Return (h - 1/(2 beta))², h the difference of the log-ratios of chosen and rejected, in nats.

    A regression, so the optimal margin is finite even where one completion always wins: 1/(2 beta). With
    preference probability p its optimum is (p - ½)/beta. The paper writes τ for beta.

    Args, shapes and errors as `dpo_loss`.

    Source:
        Azar et al. (2024), eq. 17.

    Example:
        >>> logps = torch.tensor([-5.0]), torch.tensor([-7.0]), torch.tensor([-6.0]), torch.tensor([-6.0])
        >>> ipo_loss(*logps, beta=0.25)
        tensor([0.])
    """
    margin = _margin(chosen_seq_logp, rejected_seq_logp, ref_chosen_seq_logp, ref_rejected_seq_logp, beta)
    return (margin - 1 / (2 * beta)).square()


def kto_reference_point(
    mismatched_seq_logp: Float[Tensor, " batch"], ref_mismatched_seq_logp: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return z₀, the estimate of KL(policy ‖ ref) that KTO compares with: max(0, mean log-ratio), held fixed.

    It is taken over completions paired with prompts they do not answer, so it is not an estimate of the KL
    on the policy's own samples; the clamp makes its mean larger than that of the log-ratio.

    Args:
        mismatched_seq_logp: log policy(completion | another prompt), nats per sequence.
        ref_mismatched_seq_logp: the same under the reference.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: the batch is empty, a value is no log-probability or is -inf, or the dtypes differ.

    Source:
        Ethayarajh et al. (2024), and its code.

    Example:
        >>> kto_reference_point(torch.tensor([-3.0, -4.0]), torch.tensor([-4.0, -4.0]))
        tensor(0.5000)
    """
    if len(mismatched_seq_logp) == 0:
        raise ValueError("mismatched_seq_logp has no rows; at least one pair is expected.")
    _check_finite_logps(
        mismatched_seq_logp=mismatched_seq_logp, ref_mismatched_seq_logp=ref_mismatched_seq_logp
    )
    return (mismatched_seq_logp - ref_mismatched_seq_logp).mean().clamp_min(0).detach()


def kto_loss(
    seq_logp: Float[Tensor, " batch"],
    ref_seq_logp: Float[Tensor, " batch"],
    desirable: Bool[Tensor, " batch"],
    reference_point: Float[Tensor, ""],
    beta: float,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Return w·(1 - σ(±beta·(log_ratio - z₀))), + and - for desirable and undesirable completions.

    Single completions, no pairs. z₀ is in nats; beta multiplies the difference.

    Args:
        seq_logp: log policy(completion | prompt), nats per sequence.
        ref_seq_logp: the same under the reference.
        desirable: which completions are wanted.
        reference_point: z₀ in nats, at least 0, as from `kto_reference_point`.
        beta: above 0.
        desirable_weight: of the loss of desirable completions, at least 0.
        undesirable_weight: of the others, at least 0.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: a value is no log-probability or is -inf, the dtypes differ, an input but seq_logp
            requires grad, reference_point is negative, beta is not above 0, or a weight is negative.

    Source:
        Ethayarajh et al. (2024), and its code.

    Example:
        >>> logp, ref_logp = torch.tensor([-3.0, -3.0]), torch.tensor([-4.0, -4.0])
        >>> kto_loss(logp, ref_logp, torch.tensor([True, False]), torch.tensor(1.0), beta=0.1)
        tensor([0.5000, 0.5000])
    """
    check_positive(beta=beta)
    check_nonnegative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    check_detached(ref_seq_logp=ref_seq_logp, reference_point=reference_point)
    _check_finite_logps(seq_logp=seq_logp, ref_seq_logp=ref_seq_logp)
    _check_dtypes(seq_logp=seq_logp, reference_point=reference_point)
    check_nonnegative(reference_point=reference_point.item())
    excess = beta * (seq_logp - ref_seq_logp - reference_point)
    wanted = desirable_weight * torch.sigmoid(-excess)
    return torch.where(desirable, wanted, undesirable_weight * torch.sigmoid(excess))


def simpo_loss(
    chosen_mean_logp: Float[Tensor, " batch"],
    rejected_mean_logp: Float[Tensor, " batch"],
    beta: float,
    gamma: float,
) -> Float[Tensor, " batch"]:
    """Return -log σ(beta·(chosen - rejected) - gamma), on mean log-probabilities, without a reference.

    Args:
        chosen_mean_logp: (1/length)·log policy(chosen | prompt), nats per token.
        rejected_mean_logp: (1/length)·log policy(rejected | prompt), nats per token.
        beta: above 0; published values are 2 and more, since means are small.
        gamma: the margin asked for, at least 0, no unit.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: a value is no log-probability or is -inf, the dtypes differ, beta is not above 0, or gamma
            is negative.

    Source:
        Meng et al. (2024). Its code takes the ratio gamma/beta instead of gamma.

    Example:
        >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]), beta=2.0, gamma=1.0)
        tensor([0.6931])
    """
    check_positive(beta=beta)
    check_nonnegative(gamma=gamma)
    _check_finite_logps(chosen_mean_logp=chosen_mean_logp, rejected_mean_logp=rejected_mean_logp)
    return -logsigmoid(beta * (chosen_mean_logp - rejected_mean_logp) - gamma)


def orpo_loss(
    chosen_mean_logp: Float[Tensor, " batch"], rejected_mean_logp: Float[Tensor, " batch"], beta: float
) -> Float[Tensor, " batch"]:
    """Return -chosen - beta·log σ(log odds of chosen - log odds of rejected), odds P/(1 - P), P = e^mean.

    The first term is supervised training on the chosen completion, the second asks for better odds. There
    is no reference.

    Args:
        chosen_mean_logp: (1/length)·log policy(chosen | prompt), nats per token.
        rejected_mean_logp: (1/length)·log policy(rejected | prompt), nats per token.
        beta: weight of the odds term, at least 0; the paper writes λ.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: a value is no log-probability, is -inf, or is 0 (odds infinite); the dtypes differ;
            beta is negative.

    Source:
        Hong et al. (2024), eq. 6 and 7.

    Example:
        >>> orpo_loss(torch.tensor([-0.6931]), torch.tensor([-0.6931]), beta=1.0)
        tensor([1.3862])
    """
    check_nonnegative(beta=beta)
    logps = {"chosen_mean_logp": chosen_mean_logp, "rejected_mean_logp": rejected_mean_logp}
    _check_finite_logps(**logps)
    for name, logp in logps.items():
        if (logp >= 0).any():
            raise ValueError(
                f"{name}{first(logp >= 0)} is {logp[logp >= 0][0].item():.4g}, so its odds are infinite; "
                "below 0 is expected."
            )
    chosen, rejected = (logp - torch.log(-torch.expm1(logp)) for logp in logps.values())
    return -chosen_mean_logp - beta * logsigmoid(chosen - rejected)


def preference_metrics(
    chosen_seq_logp: Float[Tensor, " batch"],
    rejected_seq_logp: Float[Tensor, " batch"],
    ref_chosen_seq_logp: Float[Tensor, " batch"],
    ref_rejected_seq_logp: Float[Tensor, " batch"],
    beta: float,
    *,
    weights: Float[Tensor, " batch"] | None = None,
) -> dict[str, float]:
    """Return what to log beside a pairwise loss: mean implicit rewards, margin, accuracy.

    The implicit reward is beta·log_ratio. Both may fall while the margin grows. Their means are taken over
    the data, so neither is beta times a KL.

    Args, shapes and errors as `dpo_loss`. The means are weighted by `weights`, at least 0 and not all 0; None
    counts all pairs alike. An empty batch is a ValueError too.

    Returns:
        ``chosen_reward``, ``rejected_reward``, ``margin`` in reward units; ``accuracy``, the share of pairs
        of positive margin, a tie counting one half.

    Example:
        >>> logps = torch.tensor([-7.0]), torch.tensor([-9.0]), torch.tensor([-6.0]), torch.tensor([-6.0])
        >>> preference_metrics(*logps, beta=0.5)
        {'chosen_reward': -0.5, 'rejected_reward': -1.5, 'margin': 1.0, 'accuracy': 1.0}
    """
    margin = _margin(chosen_seq_logp, rejected_seq_logp, ref_chosen_seq_logp, ref_rejected_seq_logp, beta)
    if len(margin) == 0:
        raise ValueError("chosen_seq_logp has no rows; at least one pair is expected.")
    counts = torch.ones_like(margin) if weights is None else weights.to(margin)
    check_nonnegative(weights=counts.min().item())
    check_positive(weights=counts.sum().item())
    values = {
        "chosen_reward": beta * (chosen_seq_logp - ref_chosen_seq_logp),
        "rejected_reward": beta * (rejected_seq_logp - ref_rejected_seq_logp),
        "margin": beta * margin,
        "accuracy": (margin.sign() + 1) / 2,
    }
    return {name: (counts @ value / counts.sum()).item() for name, value in values.items()}


def _margin(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """Return the log-ratio of chosen minus that of rejected, in nats."""
    check_positive(beta=beta)
    refs = {"ref_chosen_seq_logp": ref_chosen, "ref_rejected_seq_logp": ref_rejected}
    check_detached(**refs)
    _check_finite_logps(chosen_seq_logp=chosen, rejected_seq_logp=rejected, **refs)
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def _check_finite_logps(**logps: Tensor) -> None:
    """Raise ValueError unless every value is a finite log-probability, and all have one dtype."""
    check_logps(**logps)
    check_finite(**logps)
    _check_dtypes(**logps)


def _check_dtypes(**values: Tensor) -> None:
    dtypes = {name: value.dtype for name, value in values.items()}
    if len(set(dtypes.values())) > 1:
        raise ValueError(f"dtypes differ, {dtypes}; convert all to the same.")
