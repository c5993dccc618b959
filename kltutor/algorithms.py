"""One function for each algorithm: from what was drawn and what the policy now says to a loss to minimise.

They add nothing to the losses of the package but the wiring. Those that sample take a `Rollout` and may be
handed any part of it that is made of whole groups, or a stack of several, each with its own beta, for a loss
of each; those that learn from data take a `Comparison`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.estimators import full_vocab_kl
from kltutor.masking import masked_sum, reduce
from kltutor.placement import gae, kl_in_reward, kl_loss
from kltutor.policy_gradient import (
    dr_grpo_advantages,
    group_advantages,
    ppo_clip_loss,
    rloo_advantages,
)
from kltutor.policy_gradient import reinforce as reinforce_loss
from kltutor.preference import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    simpo_loss,
)
from kltutor.rollout import Now, Rollout
from kltutor.run import Run

Beta = float | Float[Tensor, " stack"]  # of one batch, or one of each


def reinforce(run: Run, beta: Beta, rollout: Rollout, now: Now) -> Float[Tensor, "*stack"]:
    """Return the score-function loss with the discounted reward-to-go of each token, without a baseline."""
    rewards = shaped_rewards(run, beta, rollout)
    advantages = gae(rewards, torch.zeros_like(rewards), rollout.mask, run.gamma, 1.0)
    return reinforce_loss(now.logp, advantages, rollout.mask, reduction=run.reduction) + kl_penalty(
        run, beta, rollout, now
    )


def rloo(run: Run, beta: Beta, rollout: Rollout, now: Now) -> Float[Tensor, "*stack"]:
    """Return the score-function loss with the return of the whole completion less that of the others."""
    returns = masked_sum(shaped_rewards(run, beta, rollout), rollout.mask)
    advantages = _of_each_token(rloo_advantages, returns, rollout)
    return reinforce_loss(now.logp, advantages, rollout.mask, reduction=run.reduction) + kl_penalty(
        run, beta, rollout, now
    )


def ppo(run: Run, beta: Beta, rollout: Rollout, now: Now) -> Float[Tensor, "*stack"]:
    """Return the clipped surrogate with generalised advantages, plus the squared error of the values."""
    if rollout.values is None or now.values is None:
        raise ValueError("PPO needs the values of a critic, at the time of drawing and now.")
    rewards = shaped_rewards(run, beta, rollout)
    advantages = gae(rewards, rollout.values, rollout.mask, run.gamma, run.gae_lambda)
    surrogate = ppo_clip_loss(
        now.logp, rollout.logp, advantages, rollout.mask, run.clip_eps, reduction=run.reduction
    )
    errors = (now.values - rollout.values - advantages).square() / 2
    # The critic has parameters and a rate of its own, so the two losses need no weight between them.
    return surrogate + kl_penalty(run, beta, rollout, now) + reduce(errors, rollout.mask, "token_mean")


def grpo(run: Run, beta: Beta, rollout: Rollout, now: Now) -> Float[Tensor, "*stack"]:
    """Return the clipped surrogate with one advantage a completion, measured against its group.

    With k3 in the loss, z-scores and both reductions "sequence_mean" it is `grpo_loss` as published.
    """
    measured = {"z_score": group_advantages, "dr_grpo": dr_grpo_advantages}[run.advantages]
    returns = masked_sum(shaped_rewards(run, beta, rollout), rollout.mask)
    advantages = _of_each_token(measured, returns, rollout)
    surrogate = ppo_clip_loss(
        now.logp, rollout.logp, advantages, rollout.mask, run.clip_eps, reduction=run.reduction
    )
    return surrogate + kl_penalty(run, beta, rollout, now)


def shaped_rewards(run: Run, beta: Beta, rollout: Rollout) -> Float[Tensor, "*stack batch time"]:
    """Return the reward of each token: the score at the last one, less the KL if it is placed there."""
    said = rollout.logp, rollout.ref_logp, rollout.mask
    if run.kl_placement == "loss" or not _counts(beta) or run.kl_estimator == "full":
        return kl_in_reward(rollout.scores, *said, beta=0.0)
    if not isinstance(beta, Tensor):
        return kl_in_reward(rollout.scores, *said, beta, estimator=run.kl_estimator)
    alone = kl_in_reward(rollout.scores, *said, beta=0.0)
    cost = kl_in_reward(torch.zeros_like(rollout.scores), *said, beta=1.0, estimator=run.kl_estimator)
    return alone + beta[..., None, None] * cost  # the same rounding as with one beta


def kl_penalty(run: Run, beta: Beta, rollout: Rollout, now: Now) -> Float[Tensor, "*stack"]:
    """Return beta·KL if it is placed in the loss, and else 0."""
    if run.kl_placement != "loss" or not _counts(beta):
        return now.logp.new_zeros(now.logp.shape[:-2])
    if run.kl_estimator == "full":
        return beta * reduce(full_vocab_kl(now.logps, rollout.ref_logps), rollout.mask, run.kl_reduction)
    return beta * kl_loss(
        now.logp,
        rollout.ref_logp,
        rollout.mask,
        run.kl_estimator,
        level=run.kl_level,
        reduction=run.kl_reduction,
        old_logp=None if run.kl_correction == "none" else rollout.logp,
        correction=run.kl_correction,
        ratio=run.kl_ratio,
    )


def _counts(beta: Beta) -> bool:
    return bool((beta > 0).any()) if isinstance(beta, Tensor) else beta > 0


def _of_each_token(
    measured: Callable[[Tensor, Tensor], Tensor], returns: Tensor, rollout: Rollout
) -> Float[Tensor, "*stack batch time"]:
    """Return advantages of whole completions, measured against their group, at each of their tokens."""
    group = rollout.group
    if group.ndim > 1:  # those of one batch are not those of another
        group = group + (group.max() + 1) * torch.arange(len(group), device=group.device)[:, None]
    advantages = measured(returns.flatten(), group.flatten()).view_as(returns)
    return advantages.unsqueeze(-1).expand_as(rollout.logp)


class Scored(NamedTuple):
    """Log-probabilities of whole completions: the policy's, which is differentiable, and the reference's."""

    seq_logp: Float[Tensor, "*rows"]  # nats per sequence
    mean_logp: Float[Tensor, "*rows"]  # nats per token
    ref_seq_logp: Float[Tensor, "*rows"]


class Comparison(NamedTuple):
    """Compared completions, one pair a row."""

    chosen: Scored
    rejected: Scored
    mismatched: Scored | None  # completions beside prompts that they do not answer, for KTO
    weights: Float[Tensor, " row"]  # of the mean over pairs


def dpo(run: Run, beta: float, pairs: Comparison) -> Float[Tensor, ""]:
    """Return the mean of `dpo_loss`."""
    losses = dpo_loss(
        pairs.chosen.seq_logp,
        pairs.rejected.seq_logp,
        pairs.chosen.ref_seq_logp,
        pairs.rejected.ref_seq_logp,
        beta,
        label_smoothing=run.label_smoothing,
    )
    return pairs.weights @ losses


def ipo(run: Run, beta: float, pairs: Comparison) -> Float[Tensor, ""]:
    """Return the mean of `ipo_loss`, beta being its τ."""
    losses = ipo_loss(
        pairs.chosen.seq_logp,
        pairs.rejected.seq_logp,
        pairs.chosen.ref_seq_logp,
        pairs.rejected.ref_seq_logp,
        beta,
    )
    return pairs.weights @ losses


def kto(run: Run, beta: float, pairs: Comparison) -> Float[Tensor, ""]:
    """Return the mean of `kto_loss` over the completions of all pairs, the chosen ones being desirable."""
    if pairs.mismatched is None:
        raise ValueError("KTO needs mismatched completions for its reference point.")
    anchor = kto_reference_point(pairs.mismatched.seq_logp.detach(), pairs.mismatched.ref_seq_logp)
    chosen, rejected = (
        kto_loss(
            side.seq_logp, side.ref_seq_logp, torch.full_like(side.seq_logp, wanted).bool(), anchor, beta
        )
        for side, wanted in ((pairs.chosen, 1), (pairs.rejected, 0))
    )
    return pairs.weights @ (chosen + rejected) / 2


def simpo(run: Run, beta: float, pairs: Comparison) -> Float[Tensor, ""]:
    """Return the mean of `simpo_loss`."""
    return pairs.weights @ simpo_loss(pairs.chosen.mean_logp, pairs.rejected.mean_logp, beta, run.simpo_gamma)


def orpo(run: Run, beta: float, pairs: Comparison) -> Float[Tensor, ""]:
    """Return the mean of `orpo_loss`, beta being its λ."""
    return pairs.weights @ orpo_loss(pairs.chosen.mean_logp, pairs.rejected.mean_logp, beta)


def sft(shown: Scored, weights: Float[Tensor, " row"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of the completions shown, nats per sequence."""
    return -weights @ shown.seq_logp


FROM_ROLLOUTS: dict[str, Callable[[Run, Beta, Rollout, Now], Tensor]] = {
    "reinforce": reinforce,
    "rloo": rloo,
    "ppo": ppo,
    "grpo": grpo,
}
FROM_PAIRS: dict[str, Callable[[Run, float, Comparison], Tensor]] = {
    "dpo": dpo,
    "ipo": ipo,
    "kto": kto,
    "simpo": simpo,
    "orpo": orpo,
}
