"""Claims of sections 2.2 to 2.4 on the means of k1, k2 and k3: bias, sign and support."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.claims import claim
from kltutor.claims.witnesses import (
    POLICY,
    REF,
    agree,
    differ,
    ensure,
    gaussian_log_ratio,
    logp,
    num,
    proof,
)
from kltutor.divergences import chi2, kl
from kltutor.estimators import control_variate, k1, k2, k3
from kltutor.moments import estimator_moments

MU = 0.5  # shift of the reference in the simulation that every text repeats; KL = 1/8


@claim(
    "KL-201",
    section="2.2",
    says=r"k1 is unbiased, and single values are negative wherever the reference likes the sample more; for "
    r"$N(0,1)$ against $N(\mu,1)$ that happens with probability $\Phi(-\mu/2)$.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H10", "m:W02", "f:C01"),
)
def k1_is_unbiased_and_signed() -> str:
    """The mean by enumeration, the share of negative values by quadrature."""
    from scipy.special import ndtr

    values = k1(POLICY, REF)
    agree(POLICY.exp() @ values, kl(POLICY, REF), "E[k1]")
    differ(POLICY.exp() @ values, kl(REF, POLICY), "the other direction", 0.1)
    agree((values < 0).double(), (REF > POLICY).double(), "where k1 is negative")
    ensure((values < 0).any(), "no value is negative")
    y = torch.linspace(-12, 12, 240001, dtype=torch.float64)
    density = torch.exp(-(y**2) / 2) * 1e-4 / math.sqrt(2 * math.pi)
    share = density[gaussian_log_ratio(y, 1.0, MU) < 0].sum()
    agree(share, ndtr(-MU / 2), "P(k1 < 0)", 1e-4)
    differ(share, ndtr(-MU), "with mu in place of mu/2", 0.05)
    return (
        f"E[k1] = {num(POLICY.exp() @ values)}, values {', '.join(num(v, 3) for v in values)}; "
        f"P(k1 < 0) = {ndtr(-MU / 2):.4f} at mu = {MU}."
    )


@claim(
    "KL-204",
    section="2.3",
    says=r"For a policy $\propto \pi_{\mathrm{ref}}\, e^{\epsilon f}$ the bias of k2 is "
    r"$\kappa_3 \epsilon^3/6 + (\kappa_4 + \kappa_2^2)\, \epsilon^4/8$ to fourth order, with $\kappa_n$ the "
    "cumulants of $f$ under the reference: it has either sign.",
    verdict="folklore is wrong",
    folklore="k2 reads high.",
    kind="symbolic",
    sources=("schulman2020kl",),
    source_rows=("m:C04", "m:C05", "f:C01"),
)
def k2_bias_is_third_order() -> str:
    """The derivation, its numbers for a skew and a symmetric tilt, and coins for which k2 reads low."""
    proven = proof("taylor_orders", bias_order=4)
    skew, even = logp(0.7, 0.2, 0.1), logp(1 / 3, 1 / 3, 1 / 3)
    up, flat = torch.tensor([[0.0, 1.0, 3.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    third, fourth = _cumulant_terms(skew, up), _cumulant_terms(even, flat)
    agree(fourth[0], 0, "third cumulant of a symmetric f")
    for eps in (0.01, -0.01):
        agree(_k2_bias(skew, up, eps) / eps**3, third[0] + eps * third[1], "skew tilt", 1e-3)
    agree(_k2_bias(even, flat, 0.01) / 1e-8, fourth[1], "symmetric tilt", 1e-4)
    remainders = [_series_gap(skew, up, eps) for eps in (0.1, 0.05)]
    for big, small in zip(*remainders, strict=True):
        ensure(
            big > 20 * small, f"series in log w or w - 1: {big} at .1 and {small} at .05 is not fifth order"
        )

    biased = estimator_moments(logp(0.9, 0.1), logp(0.5, 0.5))
    ensure(biased["k2"].bias < -0.05, "k2 of coins .9 and .5 does not read low")
    for share, sign in ((0.2, -1), (0.1, 1)):  # a policy that always says a; e^-2 = .135 lies between
        mean = estimator_moments(logp(1.0, 0.0), logp(share, 1 - share))["k2"].mean.item()
        agree(mean, math.log(share) ** 2 / 2, "E[k2] of a sure answer")
        ensure((mean + math.log(share)) * sign > 0, f"sign of the bias at ref {share}")
    return (
        f"{proven}; skew tilt: bias/eps³ {num(_k2_bias(skew, up, 0.01) / 1e-6, 4)}, κ₃/6 {num(third[0], 4)}; "
        f"coins .9 and .5: E[k2] {num(biased['k2'].mean, 4)}, KL {num(biased['k1'].mean, 4)}."
    )


@claim(
    "KL-207",
    section="2.3",
    says=r"$\mathbb{E}_\pi[\pi_{\mathrm{ref}}/\pi] = 1$ where the policy covers the reference, but "
    r"$\mathbb{E}_\pi[\pi/\pi_{\mathrm{ref}}] = 1 + \chi^2(\pi \Vert \pi_{\mathrm{ref}})$, a "
    "second-order term that an expansion of the log-ratio must keep.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I27", "m:H21"),
)
def mean_of_the_ratio_is_not_one() -> str:
    """Both means by enumeration, and the expansion with and without the term for a small tilt."""
    probs, log_ratio = POLICY.exp(), k1(POLICY, REF)
    agree(probs @ (-log_ratio).exp(), 1, "E[w]")
    mean = probs @ log_ratio.exp()
    agree(mean, 1 + chi2(POLICY, REF), "E[ratio]")
    differ(mean, 1, "E[ratio] and 1", 1)
    differ(mean, 1 + chi2(REF, POLICY), "the other chi-squared", 0.5)
    near = (REF + 0.001 * torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)).log_softmax(-1)
    spread, divergence = chi2(near, REF), kl(near, REF)
    agree(divergence / spread, 0.5, "KL over χ² near the reference", 1e-3)
    differ(divergence / spread, -0.5, "the expansion without E[ratio - 1]", 0.9)
    return (
        f"E[w] = {num(probs @ (-log_ratio).exp())}, E[ratio] = {num(mean)} = 1 + {num(chi2(POLICY, REF))}; "
        f"small tilt: KL/χ² = {num(divergence / spread, 3)}."
    )


@claim(
    "KL-208",
    section="2.3",
    says=r"$\mathbb{E}_\pi[k_2]$ is not an $f$-divergence: its $f(w) = \tfrac12 \log^2 w$ is not convex "
    "beyond $w = e$, and merging outcomes can raise it.",
    verdict="holds",
    kind="exact",
    source_rows=("m:R8",),
)
def mean_of_k2_is_no_divergence() -> str:
    """Two rare outcomes, each with w above e, are merged: KL falls as it must, and the mean of k2 rises."""
    fine, coarse = (logp(0.01, 0.01, 0.98), logp(0.03, 0.5, 0.47)), (logp(0.02, 0.98), logp(0.53, 0.47))
    before, after = estimator_moments(*fine)["k2"].mean, estimator_moments(*coarse)["k2"].mean
    ensure(after > before + 0.02, f"E[k2] goes from {before} to {after}")
    ensure(kl(*coarse) < kl(*fine) - 0.01, "merging did not lower KL")
    w = torch.tensor([math.e - 0.1, math.e + 0.1], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((w.log() ** 2 / 2).sum(), w, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), w)
    ensure(curvature[0] > 0 > curvature[1], "the curvature does not change sign at e")
    return (
        f"Merging .01 and .01 (reference .03 and .5): E[k2] {before:.4f} → {after:.4f}, "
        f"KL {kl(*fine):.4f} → {kl(*coarse):.4f}."
    )


@claim(
    "KL-209",
    section="2.4",
    says=r"k3 is never negative: $e^u - 1 - u \ge 0$, with equality only at $u = 0$.",
    verdict="holds",
    kind="symbolic",
    sources=("schulman2020kl",),
    source_rows=("m:H11", "f:C01"),
)
def k3_is_never_negative() -> str:
    """The derivation, and the package over all log-ratios from -20 to 20."""
    proven = proof("k3_is_nonnegative", flipped=True)
    logs = -torch.linspace(0, 20, 201, dtype=torch.float64)
    values = k3(logs[:, None].expand(-1, 201), logs[None].expand(201, -1))
    u = logs[None] - logs[:, None]
    agree(values, u.exp() - 1 - u, "k3 and e^u - 1 - u", 1e-6)
    off = values[~torch.eye(201, dtype=torch.bool)]
    ensure((values.diagonal() == 0).all() and (off > 0).all(), "a value is negative, or zero away from u = 0")
    flipped = (u.exp() - 1 + u).min()
    ensure(flipped < -1, "the flipped sign would have passed")
    return f"{proven}; least value off zero {num(off.min(), 4)}; with the sign flipped {num(flipped, 4)}."


@claim(
    "KL-210",
    section="2.4",
    says=r"$\mathbb{E}_\pi[k_3] = \mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}}) - "
    r"\pi_{\mathrm{ref}}(\pi = 0)$: k3 is unbiased.",
    verdict="holds if",
    condition="the samples come from the policy itself and it can draw whatever the reference can.",
    kind="symbolic",
    sources=("schulman2020kl",),
    source_rows=("m:C01", "f:C01", "f:I04"),
)
def k3_is_unbiased_given_support() -> str:
    """Full support, a gap in the support, and samples from an older policy."""
    proven = proof("k3_is_unbiased", covers=False)
    agree(POLICY.exp() @ k3(POLICY, REF), kl(POLICY, REF), "E[k3]")
    differ(POLICY.exp() @ k3(REF, POLICY), kl(POLICY, REF), "with the arguments swapped", 0.1)
    gap, ref = logp(0.6, 0.4, 0.0), logp(0.2, 0.5, 0.3)
    with_gap = estimator_moments(gap, ref)["k3"]
    agree(with_gap.mean, kl(gap, ref) - 0.3, "E[k3] with a gap in the support")
    agree(with_gap.bias, -0.3, "its bias")
    old = logp(0.1, 0.1, 0.8)
    stale = old.exp() @ k3(POLICY, REF)
    for other in (kl(POLICY, REF), kl(old, POLICY), kl(old, REF), kl(REF, POLICY)):
        differ(stale, other, "samples of an older policy", 0.05)
    return (
        f"{proven}; full support: {num(POLICY.exp() @ k3(POLICY, REF))} = KL; missing reference mass .3: "
        f"{num(with_gap.mean)} against {num(kl(gap, ref))}; older samples: {num(stale)}, none of their KLs."
    )


@claim(
    "KL-211",
    section="2.4",
    says=r"Where the policy covers the reference every $k_1 + \lambda(w - 1)$ is unbiased, and $\lambda = 1$ "
    "(k3) is the only one that is never negative; it is not the one of least variance.",
    verdict="holds",
    kind="symbolic",
    sources=("schulman2020kl",),
    source_rows=("m:I16",),
)
def only_k3_is_never_negative() -> str:
    """The derivation, and the lowest value of several members of the family."""
    proven = proof("only_coef_one_is_nonnegative", coef=2)
    logs = torch.linspace(-8, 0, 8001, dtype=torch.float64)
    lows = []
    for coef in (-1.0, 0.0, 0.5, 0.9, 1.0, 1.1, 2.0):
        agree(POLICY.exp() @ control_variate(POLICY, REF, coef), kl(POLICY, REF), f"mean at {coef}", 1e-9)
        low = min(control_variate(logs, logs.flip(0), coef).min().item(), 0.0)
        ensure((low < -1e-3) == (coef != 1), f"the lowest value at coefficient {coef} is {low}")
        lows.append(low)
    less, more = _spread(0.85), _spread(1.0)
    ensure(less < more - 0.03, f"variance {less} at .85 is not below {more} at 1")
    return (
        f"{proven}; lowest at .9, 1, 1.1: {num(lows[3], 3)}, {num(lows[4], 3)}, {num(lows[5], 3)}; "
        f"variance at .85 and 1: {num(less, 4)}, {num(more, 4)}."
    )


def _spread(coef: float) -> float:
    values = control_variate(POLICY, REF, coef)
    return float(POLICY.exp() @ (values - kl(POLICY, REF)) ** 2)


def _tilt(ref: Float[Tensor, " o"], f: Float[Tensor, " o"], eps: float) -> Float[Tensor, " o"]:
    return (ref + eps * f).log_softmax(-1)


def _k2_bias(ref: Float[Tensor, " o"], f: Float[Tensor, " o"], eps: float) -> Float[Tensor, ""]:
    policy = _tilt(ref, f, eps)
    return policy.exp() @ k2(policy, ref) - kl(policy, ref)


def _cumulant_terms(ref: Float[Tensor, " o"], f: Float[Tensor, " o"]) -> tuple[float, float]:
    """Return κ₃/6 and (κ₄ + κ₂²)/8 of f under the reference."""
    centred = f - ref.exp() @ f
    second, third, fourth = (float(ref.exp() @ centred**n) for n in (2, 3, 4))
    return third / 6, (fourth - 3 * second**2 + second**2) / 8


def _series_gap(ref: Float[Tensor, " o"], f: Float[Tensor, " o"], eps: float) -> tuple[float, float]:
    """Return what the bias of k2 leaves of its fourth-order series in log w and in w - 1."""
    policy = _tilt(ref, f, eps)
    probs, bias = policy.exp(), _k2_bias(ref, f, eps)
    delta = ref - policy
    u = torch.expm1(delta)
    in_delta = -(probs @ delta**3) / 6 - (probs @ delta**4) / 24
    in_u = -(probs @ u**3) / 6 + 5 * (probs @ u**4) / 24
    return abs(float(bias - in_delta)), abs(float(bias - in_u))
