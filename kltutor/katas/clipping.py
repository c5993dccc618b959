"""A kata on a loss: PPO's clip."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import masking, placement, policy_gradient
from kltutor.katas.calls import Case
from kltutor.katas.inputs import token_cases
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import detached, late, multiplied


def ppo_clip_loss(
    logp: Float[Tensor, "batch time"],
    old_logp: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    clip_eps: float,
) -> Float[Tensor, ""]:
    """Return PPO's clipped loss: minus the mean of the objective over all action tokens of the batch.

        objective = min(ρ A, clip(ρ, 1 - clip_eps, 1 + clip_eps) A),    ρ = π/old of the token alone

    Args:
        logp: of the tokens under the policy that learns, nats per token.
        old_logp: of the same tokens under the policy that drew them.
        advantages: one a token; numbers.
        mask: True at action tokens; what stands elsewhere must not matter, not even nan.
        clip_eps: half width of the interval.

    Returns:
        One number to be minimised; differentiable in logp.
    """
    raise NotImplementedError


_Step = Callable[[Tensor, Tensor], Tensor]  # from the ratios and the advantages to the objective of a token


def _clip(ratio: Tensor, eps: float) -> Tensor:
    return ratio.clamp(1 - eps, 1 + eps)


def _loss(p: Tensor, o: Tensor, a: Tensor, m: Tensor, step: _Step, how: masking.Reduction) -> Tensor:
    ratio = placement.importance_weight(p, o, m, "token", "differentiable")
    return -masking.reduce(step(ratio, a.masked_fill(~m, 0)), m, how)


def _of_tokens(p: Tensor, o: Tensor, a: Tensor, m: Tensor, step: _Step) -> Tensor:
    return _loss(p, o, a, m, step, "token_mean")


def _surrogate(eps: float) -> _Step:
    return lambda ratio, a: torch.minimum(ratio * a, _clip(ratio, eps) * a)


def _with_ratio(ratio: Tensor, a: Tensor, m: Tensor, eps: float) -> Tensor:
    return -masking.reduce(_surrogate(eps)(ratio, a.masked_fill(~m, 0)), m, "token_mean")


def _log_ratio(p: Tensor, o: Tensor, m: Tensor) -> Tensor:
    return torch.where(m, p, 0) - torch.where(m, o, 0)


def _plain(p: Tensor, o: Tensor, a: Tensor, eps: float) -> Tensor:
    return -_surrogate(eps)((p - o).exp(), a)


_CLIP = ("logp", "old_logp", "advantages")

register(
    ppo_clip_loss,
    level=2,
    section="3.1 KL in the reward",
    reference=policy_gradient.ppo_clip_loss,
    differentiable=("logp",),
    cases=(
        *token_cases(*_CLIP, clip_eps=0.2),
        Case("clip_eps of 0.05", next(token_cases(*_CLIP)).inputs | {"clip_eps": 0.05}),
    ),
    misconceptions=(
        Misconception(
            "max",
            "This takes the larger of the two; the objective is the smaller, and the minus sign comes after "
            "it: {got} where {right} is right.",
            lambda p, o, a, m, e: _of_tokens(
                p, o, a, m, lambda ratio, a: torch.maximum(ratio * a, _clip(ratio, e) * a)
            ),
        ),
        Misconception(
            "sign",
            "The minus sign is missing: this is to be maximised, a loss is minimised.",
            lambda p, o, a, m, e: -policy_gradient.ppo_clip_loss(p, o, a, m, e),
        ),
        Misconception(
            "only-clipped",
            "Only the clipped product is used: where ρ has left the interval on the wrong side, no gradient "
            "brings it back. Take the smaller of both.",
            lambda p, o, a, m, e: _of_tokens(p, o, a, m, lambda ratio, a: _clip(ratio, e) * a),
        ),
        Misconception(
            "not-clipped",
            "Nothing is clipped: this is the plain importance-weighted objective.",
            lambda p, o, a, m, e: _of_tokens(p, o, a, m, lambda ratio, a: ratio * a),
        ),
        Misconception(
            "ratio-inverted",
            "ρ is upside down: the policy that learns is above, the one that drew the tokens below.",
            lambda p, o, a, m, e: _with_ratio((-_log_ratio(p, o, m)).exp(), a, m, e),
        ),
        Misconception(
            "log-ratio",
            "This clips the log-ratio as if it were ρ: take its exponential first.",
            lambda p, o, a, m, e: _with_ratio(_log_ratio(p, o, m), a, m, e),
        ),
        Misconception(
            "centred-at-zero",
            "The interval is [-clip_eps, clip_eps]; ρ lies around 1, so it is [1 - clip_eps, 1 + clip_eps].",
            lambda p, o, a, m, e: _of_tokens(
                p, o, a, m, lambda ratio, a: torch.minimum(ratio * a, ratio.clamp(-e, e) * a)
            ),
        ),
        Misconception(
            "clipped-above-only",
            "ρ is clipped at 1 + clip_eps only; 1 - clip_eps holds it where the advantage is negative.",
            lambda p, o, a, m, e: _of_tokens(
                p, o, a, m, lambda ratio, a: torch.minimum(ratio * a, ratio.clamp(max=1 + e) * a)
            ),
        ),
        Misconception(
            "sequence-ratio",
            "ρ is that of the whole completion, as in GSPO without its root; PPO has one a token.",
            lambda p, o, a, m, e: _with_ratio(
                placement.importance_weight(p, o, m, "sequence", "differentiable"), a, m, e
            ),
        ),
        Misconception(
            "sequence-mean",
            "The mean is taken over each row first, so tokens of short completions weigh more: {got} where "
            "the mean over all tokens is {right}.",
            lambda p, o, a, m, e: policy_gradient.ppo_clip_loss(p, o, a, m, e, reduction="sequence_mean"),
        ),
        Misconception(
            "sequence-sum",
            "The tokens of a row are added up before the rows are averaged; the mean over all tokens is "
            "asked for.",
            lambda p, o, a, m, e: policy_gradient.ppo_clip_loss(p, o, a, m, e, reduction="sequence_sum"),
        ),
        Misconception(
            "padded-length",
            "The sum is divided by all positions, padding included: {got} where {right} is right.",
            lambda p, o, a, m, e: policy_gradient.ppo_clip_loss(p, o, a, m, e) * m.sum() / m.numel(),
        ),
        Misconception(
            "mask-ignored",
            "Prompt and padding are in the mean: the mask is not used.",
            lambda p, o, a, m, e: _plain(p, o, a, e).mean(),
        ),
        Misconception(
            "minimum-of-ratios",
            "The smaller ratio is taken and then multiplied by A. Where A is below 0 that is the larger "
            "product: take the smaller of ρ A and clip(ρ) A.",
            lambda p, o, a, m, e: _of_tokens(
                p, o, a, m, lambda ratio, a: torch.minimum(ratio, _clip(ratio, e)) * a
            ),
        ),
        late(
            lambda p, o, a, m, e: torch.where(m, _plain(p, o, a, e), 0).sum() / m.sum(),
        ),
        multiplied(
            lambda p, o, a, m, e: (_plain(p, o, a, e) * m).sum() / m.sum(),
        ),
        detached(policy_gradient.ppo_clip_loss),
    ),
)
