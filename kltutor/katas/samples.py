"""Katas on sampled estimators of the KL: k3, and ρ·k3 on samples of an older policy."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import estimators, placement
from kltutor.katas.calls import Case
from kltutor.katas.inputs import ARMS, completions, token_cases, wide
from kltutor.katas.kata import Misconception, detached, multiplied, register, scaled


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


def rho_k3(
    logp: Float[Tensor, "batch time"],
    old_logp: Float[Tensor, "batch time"],
    ref_logp: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Return ρ_t·k3_t of every token: the KL in the loss on samples of an older policy, to be differentiated.

        ρ_t = Π_{s ≤ t} π(s)/old(s)        k3_t = (r_t - 1) - log r_t,  r_t = ref(t)/π(t)

    ρ_t covers the action tokens up to and including t, and is differentiated like everything else. Then the
    sum over a row, averaged over samples of the old policy, is KL(π ‖ ref), and its gradient is that of
    KL(π ‖ ref).

    Args:
        logp: of the tokens under the policy that learns, nats per token.
        old_logp: of the same tokens under the policy that drew them.
        ref_logp: of the same tokens under the reference.
        mask: True at action tokens; what stands elsewhere must not matter, not even nan.

    Returns:
        Nats per token, 0 where masked; differentiable in logp.
    """
    raise NotImplementedError


def _samples(world: str) -> dict[str, Tensor]:
    rows = completions("moderate" if world == "moderate" else "far")
    return {name: rows[name].masked_fill(~rows["mask"], 0) for name in ("logp", "ref_logp")}


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


def _rho_k3(logp: Tensor, old_logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    return placement.kl_terms(logp, ref_logp, mask, "k3", old_logp=old_logp, correction="differentiable")


def _ratio(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    return placement.importance_weight(logp, old_logp, mask, "prefix", "differentiable")


def _k3(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    return placement.kl_terms(logp, ref_logp, mask, "k3")


def _inverted_k3(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    d = torch.where(mask, logp - ref_logp, 0)
    return torch.expm1(d) - d


def _naive(logp: Tensor, old_logp: Tensor, ref_logp: Tensor, mask: Tensor, *, multiply: bool) -> Tensor:
    """Return ρ·k3 with a ratio that lets masked positions in, or that multiplies them away."""
    d, a = logp - ref_logp, logp - old_logp
    ratio = (a * mask if multiply else a).cumsum(-1).exp()
    values = ratio * (torch.expm1(-d) + d)
    return values * mask if multiply else torch.where(mask, values, 0)


_ROW = ("logp", "old_logp", "ref_logp")
_OLD = wide(0.4, 0.35, 0.25).log()
_ONE = {name: value[:, None] for name, value in {**ARMS, "old_logp": _OLD}.items()}
_ONE["mask"] = torch.ones(3, 1, dtype=torch.bool)

register(
    rho_k3,
    level=3,
    section="3.5 Off-policy samples",
    reference=_rho_k3,
    differentiable=("logp",),
    number=lambda value: _OLD.exp() @ value.reshape(len(_OLD), -1).sum(-1),  # exact, samples from old
    audit=((*_ROW, "mask"), "token"),
    cases=(
        Case("every outcome of one action", {name: _ONE[name] for name in (*_ROW, "mask")}),
        *token_cases(*_ROW),
    ),
    misconceptions=(
        Misconception(
            "token-ratio",
            "ρ is that of the token alone: the prefix came from the old policy too, so the mean is the KL "
            "only for the first token.",
            lambda p, o, q, m: placement.importance_weight(p, o, m, "token", "differentiable") * _k3(p, q, m),
        ),
        Misconception(
            "sequence-ratio",
            "ρ is that of the whole completion. The mean is right as well, but tokens after t only add "
            "variance; stop at t.",
            lambda p, o, q, m: (
                placement.importance_weight(p, o, m, "sequence", "differentiable") * _k3(p, q, m)
            ),
        ),
        Misconception(
            "exclusive-ratio",
            "Off by one: ρ stops before the token itself, whose own ratio belongs to it.",
            lambda p, o, q, m: (
                (_ratio(p, o, m) / placement.importance_weight(p, o, m, "token", "differentiable"))
                * _k3(p, q, m)
            ),
        ),
        Misconception(
            "ratio-detached",
            "The values are right, but the gradient stops at ρ: what is left is that of KL(ref ‖ π), per "
            "prefix. Differentiate ρ as well.",
            lambda p, o, q, m: _ratio(p, o, m).detach() * _k3(p, q, m),
        ),
        Misconception(
            "k3-detached",
            "The values are right, but only ρ is differentiated; the gradient of k3 itself is missing.",
            lambda p, o, q, m: _ratio(p, o, m) * _k3(p, q, m).detach(),
        ),
        Misconception(
            "ratio-inverted",
            "ρ is upside down: samples of the old policy are weighted with π/old. The mean is then {got} "
            "where KL(π‖ref) is {right} nats.",
            lambda p, o, q, m: _k3(p, q, m) / _ratio(p, o, m),
        ),
        Misconception(
            "without-ratio",
            "There is no ρ: on samples of an older policy the mean is E_old[k3], {got} where KL(π‖ref) is "
            "{right} nats.",
            lambda p, o, q, m: _k3(p, q, m),
        ),
        Misconception(
            "k3-inverted",
            "r is inverted inside k3: with π/ref for r it estimates χ²(π‖ref) - KL(π‖ref), {got} where "
            "KL(π‖ref) is {right} nats.",
            lambda p, o, q, m: _ratio(p, o, m) * _inverted_k3(p, q, m),
        ),
        Misconception(
            "k1",
            "This is ρ·k1: the mean is the same, but single values fall below 0; k3 is asked for.",
            lambda p, o, q, m: _ratio(p, o, m) * placement.kl_terms(p, q, m, "k1"),
        ),
        Misconception(
            "k2",
            "This is ρ·k2, half a square, whose mean is not the KL.",
            lambda p, o, q, m: _ratio(p, o, m) * placement.kl_terms(p, q, m, "k2"),
        ),
        Misconception(
            "clipped-ratio",
            "ρ is clipped to [0.8, 1.2] as in PPO: the mean is then no KL, and outside the gradient of ρ is "
            "0.",
            lambda p, o, q, m: _ratio(p, o, m).clamp(0.8, 1.2) * _k3(p, q, m),
        ),
        Misconception(
            "summed",
            "The tokens are added up; one value a token is asked for.",
            lambda p, o, q, m: _rho_k3(p, o, q, m).sum(-1),
        ),
        Misconception(
            "mask-ignored",
            "The mask is not used: prompt and padding enter the ratios, and have values of their own.",
            lambda p, o, q, m: _naive(p, o, q, torch.ones_like(m), multiply=False),
        ),
        Misconception(
            "masked-ratio",
            "Masked positions enter the product: prompt and padding are not actions, and their ratio counts "
            "as 1.",
            lambda p, o, q, m: _naive(p, o, q, m, multiply=False),
        ),
        multiplied(
            lambda p, o, q, m: _naive(p, o, q, m, multiply=True),
        ),
        detached(_rho_k3),
    ),
)
