"""Katas on the KL itself: both directions, one sampled estimator, and the sum over the vocabulary."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import estimators
from kltutor.divergences import kl
from kltutor.katas.calls import Case
from kltutor.katas.inputs import ARMS, completions, wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import scaled


def categorical_kls(
    logp: Float[Tensor, "batch outcome"], ref_logp: Float[Tensor, "batch outcome"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return both KLs of listed distributions: (KL(policy ‖ ref), KL(ref ‖ policy)), the reverse one first.

        KL(p ‖ q) = Σ p log(p/q), with 0 log 0 = 0, and inf where p has mass and q has none

    Args:
        logp: log-probabilities of every outcome under the policy; they are normalised, and may be -inf.
        ref_logp: the same under the reference.

    Returns:
        Two tensors, one KL a row each, in nats.
    """
    raise NotImplementedError


def full_vocab_kl(
    logits: Float[Tensor, "batch time vocab"], ref_logits: Float[Tensor, "batch time vocab"]
) -> Float[Tensor, "batch time"]:
    """Return KL(policy ‖ ref) of the next token at every position, summed over the vocabulary.

        Σ_v π(v) (log π(v) - log ref(v)), with π = softmax(logits), ref = softmax(ref_logits)

    Args:
        logits: of the policy, in no particular normalisation; a token banned in both models has -inf in both.
        ref_logits: of the reference, at the same positions.

    Returns:
        Nats per position; differentiable in logits.
    """
    raise NotImplementedError


def _both(logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, Tensor]:
    return kl(logp, ref_logp), kl(ref_logp, logp)


def _skipping_zeros(p: Tensor, q: Tensor) -> Tensor:
    """Return Σ p log(p/q) over the outcomes to which both give mass."""
    shared = (p > -torch.inf) & (q > -torch.inf)
    return torch.where(shared, p.exp() * (torch.where(shared, p, 0) - torch.where(shared, q, 0)), 0).sum(-1)


def _naive(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def _epsilon(size: float) -> Misconception:
    def near(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * ((p.exp() + size).log() - (q.exp() + size).log())).sum(-1)

    return Misconception(
        f"epsilon-{size:g}",
        f"{size:g} is added inside the logarithms. That makes an infinite KL finite, and a large one "
        f"smaller: no log-probability is below {math.log(size):.1f}. Leave out what has no mass instead.",
        lambda logp, ref_logp: (near(logp, ref_logp), near(ref_logp, logp)),
    )


def _listed(world: str) -> dict[str, Tensor]:
    rows = completions("moderate" if world == "moderate" else "far")
    return {"logp": rows["seq_logp"][None], "ref_logp": rows["ref_seq_logp"][None]}


_ZERO = {"logp": wide([0.0, 0.4, 0.6]).log(), "ref_logp": wide([0.5, 0.3, 0.2]).log()}
_LOG2 = "The logarithm is to base 2, so this is in bits, {got}; in nats it is {right}."

register(
    categorical_kls,
    level=1,
    section="1.2 Forward and reverse",
    reference=_both,
    differentiable=("logp",),
    number=lambda reverse, forward: reverse.sum(),
    cases=(
        Case("three outcomes", {name: value[None] for name, value in ARMS.items()}),
        Case("all completions, moderate", _listed("moderate")),
        Case("all completions, far", _listed("far")),
        Case("an outcome that the policy never draws", _ZERO, edge=True, gradient=False),
    ),
    misconceptions=(
        Misconception(
            "swapped",
            "The two directions are swapped: the mean of log(policy/ref) under the policy is KL(policy ‖ "
            "ref), {right} here, and {got} is KL(ref ‖ policy).",
            lambda logp, ref_logp: _both(ref_logp, logp),
        ),
        Misconception(
            "one-direction-twice",
            "Both are KL(policy ‖ ref); the mean of the second is taken under the reference.",
            lambda logp, ref_logp: (kl(logp, ref_logp),) * 2,
        ),
        Misconception(
            "one-sampler",
            "Only the log-ratio was turned round, so the second is minus the first: its mean must be taken "
            "under the reference.",
            lambda logp, ref_logp: (kl(logp, ref_logp), -kl(logp, ref_logp)),
        ),
        Misconception(
            "negated",
            "The sign is turned round: this is Σ p log(q/p), {got}, and no KL is below 0.",
            lambda logp, ref_logp: tuple(-each for each in _both(logp, ref_logp)),
        ),
        Misconception(
            "unweighted",
            "The log-ratios are added up without their probabilities: {got} where KL(policy ‖ ref) is "
            "{right}.",
            lambda logp, ref_logp: ((logp - ref_logp).sum(-1), (ref_logp - logp).sum(-1)),
        ),
        Misconception(
            "mean",
            "The terms are averaged over the outcomes; they are to be summed: {got} in place of {right}.",
            lambda logp, ref_logp: tuple(each / logp.shape[-1] for each in _both(logp, ref_logp)),
        ),
        Misconception(
            "log-base-2",
            _LOG2,
            lambda logp, ref_logp: tuple(each / math.log(2) for each in _both(logp, ref_logp)),
        ),
        Misconception(
            "weights-detached",
            "The values are right, but the policy's probabilities are held fixed, so the gradient of "
            "KL(policy ‖ ref) lacks the part that comes through them.",
            lambda logp, ref_logp: ((logp.exp().detach() * (logp - ref_logp)).sum(-1), kl(ref_logp, logp)),
        ),
        Misconception(
            "zero-times-infinity",
            "0 log 0 counts as 0 here, but 0 times -inf is nan in floats: leave such outcomes out.",
            lambda logp, ref_logp: (_naive(logp, ref_logp), _naive(ref_logp, logp)),
        ),
        Misconception(
            "finite-without-support",
            "Outcomes are left out where either has no mass. Where the first argument has mass and the "
            "second has none the KL is inf.",
            lambda logp, ref_logp: (_skipping_zeros(logp, ref_logp), _skipping_zeros(ref_logp, logp)),
        ),
        *map(_epsilon, (1e-8, 1e-10, 1e-12)),
        Misconception(
            "detached",
            "The values are right, but no gradient comes back: something detaches, or leaves torch.",
            lambda logp, ref_logp: _both(logp.detach(), ref_logp),
        ),
    ),
)


def _logits(world: str) -> dict[str, Tensor]:
    rows = completions("moderate" if world == "moderate" else "far")
    return {name: rows[name] for name in ("logits", "ref_logits")}


def _terms(logits: Tensor, ref_logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits.log_softmax(-1), ref_logits.log_softmax(-1)


def _with_weights(logits: Tensor, ref_logits: Tensor, weights: Tensor) -> Tensor:
    logp, ref_logp = _terms(logits, ref_logits)
    return (weights * (logp - ref_logp)).sum(-1)


register(
    full_vocab_kl,
    level=2,
    section="2.7 Beyond one token",
    reference=estimators.full_vocab_kl,
    differentiable=("logits",),
    audit=(("logits", "ref_logits"), "token"),
    cases=(
        Case(
            "two positions",
            {
                "logits": wide([[2.0, 0.0, 1.0], [0.0, 0.5, -1.0]]),
                "ref_logits": wide([[0.0, 1.0, 0.5], [1.0, 0.0, 2.0]]),
            },
        ),
        Case("all completions, moderate", _logits("moderate")),
        Case("all completions, far", _logits("far")),
        Case(
            "a token banned in both models",
            {"logits": wide([[1.0, -math.inf, 0.0]]), "ref_logits": wide([[0.0, -math.inf, 0.0]])},
            edge=True,
            gradient=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "other-direction",
            "This is KL(ref ‖ policy), {got} where KL(policy ‖ ref) is {right} nats: the weights are the "
            "policy's. (F.kl_div(input, target) is KL(target ‖ input).)",
            lambda logits, ref_logits: estimators.full_vocab_kl(ref_logits, logits),
        ),
        Misconception(
            "reference-weights",
            "The log-ratio is policy/ref but its mean is taken under the reference: that is -KL(ref ‖ "
            "policy), {got}.",
            lambda logits, ref_logits: _with_weights(logits, ref_logits, ref_logits.softmax(-1)),
        ),
        Misconception(
            "negated",
            "The sign is turned round: {got}, and no KL is below 0.",
            scaled(estimators.full_vocab_kl, -1),
        ),
        Misconception(
            "raw-logits",
            "Differences of logits are no log-ratios: both need log_softmax first; {got} where {right} is "
            "right.",
            lambda logits, ref_logits: (logits.softmax(-1) * (logits - ref_logits)).sum(-1),
        ),
        Misconception(
            "unweighted",
            "The log-ratios of all tokens are added up without the policy's probabilities.",
            lambda logits, ref_logits: _with_weights(logits, ref_logits, torch.ones_like(logits)),
        ),
        Misconception(
            "mean-over-vocabulary",
            "The terms are averaged over the vocabulary; they are to be summed: {got} in place of {right}.",
            lambda logits, ref_logits: estimators.full_vocab_kl(logits, ref_logits) / logits.shape[-1],
        ),
        Misconception(
            "summed-over-time",
            "The positions are added up; one value a position is asked for, so that a mask can be applied.",
            lambda logits, ref_logits: estimators.full_vocab_kl(logits, ref_logits).sum(-1),
        ),
        Misconception(
            "weights-detached",
            "The values are right, but no gradient comes back: all is detached, or only the probabilities "
            "are, and then Σ π ∇log π = 0 is left.",
            lambda logits, ref_logits: _with_weights(logits, ref_logits, logits.softmax(-1).detach()),
        ),
        Misconception(
            "log-base-2",
            _LOG2,
            scaled(estimators.full_vocab_kl, 1 / math.log(2)),
        ),
        Misconception(
            "nan-of-a-banned-token",
            "A token banned in both has log-probability -inf in both, and their difference is nan; its "
            "probability is 0, so leave it out.",
            lambda logits, ref_logits: _with_weights(logits, ref_logits, logits.softmax(-1)),
        ),
    ),
)
