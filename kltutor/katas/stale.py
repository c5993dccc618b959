"""A kata on samples of an older policy: ρ·k3."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import placement
from kltutor.katas.calls import Case
from kltutor.katas.inputs import ARMS, token_cases, wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import detached, late, multiplied


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

_STALE = {
    "logp": wide([-0.1, -0.2], [-0.3, -7.0]),
    "old_logp": wide([-4.0, -3.5], [-6.0, -0.1]),
    "ref_logp": wide([-2.0, -1.0], [-0.6, -3.0]),
    "mask": torch.ones(2, 2, dtype=torch.bool),
}

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
        Case("an old policy far away", {name: _STALE[name] for name in (*_ROW, "mask")}),
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
            "truncated-ratio",
            "ρ is truncated at 10: less variance, but the mean is then no KL, and beyond 10 the gradient of "
            "ρ is 0.",
            lambda p, o, q, m: _ratio(p, o, m).clamp(max=10.0) * _k3(p, q, m),
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
        late(
            lambda p, o, q, m: torch.where(m, _ratio(p, o, m) * (torch.expm1(q - p) + p - q), 0),
        ),
        Misconception(
            "ratio-through-zero",
            "Masked ratios enter the product as 0, so all that follows is 0; they count as 1.",
            lambda p, o, q, m: ((p - o).exp() * m).cumprod(-1) * _k3(p, q, m),
        ),
        multiplied(lambda p, o, q, m: _naive(p, o, q, m, multiply=True)),
        detached(_rho_k3),
    ),
)
