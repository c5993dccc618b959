"""Policy-gradient losses and their advantages: one function an algorithm.

Losses are to be minimised. Shapes are (batch, time), one row a completion; mask is True at action tokens.
To `reinforce` and `ppo_clip_loss` batches may come stacked on leading axes: each has a loss of its own.
Advantages are numbers: none may require grad. Per-completion advantages have shape (batch), and `group`
says which completions answer the same prompt; any integers will do.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor.checks import check_detached, check_finite, check_logps, check_nonnegative, check_positive
from kltutor.masking import Reduction, reduce
from kltutor.placement import importance_weight, kl_terms


def reinforce(
    logp: Float[Tensor, "*stack batch time"],
    advantages: Float[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
    *,
    reduction: Reduction = "sequence_sum",
) -> Float[Tensor, "*stack"]:
    """Return -Σ_t A_t log π(a_t), reduced; its gradient is minus the policy gradient.

    With the reduction "sequence_sum" and A_t the reward-to-go, less a baseline that does not depend on the
    token or what follows, the mean gradient is exactly -∇E[return]. The other reductions weight completions
    by their length.

    Args:
        logp: log-probabilities of the tokens under the policy that drew them, nats per token.
        advantages: one per token, in reward units.
        mask: True at action tokens.
        reduction: as `reduce`.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: advantages require grad or are not finite at an action token; a value is no
            log-probability, or is -inf (so drawn by another policy); a row has no action token.

    Source:
        Williams (1992), "Simple statistical gradient-following algorithms for connectionist RL".

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> reinforce(logp, torch.tensor([[3.0, 1.0]]), torch.tensor([[True, True]])).backward()
        >>> logp.grad
        tensor([[-3., -1.]])
    """
    logp, advantages = _filled(logp, advantages, mask)
    check_finite(logp=logp)
    return -reduce(advantages * logp, mask, reduction)


def ppo_clip_loss(
    logp: Float[Tensor, "*stack batch time"],
    old_logp: Float[Tensor, "*stack batch time"],
    advantages: Float[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
    clip_eps: float,
    *,
    reduction: Reduction = "token_mean",
) -> Float[Tensor, "*stack"]:
    """Return -min(ρ A, clip(ρ, 1 - clip_eps, 1 + clip_eps) A) with the per-token ρ = policy/old, reduced.

    The gradient of a token is zero exactly where ρ > 1 + clip_eps and A > 0, or ρ < 1 - clip_eps and A < 0.
    Distance is measured to the policy that drew the samples, not to the reference.

    Args:
        logp: under the policy that learns, nats per token.
        old_logp: under the policy that drew the tokens.
        advantages: one per token, net of any KL in the reward.
        mask: True at action tokens.
        clip_eps: half width of the interval, above 0; 1 or more leaves ratios below 1 unclipped.
        reduction: as `reduce`; the paper averages over tokens.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: old_logp or advantages require grad; clip_eps is not above 0; a value is no
            log-probability; an advantage is not finite; a row has no action token.

    Source:
        Schulman et al. (2017), eq. 7.

    Example:
        >>> mask = torch.tensor([[True, True]])
        >>> logp = torch.tensor([[0.6, 0.3]]).log().requires_grad_()
        >>> ppo_clip_loss(logp, torch.tensor([[0.4, 0.3]]).log(), torch.ones(1, 2), mask, 0.2).backward()
        >>> logp.grad  # the first ratio is 1.5 and the advantage positive
        tensor([[ 0.0000, -0.5000]])
    """
    check_positive(clip_eps=clip_eps)
    logp, advantages = _filled(logp, advantages, mask)
    ratio = importance_weight(logp, old_logp, mask, "token", "differentiable")
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    return -reduce(torch.minimum(ratio * advantages, clipped * advantages), mask, reduction)


def grpo_loss(
    logp: Float[Tensor, "batch time"],
    old_logp: Float[Tensor, "batch time"],
    ref_logp: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"],
    beta: float,
    clip_eps: float,
    *,
    reduction: Reduction = "sequence_mean",
) -> Float[Tensor, ""]:
    """Return the clipped surrogate of `ppo_clip_loss` plus beta·k3(logp, ref_logp) of each token, reduced.

    GRPO as published: the same advantage for every token of a completion, 1/length inside the mean over
    completions, k3 in the loss and without a ratio. The KL term's mean gradient is that of KL(ref ‖ policy)
    per prefix, not of KL(policy ‖ ref).

    Args:
        logp: under the policy that learns, nats per token.
        old_logp: under the policy that drew the tokens.
        ref_logp: under the reference.
        mask: True at action tokens.
        advantages: one per completion, as from `group_advantages`.
        beta: coefficient of the KL, at least 0, per normalised advantage and nat.
        clip_eps: half width of the clip interval, above 0.
        reduction: "sequence_mean" as published; "sequence_sum" removes the length weights.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: as `ppo_clip_loss` and `kl_loss`; beta is negative.

    Source:
        Shao et al. (2024), eq. 3 and 4.

    Example:
        >>> logp = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
        >>> old, ref, mask = logp.detach(), torch.tensor([[0.25, 0.5]]).log(), torch.tensor([[True, True]])
        >>> grpo_loss(logp, old, ref, mask, torch.tensor([0.0]), beta=1.0, clip_eps=0.2).backward()
        >>> logp.grad  # half of 1 - ref/policy at the first token
        tensor([[0.2500, 0.0000]])
    """
    check_nonnegative(beta=beta)
    each = advantages[:, None].expand_as(logp)
    surrogate = ppo_clip_loss(logp, old_logp, each, mask, clip_eps, reduction=reduction)
    kl = reduce(kl_terms(logp, ref_logp, mask, "k3"), mask, reduction)
    return surrogate + beta * kl if beta > 0 else surrogate  # 0·inf would be nan


def group_advantages(
    scores: Float[Tensor, " batch"], group: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return (score - mean)/std of each completion's group, the std over the group as a population.

    No epsilon: a group whose scores are all equal, a group of one among them, gives exactly 0 in every
    dtype. Adding 1e-8 to the std instead turns the rounding of the mean into advantages near 1.

    Args:
        scores: one per completion, finite.
        group: which completions answer the same prompt.

    Returns:
        Advantages without unit; their mean square is 1 in every group whose scores differ.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: a score is not finite or requires grad.

    Source:
        Shao et al. (2024), section 4.1.2.

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 0.7, 0.7]), torch.tensor([0, 0, 1, 1]))
        tensor([ 1., -1.,  0.,  0.])
    """
    centred, index, count = _centred(scores, group)
    extent = _extent(scores, index, count)
    equal = extent == 0
    scaled = centred / torch.where(equal, 1, extent)  # so that no square over- or underflows
    spread = _group_sum(scaled.square(), index, count).div(_size(index, count)).sqrt()[index]
    return torch.where(equal, 0, scaled / torch.where(equal, 1, spread)).to(scores.dtype)


def dr_grpo_advantages(
    scores: Float[Tensor, " batch"], group: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return score - mean of each completion's group, not divided by the standard deviation.

    The mean contains the completion's own score, which shrinks the mean gradient by exactly 1 - 1/G against
    an independent baseline. A group whose scores are all equal gives exactly 0.

    Args and errors as `group_advantages`.

    Source:
        Liu et al. (2025), "Understanding R1-Zero-Like Training".

    Example:
        >>> dr_grpo_advantages(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([7, 7, 3]))
        tensor([ 0.5000, -0.5000,  0.0000])
    """
    centred, index, count = _centred(scores, group)
    return torch.where(_extent(scores, index, count) == 0, 0, centred).to(scores.dtype)


def rloo_advantages(scores: Float[Tensor, " batch"], group: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return score minus the mean of the *other* completions of the group: unbiased for any size.

    Args:
        scores: one per completion, finite; subtract beta·KL of the sequence first for KL in the reward.
        group: which completions answer the same prompt.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: a score is not finite or requires grad, or a group has one member, who has no others.

    Source:
        Ahmadian et al. (2024).

    Example:
        >>> rloo_advantages(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 0]))
        tensor([ 0.7500, -0.7500,  0.0000])
    """
    centred, index, count = _centred(scores, group)
    size = _size(index, count)
    if (size == 1).any():
        alone = group[(size == 1)[index]][0].item()
        raise ValueError(
            f"group {alone} has one member; leave-one-out needs at least 2 completions a prompt."
        )
    scaled = centred * (size / (size - 1))[index]
    return torch.where(_extent(scores, index, count) == 0, 0, scaled).to(scores.dtype)


def _filled(logp: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    check_detached(advantages=advantages)
    logp, advantages = logp.masked_fill(~mask, 0), advantages.masked_fill(~mask, 0)
    check_logps(logp=logp)
    check_finite(advantages=advantages)
    return logp, advantages


def _centred(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return score - group mean in float64, the number of each completion's group, and how many there are."""
    check_detached(scores=scores)
    check_finite(scores=scores)
    names, index = group.unique(return_inverse=True)
    wide = scores.double()
    mean = _group_sum(wide, index, len(names)) / _size(index, len(names))
    return wide - mean[index], index, len(names)


def _group_sum(values: Tensor, index: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, index, values)


def _size(index: Tensor, count: int) -> Tensor:
    return _group_sum(torch.ones_like(index, dtype=torch.float64), index, count)


def _extent(scores: Tensor, index: Tensor, count: int) -> Tensor:
    """Return max - min of each completion's group in float64: 0 exactly where all scores are equal."""
    wide, start = scores.double(), torch.zeros(count, dtype=torch.float64, device=scores.device)
    low, high = (start.scatter_reduce(0, index, wide, how, include_self=False) for how in ("amin", "amax"))
    return (high - low)[index]
