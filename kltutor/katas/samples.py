"""A kata on sampled estimators of the KL: k3."""

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import estimators
from kltutor.katas.calls import Case
from kltutor.katas.inputs import ARMS, completions, wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import detached, scaled


def k3(logp: Float[Tensor, "*dims"], ref_logp: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Return Schulman's k3 of every sample: (r - 1) - log r with r = ref/policy, the samples from the policy.

    Its mean over samples of the policy is KL(policy ‖ ref), and no single value is below 0. It is
    elementwise: neither masked nor averaged.

    Args:
        logp: log policy(x) of every sample x, nats; any shape.
        ref_logp: log ref(x) of the same samples.

    Returns:
        One estimate a sample, in nats; differentiable in logp.
    """
    raise NotImplementedError


def _samples(world: str) -> dict[str, Tensor]:
    rows = completions("moderate" if world == "moderate" else "far")
    return {name: rows[name].masked_fill(~rows["mask"], 0) for name in ("logp", "ref_logp")}


# Rare tokens on either side, beyond the 20 nats at which some libraries clamp.
_APART = {"logp": wide(-0.2, -30.0, -0.1, -25.5), "ref_logp": wide(-30.2, -0.1, -25.1, -0.5)}

register(
    k3,
    level=1,
    section="2.4 k3: a control variate that happens to be non-negative",
    reference=estimators.k3,
    differentiable=("logp",),
    number=lambda value: ARMS["logp"].exp() @ value,  # the exact mean over samples of the policy
    audit=(("logp", "ref_logp"), "token"),
    cases=(
        Case("every outcome of one action", ARMS),
        Case("all completions, moderate", _samples("moderate")),
        Case("all completions, far", _samples("far")),
        Case("log-ratios of 25 and more", _APART),
    ),
    misconceptions=(
        Misconception(
            "ratio-inverted",
            "r is inverted: this estimates χ²(π‖ref) - KL(π‖ref), {got} where KL(π‖ref) is {right} nats.",
            lambda logp, ref_logp: torch.expm1(logp - ref_logp) + ref_logp - logp,
        ),
        Misconception(
            "k1",
            "This is k1, the log-ratio: the mean is right, {got}, but single values fall below 0.",
            lambda logp, ref_logp: logp - ref_logp,
        ),
        Misconception(
            "minus-k1",
            "This is the log-ratio ref/policy: its mean is minus the KL, {got} where KL(π‖ref) is {right} "
            "nats.",
            lambda logp, ref_logp: ref_logp - logp,
        ),
        Misconception(
            "k2",
            "This is k2, half the squared log-ratio: its mean is {got} where KL(π‖ref) is {right} nats.",
            lambda logp, ref_logp: (logp - ref_logp).square() / 2,
        ),
        Misconception(
            "negated",
            "The sign is turned round: the mean is {got} where KL(π‖ref) is {right} nats, and no value is "
            "above 0.",
            scaled(estimators.k3, -1),
        ),
        Misconception(
            "without-minus-1",
            "The -1 is missing: every value is 1 too large, and the mean is {got} where KL(π‖ref) is "
            "{right}.",
            lambda logp, ref_logp: estimators.k3(logp, ref_logp) + 1,
        ),
        Misconception(
            "log-sign",
            "The sign of the logarithm is wrong: (r - 1) + log r has the mean -KL(π‖ref), {got}.",
            lambda logp, ref_logp: torch.expm1(ref_logp - logp) + ref_logp - logp,
        ),
        Misconception(
            "absolute-k1",
            "This is |k1|: its mean is {got} where KL(π‖ref) is {right} nats.",
            lambda logp, ref_logp: (logp - ref_logp).abs(),
        ),
        Misconception(
            "logs-divided",
            "r is a quotient of logarithms here; it is exp(ref_logp - logp), and its logarithm is their "
            "difference.",
            lambda logp, ref_logp: ref_logp / logp - 1 - (ref_logp / logp).log(),
        ),
        Misconception(
            "term-of-the-sum",
            "This is π·log(π/ref), a term of the sum over all outcomes. A sample is weighted by being drawn, "
            "so π counts twice: the mean is {got} where KL(π‖ref) is {right} nats.",
            lambda logp, ref_logp: logp.exp() * (logp - ref_logp),
        ),
        Misconception(
            "kl-div",
            "This is ref·log(ref/π), what F.kl_div(logp, ref_logp) gives: a term of the sum for KL(ref‖π) "
            "over all outcomes, and no estimate from samples.",
            lambda logp, ref_logp: ref_logp.exp() * (ref_logp - logp),
        ),
        Misconception(
            "ratio-only",
            "This is r - 1, the control variate without the log-ratio: its mean is 0 for every policy.",
            lambda logp, ref_logp: torch.expm1(ref_logp - logp),
        ),
        Misconception(
            "base-2",
            "r is 2 to the log-ratio; log-probabilities in nats need e: the mean is {got}, not {right}.",
            lambda logp, ref_logp: torch.exp2(ref_logp - logp) - 1 + logp - ref_logp,
        ),
        Misconception(
            "halved",
            "This is k3/2: the ½ belongs to k2.",
            scaled(estimators.k3, 0.5),
        ),
        Misconception(
            "averaged",
            "The values are averaged; one a sample is asked for, so that a mask can be applied afterwards.",
            lambda logp, ref_logp: estimators.k3(logp, ref_logp).mean(),
        ),
        Misconception(
            "clamped",
            "The values are clamped to ±10: far from the reference the mean is too low and the gradient 0.",
            lambda logp, ref_logp: estimators.k3(logp, ref_logp).clamp(-10, 10),
        ),
        Misconception(
            "weighted",
            "The values are weighted with the policy's probabilities; samples drawn from it are weighted "
            "already.",
            lambda logp, ref_logp: logp.exp() * estimators.k3(logp, ref_logp),
        ),
        detached(estimators.k3),
    ),
)
