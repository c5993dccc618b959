"""Claims of section 6.4 on the curves of gold reward over √KL: forms, peaks, budgets, and their origin."""

import math

import torch
from torch import Tensor

from kltutor.claims import claim
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import agree, differ, ensure, logp, num, proof
from kltutor.optimum import frontier
from kltutor.overoptimization import GoldCurve, fit_gold

ALPHA, BETA = 1.0, 0.25
CURVES = GoldCurve("best-of-n", ALPHA, BETA), GoldCurve("rl", ALPHA, BETA)
FINE = torch.linspace(0, 60, 600_001, dtype=torch.float64)


def _highest(values: Tensor, at: Tensor = FINE) -> float:
    """Return where on a fine grid the values are largest."""
    return at[values.argmax()].item()


@claim(
    "KL-614",
    section="6.4",
    says=r"With $d = \sqrt{\mathrm{KL}}$ Gao et al. fit the gold reward by $d(\alpha - \beta d)$ for "
    r"best-of-n, with its peak at $d = \alpha/(2\beta)$, and by $d(\alpha - \beta \log d)$ for RL, with its "
    r"peak at $d = e^{\alpha/\beta - 1}$; neither holds a term in $d^{3/2}$, which would be of lower order "
    r"than $d^2$, and $d = \mathrm{KL}$ would move the peak.",
    verdict="folklore is wrong",
    folklore=r"Under PPO the curve is $d(\alpha - \beta d) - \delta d^{3/2}$, whose third-order term moves "
    "the peak a little to the left.",
    kind="symbolic",
    sources=("gao2023",),
    source_rows=("m:W04", "m:W05", "m:H20", "f:W01", "f:W02"),
)
def forms_and_peaks() -> str:
    """The derivation; the peaks and zeros on a fine grid; what the two false readings would do."""
    proven = proof("gao_peaks", halve_distance=True)
    best_of_n, rl = CURVES
    peaks = best_of_n.peak, rl.peak
    for curve, peak in zip(CURVES, peaks, strict=True):
        values = curve.gold(FINE)
        agree(_highest(values), peak.distance, f"where {curve.form} is highest", 1e-3)
        agree(values.max(), peak.gold, f"how high {curve.form} is", 1e-6)
        agree(peak.kl, peak.distance**2, "KL at the peak")
    agree(peaks[0].distance, ALPHA / (2 * BETA), "peak of best-of-n")
    agree(peaks[1].distance, math.exp(ALPHA / BETA - 1), "peak of RL", 1e-9)
    ends = torch.tensor([2 * peaks[0].distance, math.e * peaks[1].distance], dtype=torch.float64)
    zeros = [curve.gold(ends[[i]]) for i, curve in enumerate(CURVES)]
    agree(torch.cat(zeros), torch.zeros(2), "gold where the curves end", 1e-9)
    steep = rl.gold(torch.tensor([1e-9], dtype=torch.float64))[0] / 1e-9
    ensure(steep > 5, f"RL's form starts with the slope {steep}, not an infinite one")
    # The false reading d = KL: the curve in KL has its peak elsewhere than at KL = alpha²/(4 beta²).
    wrong = CURVES[0].gold(FINE)
    differ(_highest(wrong), peaks[0].kl, "KL at the peak if d were the KL", 1)
    delta = 0.1
    shifted = _highest(wrong - delta * FINE**1.5)
    form = ((-3 * delta + math.sqrt(9 * delta**2 + 32 * ALPHA * BETA)) / (8 * BETA)) ** 2
    agree(shifted, form, "the peak with a term in d^1.5", 1e-3)
    moved = shifted / peaks[0].distance - 1
    ensure(moved < -0.15, f"the peak moves by {moved} only")
    crossing = (delta / BETA) ** 2
    small, large = (delta * d**1.5 / (BETA * d**2) for d in (crossing / 10, 10 * crossing))
    ensure(small > 3 and large < 1 / 3, f"d^1.5 over d² is {small} and {large}")
    return (
        f"{proven}; α = 1, β = .25: best-of-n peaks at d = {num(peaks[0].distance)}, KL {num(peaks[0].kl)}, "
        f"RL at d = {num(peaks[1].distance)}, KL {num(peaks[1].kl)}; d = KL would give KL "
        f"{num(_highest(wrong), 3)}, and -.1 d^1.5 would move the first peak by {100 * moved:.0f} %."
    )


@claim(
    "KL-615",
    section="6.4",
    says=r"Half of the KL at the peak is $d = d_{\mathrm{peak}}/\sqrt{2}$, where best-of-n keeps 91.4 % of "
    r"the gold reward of its peak and RL 95.2 %; $d_{\mathrm{peak}}/2$ is a quarter of that KL and keeps 75 "
    "% and 84.7 %.",
    verdict="folklore is wrong",
    folklore=r"A budget of half the KL at the peak means $\sqrt{\mathrm{KL}} < d_{\mathrm{peak}}/2$.",
    kind="exact",
    source_rows=("m:W03", "f:W03"),
)
def half_of_the_budget() -> str:
    """Both forms and three pairs of coefficients: the shares depend on neither."""
    shares: dict[str, Tensor] = {}
    for alpha, beta in ((1.0, 0.25), (0.7, 0.3), (2.0, 1.1)):
        for form in ("best-of-n", "rl"):
            curve = GoldCurve("rl" if form == "rl" else "best-of-n", alpha, beta)
            peak = curve.peak
            budget = curve.kl_budget(0.5)
            agree(budget, peak.kl / 2, "half of the KL", 1e-12)
            at = torch.tensor([math.sqrt(budget), peak.distance / 2], dtype=torch.float64)
            agree(at[0] / peak.distance, math.sqrt(0.5), "its distance", 1e-12)
            agree((at[1] / peak.distance) ** 2, 0.25, "KL at half the distance", 1e-12)
            kept = curve.gold(at) / peak.gold
            agree(kept, shares.setdefault(form, kept), f"the shares of {form}", 1e-12)
    root = math.sqrt(2)
    agree(shares["best-of-n"], torch.tensor([root - 0.5, 0.75], dtype=torch.float64), "best-of-n", 1e-12)
    rl = torch.tensor([(1 + math.log(2) / 2) / root, (1 + math.log(2)) / 2], dtype=torch.float64)
    agree(shares["rl"], rl, "RL", 1e-12)
    differ(shares["rl"][0], shares["rl"][1], "the two budgets", 0.1)
    return (
        f"Kept at KL_peak/2 and at d_peak/2: best-of-n {listed(shares['best-of-n'], 4)}; "
        f"RL {listed(shares['rl'], 4)}."
    )


@claim(
    "KL-616",
    section="6.4",
    says=r"The most reward at a small KL is $\mathrm{E}_{\mathrm{ref}}[r] + \sqrt{2\, "
    r"\mathrm{Var}_{\mathrm{ref}}(r)\, \mathrm{KL}}$ to leading order, which is why "
    r"$\sqrt{\mathrm{KL}}$ is the axis; it is exact for a Gaussian reward, and otherwise the gain is "
    r"off by the factor $1 + \kappa_3/(6 \kappa_2 \beta)$ to first order, with $\kappa_n$ the cumulants "
    "of the reward under the reference.",
    verdict="holds",
    kind="exact",
    source_rows=("m:R3",),
)
def why_the_root_of_kl() -> str:
    """A normal reward on a grid at three tilts; then three skewed arms as beta grows."""
    y = torch.linspace(-12, 20, 6401, dtype=torch.float64)
    normal = (-(y**2) / 2).log_softmax(-1)
    betas = torch.tensor([0.15, 1.0, 10.0], dtype=torch.float64)
    gauss = frontier(normal, y, betas)
    agree(gauss.reward / (2 * gauss.kl).sqrt(), torch.ones(3), "gain over √(2 KL), Gaussian", 1e-9)
    agree(gauss.reward, 1 / betas, "gain, Gaussian", 1e-9)
    differ(gauss.reward[0] / gauss.kl[0], gauss.reward[2] / gauss.kl[2], "gain over KL", 5)

    ref, reward = logp(0.85, 0.1, 0.05), torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    mean = ref.exp() @ reward
    second, third = (ref.exp() @ (reward - mean) ** k for k in (2, 3))
    large = torch.tensor([3.0, 30.0, 3000.0], dtype=torch.float64)
    curve = frontier(ref, reward, large)
    ratio = (curve.reward - mean) / (2 * second * curve.kl).sqrt()
    agree(ratio[2], 1, "gain over its form at beta 3000", 1e-3)
    slope = (ratio - 1) * large
    agree(slope[2], third / (6 * second), "the first correction", 1e-3)
    differ(slope[2], third / (3 * second), "a correction twice as large", 0.1)
    return (
        f"Gaussian: ratio 1 at gains {listed(gauss.reward)}; skewed arms: {listed(ratio, 4)} at β = 3, 30, "
        f"3000, and (ratio - 1)·β → {num(slope[2], 4)} = κ₃/(6κ₂)."
    )


@claim(
    "KL-617",
    section="6.4",
    says=r"If the proxy $x$ is $N(0,1)$ under the reference and the gold reward is $c x - k x^2$, the optima "
    r"of the proxy gain exactly $d(\sqrt{2} c - 2 k d)$ of gold with $d = \sqrt{\mathrm{KL}}$: the form of "
    "best-of-n, from nothing but a proxy that is right for small tilts and wrong for large ones.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:R4",),
)
def goodhart_toy() -> str:
    """The derivation; the sums over a grid of x; and the published form fitted to them."""
    proven = proof("goodhart_toy", root=False)
    c, k = 1.0, 0.2
    x = torch.linspace(-12, 20, 6401, dtype=torch.float64)
    ref, gold = (-(x**2) / 2).log_softmax(-1), c * x - k * x**2
    tilts = torch.linspace(0.3, 6, 20, dtype=torch.float64)
    curve = frontier(ref, x, 1 / tilts)
    probs = (ref + tilts[:, None] * x).log_softmax(-1).exp()
    gain = probs @ gold - ref.exp() @ gold
    d = curve.kl.sqrt()
    agree(d, tilts / math.sqrt(2), "√KL", 1e-9)
    agree(gain, d * (math.sqrt(2) * c - 2 * k * d), "the gold gain", 1e-9)
    agree(curve.reward, tilts, "the proxy reward", 1e-9)
    fitted = fit_gold(d, gain, "best-of-n")
    agree(fitted.alpha, math.sqrt(2) * c, "alpha of the fit", 1e-8)
    agree(fitted.beta, 2 * k, "beta of the fit", 1e-8)
    other = fit_gold(d, gain, "rl")
    missed = (other.gold(d) - gain).abs().max()
    differ(missed, 0, "the form of RL", 0.05)
    peak = fitted.peak
    ensure((gain[d > peak.distance].diff() < 0).all(), "gold does not fall beyond the peak")
    return (
        f"{proven}; c = 1, k = .2: fitted α = {num(fitted.alpha)}, β = {num(fitted.beta)}, peak at KL "
        f"{num(peak.kl, 4)} with gold {num(peak.gold, 4)}, where the proxy is {num(c / (2 * k), 3)} and "
        f"rises on; RL's form misses by {num(missed, 2)}."
    )
