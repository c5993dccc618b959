"""Katas on preferences: DPO's loss, and the reward that a policy implies."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from kltutor import masking, optimum, preference
from kltutor.katas.calls import Case
from kltutor.katas.inputs import completions, token_cases, wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import detached, multiplied, scaled


def dpo_loss(
    chosen_seq_logp: Float[Tensor, " batch"],
    rejected_seq_logp: Float[Tensor, " batch"],
    ref_chosen_seq_logp: Float[Tensor, " batch"],
    ref_rejected_seq_logp: Float[Tensor, " batch"],
    beta: float,
) -> Float[Tensor, " batch"]:
    """Return DPO's loss of every pair: -log σ(h).

        h = beta·((log π(chosen) - log ref(chosen)) - (log π(rejected) - log ref(rejected)))

    Args:
        chosen_seq_logp: log π of the whole chosen completion, nats per sequence.
        rejected_seq_logp: the same of the rejected one.
        ref_chosen_seq_logp: log ref of the chosen completion.
        ref_rejected_seq_logp: log ref of the rejected one.
        beta: above 0; h below -1000 occurs.

    Returns:
        One loss a pair, without unit; differentiable in the first two.
    """
    raise NotImplementedError


def implicit_reward(
    logp: Float[Tensor, "batch time"],
    ref_logp: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    beta: float,
) -> Float[Tensor, " batch"]:
    """Return the reward of which the policy is the optimum, up to a constant a prompt: beta·log(π/ref).

    π and ref are probabilities of the whole completion, so their logarithms are sums over its tokens.

    Args:
        logp: of the tokens under the policy, nats per token.
        ref_logp: of the same tokens under the reference.
        mask: True at the tokens of the completion; what stands elsewhere must not matter, not even nan.
        beta: reward units per nat.

    Returns:
        One reward a completion, in reward units; differentiable in logp.
    """
    raise NotImplementedError


def _margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def _pairs(label: str, world: str, beta: float) -> Case:
    """Return each completion of a world paired with one from the other end of the list."""
    rows = completions("moderate" if world == "moderate" else "far")
    both = {"": rows["seq_logp"], "ref_": rows["ref_seq_logp"]}
    pairs = {
        f"{prefix}{side}_seq_logp": logps if side == "chosen" else logps.flip(0)
        for prefix, logps in both.items()
        for side in ("chosen", "rejected")
    }
    return Case(label, pairs | {"beta": beta})


def _numbers(label: str, *logps: list[float], beta: float, edge: bool = False) -> Case:
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    return Case(
        label,
        {f"{name}_seq_logp": wide(*values) for name, values in zip(names, logps, strict=True)}
        | {"beta": beta},
        edge,
    )


register(
    dpo_loss,
    level=1,
    section="5.1 DPO",
    reference=preference.dpo_loss,
    differentiable=("chosen_seq_logp", "rejected_seq_logp"),
    number=lambda value: value.reshape(-1)[0],
    cases=(
        _numbers("two pairs", [-5.0, -9.0], [-7.0, -4.0], [-6.0, -8.0], [-6.5, -5.0], beta=0.5),
        _pairs("completions in pairs, moderate", "moderate", 0.1),
        _pairs("completions in pairs, far", "far", 2.0),
        _numbers("a beta of 0.001", [-5.0], [-7.0], [-6.0], [-6.5], beta=1e-3),
        _numbers("h of -2000", [-9.0], [-5.0], [-6.0], [-6.0], beta=500.0, edge=True),
    ),
    misconceptions=(
        Misconception(
            "without-reference",
            "The reference is missing: {got} where {right} is right. Without it nothing holds the policy.",
            lambda c, r, qc, qr, beta: -logsigmoid(beta * (c - r)),
        ),
        Misconception(
            "pair-swapped",
            "Chosen and rejected are swapped: the loss {got} in place of {right} makes the policy prefer "
            "what was rejected.",
            lambda c, r, qc, qr, beta: preference.dpo_loss(r, c, qr, qc, beta),
        ),
        Misconception(
            "sign",
            "The minus sign is missing: log σ(h) is to be maximised, a loss is minimised.",
            scaled(preference.dpo_loss, -1),
        ),
        Misconception(
            "beta-outside",
            "beta stands outside the sigmoid; there it only scales the loss, and the optimum no longer "
            "depends on it.",
            lambda c, r, qc, qr, beta: -beta * logsigmoid(_margin(c, r, qc, qr)),
        ),
        Misconception(
            "without-beta",
            "beta is missing: this is the loss at beta = 1, {got} where {right} is right.",
            lambda c, r, qc, qr, beta: preference.dpo_loss(c, r, qc, qr, 1.0),
        ),
        Misconception(
            "divided-by-beta",
            "The margin is divided by beta; it is multiplied: beta·log-ratio is the implicit reward.",
            lambda c, r, qc, qr, beta: preference.dpo_loss(c, r, qc, qr, 1 / beta),
        ),
        Misconception(
            "reference-added",
            "The reference is added where it is to be subtracted, or its two terms are swapped, which is the "
            "same: {got} in place of {right}.",
            lambda c, r, qc, qr, beta: -logsigmoid(beta * ((c + qc) - (r + qr))),
        ),
        Misconception(
            "log-ratios-added",
            "The two log-ratios are added: {got} in place of {right}. Only their difference compares the "
            "pair; the sum raises both.",
            lambda c, r, qc, qr, beta: -logsigmoid(beta * ((c - qc) + (r - qr))),
        ),
        Misconception(
            "chosen-only",
            "Only the chosen completion is there: the margin subtracts the log-ratio of the rejected one.",
            lambda c, r, qc, qr, beta: -logsigmoid(beta * (c - qc)),
        ),
        Misconception(
            "without-logarithm",
            "This is 1 - σ(h), the probability of the wrong order; the loss is -log σ(h).",
            lambda c, r, qc, qr, beta: torch.sigmoid(-beta * _margin(c, r, qc, qr)),
        ),
        Misconception(
            "hinge",
            "This is the hinge max(0, 1 - h), not -log σ(h).",
            lambda c, r, qc, qr, beta: (1 - beta * _margin(c, r, qc, qr)).clamp_min(0),
        ),
        Misconception(
            "ipo",
            "This is IPO's square, (margin - 1/(2 beta))²; DPO has -log σ.",
            preference.ipo_loss,
        ),
        Misconception(
            "averaged",
            "The pairs are averaged; one loss a pair is asked for.",
            lambda c, r, qc, qr, beta: preference.dpo_loss(c, r, qc, qr, beta).mean(),
        ),
        Misconception(
            "log-base-2",
            "The logarithm is to base 2: {got} where {right} is right.",
            scaled(preference.dpo_loss, 1 / math.log(2)),
        ),
        Misconception(
            "log-of-sigmoid",
            "Far below 0 the loss is -h, but here it is inf: σ(h) rounds to 0, and exp(-h) overflows. Use "
            "logsigmoid(h), or softplus(-h).",
            lambda c, r, qc, qr, beta: -torch.sigmoid(beta * _margin(c, r, qc, qr)).log(),
        ),
        detached(preference.dpo_loss),
    ),
)


def _implicit(logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    return optimum.implicit_reward(masking.masked_sum(logp, mask), masking.masked_sum(ref_logp, mask), beta)


register(
    implicit_reward,
    level=1,
    section="5.1 DPO",
    reference=_implicit,
    differentiable=("logp",),
    number=lambda value: value.reshape(-1)[0],
    cases=(
        *token_cases("logp", "ref_logp", beta=0.25),
        Case("beta of 10 000", next(token_cases("logp", "ref_logp")).inputs | {"beta": 1e4}),
    ),
    misconceptions=(
        Misconception(
            "mean-for-sum",
            "This is the mean over the tokens. The log-probability of a completion is their sum: {got} in "
            "place of {right}, beta divided by the length.",
            lambda p, q, m, beta: _implicit(p, q, m, beta) / m.sum(-1),
        ),
        Misconception(
            "mask-ignored",
            "Prompt and padding are counted: {got} where {right} is right.",
            lambda p, q, m, beta: beta * (p - q).sum(-1),
        ),
        Misconception(
            "mask-inverted",
            "The mask is upside down: this is the log-ratio of prompt and padding.",
            lambda p, q, m, beta: beta * masking.masked_sum(p - q, ~m),
        ),
        Misconception(
            "sign",
            "The log-ratio is turned round: policy minus reference, {right}, not {got}.",
            scaled(_implicit, -1),
        ),
        Misconception(
            "without-reference",
            "The reference is missing: {got} where {right} is right.",
            lambda p, q, m, beta: _implicit(p, torch.zeros_like(q), m, beta),
        ),
        Misconception(
            "divided-by-beta",
            "The log-ratio is divided by beta; a nat is worth beta units of reward, so it is multiplied.",
            lambda p, q, m, beta: _implicit(p, q, m, 1 / beta),
        ),
        Misconception(
            "without-beta",
            "beta is missing: {got} nats, where {right} reward units are asked for.",
            lambda p, q, m, beta: _implicit(p, q, m, 1.0),
        ),
        Misconception(
            "ratio",
            "This is beta times the ratio π/ref; take its logarithm.",
            lambda p, q, m, beta: beta * _implicit(p, q, m, 1.0).exp(),
        ),
        Misconception(
            "k3",
            "This adds up k3, an estimate of the KL. The implicit reward is the log-ratio itself, of either "
            "sign: {right}, not {got}.",
            lambda p, q, m, beta: beta * masking.masked_sum(torch.expm1(q - p) + p - q, m),
        ),
        Misconception(
            "averaged",
            "The completions are averaged; one reward each is asked for.",
            lambda p, q, m, beta: _implicit(p, q, m, beta).mean(),
        ),
        Misconception(
            "per-token",
            "These are the terms of the tokens; add them up over the completion.",
            lambda p, q, m, beta: beta * torch.where(m, p - q, 0),
        ),
        Misconception(
            "last-token",
            "This is the log-ratio of the last token alone; add up all of the completion.",
            lambda p, q, m, beta: beta * (p - q).gather(-1, masking.last_action(m)[:, None])[:, 0],
        ),
        Misconception(
            "log-base-2",
            "The logarithm is to base 2: {got} where {right} is right.",
            scaled(_implicit, 1 / math.log(2)),
        ),
        multiplied(
            lambda p, q, m, beta: beta * ((p - q) * m).sum(-1),
        ),
        detached(_implicit),
    ),
)
