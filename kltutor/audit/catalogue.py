"""What a KL function may turn out to estimate, and which gradient it may have, as sums over a world.

d is the log-ratio policy/ref and a the log-ratio policy/old, of a token in small letters and of a whole
completion in capitals. Every known quantity is a mean under the sampler of a sum over tokens of some g; every
known gradient is the mean under the sampler of Σ_t s_t·∇log π_t for some slope s. A plain name is that of
the completion, "per token" adds up what each token contributes, its prefix drawn but not differentiated.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor.audit.worlds import Rows, Samples, World

Function = Callable[[Tensor], Tensor]

CHI2_MINUS_KL = "χ²(π‖ref) - KL(π‖ref)"
STEP_CHI2_MINUS_KL = "χ²(old‖π) - KL(old‖π)"


def _k3(d: Tensor) -> Tensor:
    return torch.expm1(-d) + d


def _inverted_k3(d: Tensor) -> Tensor:
    return torch.expm1(d) - d


# Name -> g of the log-ratio policy/ref, whose mean over fresh samples it is.
FRESH_VALUES: dict[str, Function] = {
    "KL(π‖ref)": lambda d: d,
    "KL(ref‖π)": lambda d: -d * torch.exp(-d),
    CHI2_MINUS_KL: _inverted_k3,
    "½E[log²(π/ref)]": lambda d: d.square() / 2,
    "E|log(π/ref)|": torch.abs,
    "E[max(log(π/ref), 0)]": lambda d: d.clamp(min=0),
    "χ²(π‖ref)": torch.expm1,
    "1 + χ²(π‖ref)": torch.exp,
    "E[ref/π]": lambda d: torch.exp(-d),  # 1 of the completion, one a token of tokens
    "KL(π‖ref) + KL(ref‖π)": lambda d: -d * torch.expm1(-d),
    "χ²(ref‖π)": lambda d: torch.expm1(-d).square(),
    "TV(π, ref)": lambda d: torch.expm1(-d).abs() / 2,
    "H²(π, ref)": lambda d: -torch.expm1(-d / 2),
}
# The same of the log-ratio policy/old, whose mean over samples of the old policy it is.
STEP_VALUES: dict[str, Function] = {
    "KL(old‖π)": lambda a: -a,
    "KL(π‖old)": lambda a: a * torch.exp(a),
    STEP_CHI2_MINUS_KL: lambda a: torch.expm1(-a) + a,
    "½E_old[log²(π/old)]": lambda a: a.square() / 2,
    "E_old|log(π/old)|": torch.abs,
    "χ²(old‖π)": lambda a: torch.expm1(-a),
}
# Name -> g of policy/ref, uncorrected on samples of the old policy.
STALE_VALUES: dict[str, Function] = {
    "KL(old‖ref) - KL(old‖π)": lambda d: d,
    "½E_old[log²(π/ref)]": lambda d: d.square() / 2,
    "E_old[k3]": _k3,
    "E_old|log(π/ref)|": torch.abs,
    "E_old[inverted k3]": _inverted_k3,
    "E_old[max(log(π/ref), 0)]": lambda d: d.clamp(min=0),
}
# Named by the estimator, since dividing by the length makes unlike means of what has one mean otherwise.
TERMS: dict[str, Function] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": _k3,
    "|k1|": torch.abs,
    "inverted k3": _inverted_k3,
}
# Name -> slope in d of what has that gradient; and the same with the score function added.
SLOPES: dict[str, Function] = {
    "KL(π‖ref)": lambda d: d,
    "KL(ref‖π)": lambda d: -torch.expm1(-d),
    "½χ²(π‖ref)": torch.expm1,
    "2·TV(π, ref)": torch.sign,
    "TV(π, ref)": lambda d: (d > 0).to(d.dtype),
}
SCORED: dict[str, Function] = {
    "½E[log²(π/ref)]": lambda d: d.square() / 2 + d,
    "E|log(π/ref)|": lambda d: d.abs() + torch.sign(d),
    "KL(π‖ref) - KL(ref‖π)": _k3,
}
STALE_SLOPES: dict[str, Function] = {
    "E_old[k2]": lambda d: d,
    "E_old[k3]": lambda d: -torch.expm1(-d),
    "E_old[inverted k3]": torch.expm1,
    "E_old|log(π/ref)|": torch.sign,
    "E_old[max(log(π/ref), 0)]": lambda d: (d > 0).to(d.dtype),
}
STEP_SLOPES: dict[str, Function] = {
    "½E_old[log²(π/old)]": lambda a: a,
    "E_old|log(π/old)|": torch.sign,
    STEP_CHI2_MINUS_KL: lambda a: -torch.expm1(-a),
    "KL(π‖old)": lambda a: a * torch.exp(a),
}
OVER_TOKENS, OVER_PADDED = ", mean over tokens", ", divided by the padded length"


FULL = {f"full-vocabulary KL({ends}){OVER_TOKENS}": turn for ends, turn in (("π‖ref", 1), ("ref‖π", -1))}


def quantities(world: World, samples: Samples) -> dict[str, float]:
    """Return every known quantity of a world by name, in nats where it is a KL.

    Example:
        >>> from kltutor.audit.worlds import kl, worlds
        >>> world = worlds()[3]
        >>> abs(quantities(world, "fresh")["KL(π‖ref)"] - kl(world)) < 1e-15
        True
    """
    parts = _Parts(world, samples)
    found: dict[str, Tensor] = {}
    if samples == "fresh":
        found |= parts.both(FRESH_VALUES, parts.d)
        found |= {
            "H(π)": -parts.logp.sum(-1),
            "H(π, ref)": -parts.ref_logp.sum(-1),
        }
        found |= {
            f"{name} per token{OVER_PADDED}": parts.total(g(parts.d)) / parts.mask.shape[1]
            for name, g in FRESH_VALUES.items()
        }
        found |= {
            name: vocabulary(parts.inputs, parts.mask, direction) / parts.length
            for name, direction in FULL.items()
        }
    else:
        ratio, whole = parts.a.exp(), parts.a.sum(-1).exp()
        for name, g in FRESH_VALUES.items():
            found[name] = whole * g(parts.d.sum(-1))
            found[f"{name} per token, prefixes of old"] = parts.total(ratio * g(parts.d))
        found |= parts.both(STEP_VALUES, parts.a) | parts.both(STALE_VALUES, parts.d)
        found |= {
            f"{name}{OVER_TOKENS}": parts.total(g(parts.a)) / parts.length for name, g in STEP_VALUES.items()
        }
    found |= {f"{name}{OVER_TOKENS}": parts.total(g(parts.d)) / parts.length for name, g in TERMS.items()}
    return {name: (parts.weights @ value).item() for name, value in found.items()}


def gradients(world: World, samples: Samples) -> dict[str, Float[Tensor, " parameter"]]:
    """Return every known gradient of a world by name, in the logits of its policy."""
    parts = _Parts(world, samples)
    d, a, ones = parts.d, parts.a, torch.ones_like(parts.d)
    each, whole = d, d.sum(-1, keepdim=True).expand_as(d)
    found: dict[str, Tensor] = {}
    if samples == "fresh":
        for name, s in (SLOPES | SCORED).items():
            found[name], found[f"{name} per token"] = s(whole), s(each)
        found["-H(π)"] = parts.logp.sum(-1, keepdim=True).expand_as(d)
        found["-H(π) per token"] = parts.logp
        found["E[1/length]"] = ones / parts.length[:, None]
        fading = SLOPES
    else:
        ratio, total = a.exp(), a.sum(-1, keepdim=True).exp()
        prefix = a.cumsum(-1).exp()
        found["KL(old‖π)"] = -ones
        for name, s in (SLOPES | SCORED).items():
            found[name], found[f"{name} per token"] = total * s(whole), prefix * s(each)
            found[f"{name} per token, prefixes of old"] = ratio * s(each)
        for table, x in ((STALE_SLOPES, d), (STEP_SLOPES, a)):
            for name, s in table.items():
                found[name] = s(x.sum(-1, keepdim=True)).expand_as(x)
                found[f"{name} per token"] = s(x)
        found["KL(old‖π)" + OVER_TOKENS] = -ones / parts.length[:, None]
        fading = STALE_SLOPES
    for name, s in fading.items():
        found[f"{name} per token{OVER_TOKENS}"] = s(each) / parts.length[:, None]
        found[f"{name} per token{OVER_PADDED}"] = s(each) / d.shape[1]
    cotangents = torch.stack([parts.weights[:, None] * slope * parts.mask for slope in found.values()])
    live, logits = world.rows(samples).inputs, world.policy.logits
    (slopes,) = torch.autograd.grad(
        live["logp"], logits, cotangents, is_grads_batched=True, retain_graph=True
    )
    full = {
        name: torch.autograd.grad(
            (parts.weights / parts.length) @ vocabulary(live, parts.mask, direction),
            logits,
            retain_graph=True,
        )[0].flatten()
        for name, direction in FULL.items()
        if samples == "fresh"
    }
    return dict(zip(found, slopes.flatten(1), strict=True)) | full


def vocabulary(
    inputs: dict[str, Tensor], mask: Bool[Tensor, "row time"], direction: int
) -> Float[Tensor, " row"]:
    """Return Σ_t of the KL of the next-token distributions: 1 is policy to ref, -1 the other way."""
    one, other = (inputs[name].log_softmax(-1) for name in ("logits", "ref_logits")[::direction])
    return (one.exp() * (one - other)).sum(-1).masked_fill(~mask, 0).sum(-1)


class _Parts:
    """The numbers of a world from which everything here is summed."""

    def __init__(self, world: World, samples: Samples) -> None:
        rows: Rows = world.rows(samples)
        self.inputs = {name: x.detach() for name, x in rows.inputs.items()}
        self.mask, self.weights = rows.mask, rows.weights.detach()
        self.logp, self.ref_logp = self.inputs["logp"], self.inputs["ref_logp"]
        self.d, self.a = self.logp - self.ref_logp, self.logp - self.inputs["old_logp"]
        self.length = rows.mask.sum(-1).double()

    def total(self, terms: Float[Tensor, "row time"]) -> Float[Tensor, " row"]:
        return terms.masked_fill(~self.mask, 0).sum(-1)

    def both(self, table: dict[str, Function], x: Float[Tensor, "row time"]) -> dict[str, Tensor]:
        """Return g of the completion under its plain name, and the sum of g over its tokens."""
        return {
            name + level: value
            for name, g in table.items()
            for level, value in (("", g(x.sum(-1))), (" per token", self.total(g(x))))
        }
