"""A kata on rewards: the KL inside them."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import placement
from kltutor.katas.calls import Case
from kltutor.katas.inputs import token_cases
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import multiplied


def kl_in_reward(
    scores: Float[Tensor, " batch"],
    logp: Float[Tensor, "batch time"],
    ref_logp: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    beta: float,
) -> Float[Tensor, "batch time"]:
    """Return the reward of every token: -beta·k1 everywhere, plus the score at the last action token.

        r_t = -beta·(log π - log ref)_t + [t is the last True of the row]·score

    A reward is a number: no gradient may flow through it, though logp may require grad.

    Args:
        scores: one a completion, before any KL, in reward units.
        logp: of the tokens under the policy that drew them, nats per token.
        ref_logp: of the same tokens under the reference.
        mask: True at the tokens that the policy chose; what stands elsewhere must not matter, not even nan.
        beta: reward units per nat.

    Returns:
        Reward units per token, 0 where masked, detached.
    """
    raise NotImplementedError


def _rewards(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    return placement.kl_in_reward(scores, logp.detach(), ref_logp, mask, beta)


def _only_scores(scores: Tensor, logp: Tensor, mask: Tensor) -> Tensor:
    """Return the scores at the last action tokens, 0 elsewhere."""
    return _rewards(scores, torch.zeros_like(logp), torch.zeros_like(logp), mask, 0.0)


def _penalty(logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    return _rewards(torch.zeros_like(logp[:, 0]), logp, ref_logp, mask, beta)


def _unmasked_penalty(logp: Tensor, ref_logp: Tensor, beta: float) -> Tensor:
    return -beta * (logp - ref_logp).detach()


def _at_column(scores: Tensor, logp: Tensor, column: int) -> Tensor:
    found = torch.zeros_like(logp.detach())
    found[:, column] = scores
    return found


def _at_length(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the scores at the position of the number of True minus 1, 0 elsewhere."""
    found = torch.zeros(mask.shape, dtype=scores.dtype)
    found[torch.arange(len(mask)), mask.sum(-1) - 1] = scores
    return found


def _scored(beta: float, case: Case) -> Case:
    scores = torch.cos(torch.arange(len(case.inputs["logp"])).double()) + 1
    return replace(case, inputs={"scores": scores, **case.inputs, "beta": beta})


register(
    kl_in_reward,
    level=2,
    section="7.1 PPO with the KL in the reward",
    reference=_rewards,
    differentiable=("logp",),
    number=lambda value: value[0].nansum(),  # nan only in what is wrong
    cases=(
        *(_scored(0.5, case) for case in token_cases("logp", "ref_logp")),
        replace(_scored(1e4, next(token_cases("logp", "ref_logp"))), label="beta of 10 000"),
        replace(_scored(0.0, next(token_cases("logp", "ref_logp"))), label="beta of 0"),
    ),
    misconceptions=(
        Misconception(
            "sign",
            "The KL has the wrong sign: it pays for leaving the reference, a return of {got} where {right} "
            "is right. The log-ratio is policy minus reference, and it is subtracted.",
            lambda s, p, q, m, beta: _only_scores(s, p, m) - _penalty(p, q, m, beta),
        ),
        Misconception(
            "score-on-every-token",
            "The score is paid at every token, so long completions earn it many times.",
            lambda s, p, q, m, beta: _penalty(p, q, m, beta) + s[:, None] * m,
        ),
        Misconception(
            "score-in-the-last-column",
            "The score is paid in the last column, which is padding in some rows; it belongs at the last "
            "action token.",
            lambda s, p, q, m, beta: _penalty(p, q, m, beta) + _at_column(s, p, -1),
        ),
        Misconception(
            "score-at-the-length",
            "The score is paid at position length - 1, which is the last action only where a row starts with "
            "its first action and has no gap.",
            lambda s, p, q, m, beta: _penalty(p, q, m, beta) + _at_length(s, m),
        ),
        Misconception(
            "score-replaces",
            "The score takes the place of the last token's KL; it is added to it: a return of {got} where "
            "{right} is right.",
            lambda s, p, q, m, beta: torch.where(
                _only_scores(s.abs() + 1, p, m) > 0, _only_scores(s, p, m), _penalty(p, q, m, beta)
            ),
        ),
        Misconception(
            "score-first",
            "The score is paid at the first action token; what came before the end has then not earned it.",
            lambda s, p, q, m, beta: _penalty(p, q, m, beta) + _only_scores(s, p, m.flip(-1)).flip(-1),
        ),
        Misconception(
            "mask-ignored",
            "Prompt and padding are charged for their KL too; only action tokens are.",
            lambda s, p, q, m, beta: _unmasked_penalty(p, q, beta) + _only_scores(s, p, m),
        ),
        Misconception(
            "divided-by-length",
            "The KL is divided by the length: a sum over the completion is its KL, a mean is not.",
            lambda s, p, q, m, beta: (
                _penalty(p, q, m, beta) / m.sum(-1, keepdim=True) + _only_scores(s, p, m)
            ),
        ),
        Misconception(
            "all-at-the-end",
            "The KL of the whole completion is charged at its last token. The return is right, but every "
            "token is to pay for itself.",
            lambda s, p, q, m, beta: _only_scores(s + _penalty(p, q, m, beta).sum(-1), p, m),
        ),
        Misconception(
            "beta-on-the-score",
            "beta multiplies the score as well; it is the price of a nat only.",
            lambda s, p, q, m, beta: beta * _rewards(s, p, q, m, 1.0),
        ),
        Misconception(
            "without-beta",
            "beta is missing: every nat costs 1.",
            lambda s, p, q, m, beta: _rewards(s, p, q, m, 1.0),
        ),
        Misconception(
            "k3",
            "This charges k3. Its mean is the KL too, but in the reward its gradient is another: charge k1, "
            "the log-ratio.",
            lambda s, p, q, m, beta: placement.kl_in_reward(s, p.detach(), q, m, beta, estimator="k3"),
        ),
        Misconception(
            "absolute",
            "This charges |log-ratio|: the terms below 0 are part of the KL, without them it is not one.",
            lambda s, p, q, m, beta: _only_scores(s, p, m) - _penalty(p, q, m, beta).abs(),
        ),
        Misconception(
            "without-score",
            "The score is missing: only the KL is charged.",
            lambda s, p, q, m, beta: _penalty(p, q, m, beta),
        ),
        Misconception(
            "not-detached",
            "The values are right, but a gradient flows through the reward. A reward is a number: detach "
            "logp.",
            lambda s, p, q, m, beta: _only_scores(s, p, m) - beta * torch.where(m, p - q, 0),
        ),
        multiplied(
            lambda s, p, q, m, beta: _only_scores(s, p, m) + _unmasked_penalty(p, q, beta) * m,
        ),
    ),
)
