"""Claims on what is special about KL, its chain rule and its tilt, and on what all divergences share."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.claims import claim
from kltutor.claims.witnesses import POLICY, REF, agree, differ, logp, num, proof
from kltutor.divergences import alpha_divergence, chi2, js, kl
from kltutor.estimators import k2
from kltutor.optimum import optimal_policy


@claim(
    "KL-121",
    section="1.3",
    says=r"Any $f$-divergence of two full-support policies is a mean of a known function of "
    r"$\pi_{\mathrm{ref}}/\pi$ over policy samples; what KL has and JS, Hellinger and $\chi^2$ lack is the "
    "additive chain rule and the exponential tilt as its optimum.",
    verdict="folklore is wrong",
    folklore="JS and the alpha family need a trained density-ratio network, which KL alone does without.",
    kind="exact",
    sources=("wang2024fdpo",),
    source_rows=("m:W19",),
)
def what_only_kl_has() -> str:
    """Four divergences from w alone, then the chain rule of each, and the optimum under two penalties."""
    probs, w = POLICY.exp(), (REF - POLICY).exp()
    direct = {
        "JS": (js, (w * w.log() - (1 + w) * ((1 + w) / 2).log()) / 2),
        "4H²": (lambda p, q: alpha_divergence(p, q, 0.5), 4 * (1 - w.sqrt())),
        "χ²": (chi2, w.reciprocal() - 1),
        "KL": (kl, -w.log()),
    }
    gaps = {}
    for name, (divergence, values) in direct.items():
        agree(probs @ values, divergence(POLICY, REF), f"{name} as a mean over policy samples")
        gaps[name] = _chain_rule_gap(divergence)
    agree(gaps.pop("KL"), 0, "the chain rule of KL")
    for name, gap in gaps.items():
        differ(gap, 0, f"the chain rule of {name}", 0.01)

    ref, reward = logp(0.5, 0.3, 0.2), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    kl_tilt = (optimal_policy(ref, reward, 2.0)[0] - ref).diff()
    agree(reward.diff() / kl_tilt, torch.full((2,), 2.0), "the exponential tilt of KL, beta")
    best = _chi2_optimum(ref.exp(), reward, 2.0)
    ratio = best / ref.exp()
    agree(
        reward.diff() / ratio.diff(),
        torch.full((2,), 4.0),
        "reward differences over derivative differences, 2 beta",
        1e-9,
    )
    tilt = reward.diff() / ratio.log().diff()
    differ(tilt[0], tilt[1], "an exponential tilt", 0.1)
    return (
        "Means over policy samples agree; two tokens, whole less parts: KL 0, "
        + ", ".join(f"{name} {num(gap, 3)}" for name, gap in gaps.items())
        + f"; optimum under a χ² penalty {', '.join(num(p, 4) for p in best)}."
    )


@claim(
    "KL-122",
    section="1.3",
    says=r"Where policy and reference meet, KL in both directions and $\mathbb{E}_\pi[k_2]$ have the same "
    r"second derivative, the Fisher matrix $\mathrm{diag}(\pi) - \pi\pi^T$ of the logits.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:H24",),
)
def one_local_geometry() -> str:
    """The derivation, and automatic second derivatives in logits of three outcomes."""
    proven = proof("fisher_hessians")
    fisher = torch.diag(POLICY.exp()) - torch.outer(POLICY.exp(), POLICY.exp())
    values = {
        "KL(policy ‖ ref)": lambda p: kl(p, POLICY),
        "KL(ref ‖ policy)": lambda p: kl(POLICY, p),
        "E[k2]": lambda p: p.exp() @ k2(p, POLICY),
        "χ²": lambda p: chi2(p, POLICY),
    }
    hessians = {
        name: torch.autograd.functional.hessian(lambda z, f=f: f(z.log_softmax(-1)), POLICY)
        for name, f in values.items()
    }
    agree(hessians.pop("χ²"), 2 * fisher, "χ², which is twice as curved")
    for name, hessian in hessians.items():
        agree(hessian, fisher, name)
    away = torch.autograd.functional.hessian(lambda z: kl(z.log_softmax(-1), REF), POLICY)
    differ(away, fisher, "away from the reference", 0.1)
    return f"{proven}; top left entry {num(fisher[0, 0])} for all three, {num(2 * fisher[0, 0])} for χ²."


def _chain_rule_gap(divergence: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return divergence of two tokens less that of the first and the policy's mean of that of the second."""
    second, ref_second = torch.stack([REF, POLICY, POLICY]), torch.stack([POLICY, REF.flip(0), POLICY])
    whole = divergence((POLICY[:, None] + second).flatten(), (REF[:, None] + ref_second).flatten())
    parts = divergence(POLICY, REF) + POLICY.exp() @ divergence(second, ref_second)
    return float(whole - parts)


def _chi2_optimum(ref: Float[Tensor, " o"], reward: Float[Tensor, " o"], beta: float) -> Float[Tensor, " o"]:
    """Return the maximiser of E[reward] - beta χ²(policy ‖ ref), found by exponentiated gradient ascent."""
    policy = ref.clone()
    for _ in range(4000):
        slope = reward - 2 * beta * (policy / ref - 1)
        policy = (policy.log() + 0.1 * slope).softmax(-1)
    return policy
