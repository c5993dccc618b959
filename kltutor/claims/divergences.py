"""Claims of section 1.3: JS, alpha, Hellinger, chi-squared and total variation, and what binds them to KL."""

import math
from collections.abc import Callable
from itertools import pairwise

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
    logp,
    num,
    proof,
    simplex,
)
from kltutor.divergences import alpha_divergence, chi2, hellinger2, jeffreys, js, kl, tv


@claim(
    "KL-113",
    section="1.3",
    says="The original GAN game minimises the Jensen-Shannon divergence: against the best discriminator the "
    r"generator's criterion is $C(G) = 2\, \mathrm{JS}(p \Vert q) - \log 4$.",
    verdict="folklore is wrong",
    folklore="Training a GAN means minimising reverse KL.",
    kind="exact",
    sources=("goodfellow2014",),
    source_rows=("m:I06", "m:H09", "f:I15", "f:I18"),
)
def gan_game_is_js() -> str:
    """Search the discriminator outcome by outcome, with no formula for the best one."""
    from scipy.optimize import minimize_scalar

    data, fake = POLICY.exp().tolist(), REF.exp().tolist()
    criterion = 0.0
    for p, q in zip(data, fake, strict=True):
        best = minimize_scalar(
            lambda d, p=p, q=q: -(p * math.log(d) + q * math.log1p(-d)),
            bounds=(1e-9, 1 - 1e-9),
            options={"xatol": 1e-10},
        )
        agree(best.x, p / (p + q), "the best discriminator", 1e-6)
        criterion -= best.fun
    expected = 2 * js(POLICY, REF) - math.log(4)
    agree(criterion, expected, "C(G)")
    for direction in (kl(REF, POLICY), kl(POLICY, REF)):
        differ(criterion + math.log(4), 2 * direction, "KL in place of JS", 0.1)
    return (
        f"C(G) = {num(criterion)} = 2 · {num(js(POLICY, REF))} - log 4; KL(fake ‖ data) is "
        f"{num(kl(REF, POLICY))}."
    )


@claim(
    "KL-114",
    section="1.3",
    says=r"$\sqrt{\mathrm{JS}}$ is a metric; JS itself violates the triangle inequality.",
    verdict="folklore is wrong",
    folklore="JS is the square root of a metric.",
    kind="exact",
    sources=("endres2003", "osterreicher2003"),
    source_rows=("m:W13", "m:H09", "f:W24", "f:C08"),
)
def root_of_js_is_a_metric() -> str:
    """Every triple of distributions on a grid of the triangle, its corners included; the proof is cited."""
    distance = _all_pairs(js, simplex(3, 10)).clamp(min=0)
    excess, root_excess = _worst_detour(distance), _worst_detour(distance.sqrt())
    ensure(root_excess < 1e-9, f"the root of JS violates the triangle inequality by {root_excess}")
    a, b, c = logp(1.0, 0.0), logp(0.5, 0.5), logp(0.0, 1.0)
    direct, detour = js(a, c), js(a, b) + js(b, c)
    agree(excess, direct - detour, "the worst violation of the grid, and that of three coins")
    differ(direct, detour, "JS of three coins", 0.2)
    return (
        f"Coins 0, ½, 1: JS {num(direct)} > {num(detour)}, the worst of {len(distance) ** 3} triples; "
        f"the root violates none of them."
    )


@claim(
    "KL-115",
    section="1.3",
    says=r"$\mathrm{JS} \le \mathrm{TV} \cdot \log 2 \le \log 2$, with equality for disjoint distributions.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H09",),
)
def js_is_bounded() -> str:
    """Every pair on a grid of the triangle; the constant is the least possible."""
    grid = simplex(3, 12)
    divergence, distance = _all_pairs(js, grid), _all_pairs(tv, grid)
    ensure(bool((divergence <= distance * math.log(2) + 1e-12).all()), "JS exceeds TV log 2")
    ensure(bool((distance <= 1 + 1e-12).all()), "TV exceeds 1")
    ratio = (divergence / distance)[distance > 0].max()
    agree(ratio, math.log(2), "the largest JS / TV")
    apart = logp(0.5, 0.5, 0.0), logp(0.0, 0.0, 1.0)
    agree(js(*apart), math.log(2), "JS of disjoint distributions")
    return f"{divergence.numel()} pairs: JS / TV at most {num(ratio)}; disjoint: JS {num(js(*apart))}."


@claim(
    "KL-116",
    section="1.3",
    says=r"The $\alpha$-divergence $(1 - \sum p^\alpha q^{1-\alpha})/(\alpha(1-\alpha))$ tends to "
    r"$\mathrm{KL}(p \Vert q)$ as $\alpha \to 1$ and to $\mathrm{KL}(q \Vert p)$ as $\alpha \to 0$; it is "
    r"$4H^2$ at $\tfrac12$ and $\chi^2(p \Vert q)/2$ at $2$.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H06", "f:C09"),
)
def alpha_family_contains_the_others() -> str:
    """The printed formula against the package, and its approach to both limits at first order."""
    p, q = POLICY, REF

    def formula(alpha: float) -> Tensor:
        return (1 - (alpha * p + (1 - alpha) * q).exp().sum()) / (alpha * (1 - alpha))

    for alpha in (-1.0, 0.25, 0.5, 2.0, 3.0):
        agree(alpha_divergence(p, q, alpha), formula(alpha), f"alpha_divergence at {alpha}", 1e-9)
    for limit, truth, other in ((1.0, kl(p, q), kl(q, p)), (0.0, kl(q, p), kl(p, q))):
        gaps = [(formula(limit + step) - truth).abs() for step in (0.1, 0.01, 0.001)]
        ensure(all(after < before / 5 for before, after in pairwise(gaps)), f"no approach to alpha {limit}")
        agree(formula(limit + 1e-6), truth, f"limit at {limit}", 1e-5)
        differ(truth, other, f"the other KL at {limit}", 0.1)
    agree(formula(0.5), 4 * hellinger2(p, q), "alpha ½")
    agree(formula(2.0), chi2(p, q) / 2, "alpha 2")
    differ(formula(2.0), chi2(q, p) / 2, "the other chi-squared", 0.1)
    return (
        f"alpha .999: {num(formula(0.999), 4)}, KL(p ‖ q) {num(kl(p, q), 4)}; alpha .001: "
        f"{num(formula(0.001), 4)}, KL(q ‖ p) {num(kl(q, p), 4)}; ½: {num(formula(0.5))} = 4H²; "
        f"2: {num(formula(2.0))} = χ²/2."
    )


@claim(
    "KL-117",
    section="1.3",
    says=r"$0 \le H^2 \le 1$, $\mathrm{KL} \ge -2 \log(1 - H^2)$, and therefore $H^2 \le \mathrm{KL}/2$.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H07", "f:C09"),
)
def hellinger_is_bounded_by_kl() -> str:
    """Every pair on a grid of the triangle; a point mass attains the stronger bound."""
    grid = simplex(3, 12)
    divergence, squared = _all_pairs(kl, grid), _all_pairs(hellinger2, grid)
    stronger = -2 * torch.log1p(-squared.clamp(max=1))
    ensure(bool(((squared >= 0) & (squared <= 1 + 1e-12)).all()), "H² leaves [0, 1]")
    ensure(bool((divergence >= stronger - 1e-12).all()), "KL is below -2 log(1 - H²)")
    ensure(bool((stronger >= 2 * squared - 1e-12).all()), "the stronger bound is the weaker one")
    point, near = logp(1.0, 0.0), logp(0.99, 0.01)
    agree(kl(point, near), -2 * torch.log1p(-hellinger2(point, near)), "a point mass", 1e-12)
    ratio = hellinger2(point, near) / kl(point, near)
    ensure(bool(0.49 < ratio < 0.5), f"H²/KL is {ratio}, so ½ is not the best constant")
    return (
        f"{divergence.numel()} pairs; (1, 0) and (.99, .01): KL {num(kl(point, near))} equals the bound, "
        f"H²/KL = {num(ratio)}."
    )


@claim(
    "KL-118",
    section="1.3",
    says=r"Pinsker: $\mathrm{TV} \le \sqrt{\mathrm{KL}/2}$, and no smaller constant will do; "
    r"$\mathrm{TV} \le \sqrt{1 - e^{-\mathrm{KL}}}$ is tighter once KL exceeds about $1.6$ nats.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:H08", "f:I16", "f:C09"),
)
def total_variation_is_bounded_by_kl() -> str:
    """Two outcomes by derivation; more by merging them where p > q, which keeps TV and never raises KL."""
    from scipy.optimize import brentq

    proven = proof("pinsker_bernoulli", constant=3)
    grid = simplex(3, 12)
    p, q = _pairs(grid)
    divergence, distance = kl(p, q), tv(p, q)
    above = p > q
    inside = torch.stack([torch.where(above, p.exp(), 0).sum(-1), torch.where(above, q.exp(), 0).sum(-1)])
    two = torch.stack([inside, 1 - inside], -1).clamp(0, 1).log()
    agree(tv(two[0], two[1]), distance, "TV after merging", 1e-12)
    ensure(bool((kl(two[0], two[1]) <= divergence + 1e-12).all()), "merging raised KL")
    ensure(bool((distance <= (divergence / 2).sqrt() + 1e-12).all()), "TV exceeds Pinsker's bound")
    ensure(bool((distance <= (-torch.expm1(-divergence)).sqrt() + 1e-12).all()), "TV exceeds the other bound")
    near = logp(0.5, 0.5), logp(0.51, 0.49)
    ratio = tv(*near) ** 2 / kl(*near)
    agree(ratio, 0.5, "TV²/KL of nearly equal coins", 1e-3)
    crossing = brentq(lambda x: x / 2 + math.expm1(-x), 1.0, 2.0)
    return (
        f"{proven}; {divergence.numel()} pairs; TV²/KL of coins .5 and .51 is {num(ratio)}; the bounds "
        f"cross at KL = {num(crossing)}."
    )


@claim(
    "KL-119",
    section="1.3",
    says=r"$\mathrm{KL}(p \Vert q) \le \log(1 + \chi^2(p \Vert q))$.",
    verdict="holds if",
    condition="both take their arguments in the same order; "
    r"against $\chi^2(q \Vert p)$ it fails by any amount.",
    kind="exact",
    source_rows=("m:C09", "f:C09"),
)
def kl_is_bounded_by_chi2() -> str:
    """Every pair on a grid of the triangle, and coins for which the swapped bound stays below log 2."""
    p, q = _pairs(simplex(3, 12))
    ensure(bool((kl(p, q) <= torch.log1p(chi2(p, q)) + 1e-12).all()), "KL exceeds log(1 + χ²)")
    fair = logp(0.5, 0.5)
    rows = []
    for tiny in (1e-2, 1e-6, 1e-12):
        bent = logp(tiny, 1 - tiny)
        value, swapped = kl(fair, bent), torch.log1p(chi2(bent, fair))
        ensure(bool(swapped < math.log(2)), "the swapped bound exceeds log 2")
        differ(value, swapped, "the swapped bound", 0.5)
        rows.append(value)
    ensure(rows[0] + 4 < rows[1] and rows[1] + 4 < rows[2], "KL does not grow without bound")
    return f"Coins .5 and 1e-2, 1e-6, 1e-12: KL {', '.join(num(v) for v in rows)}; swapped bound below log 2."


@claim(
    "KL-120",
    section="1.3",
    says=r"$\chi^2(\pi \Vert \pi_{\mathrm{ref}}) = \mathbb{E}_\pi[\pi/\pi_{\mathrm{ref}}] - 1$ and "
    r"$\chi^2(\pi_{\mathrm{ref}} \Vert \pi) = \mathrm{Var}_\pi[\pi_{\mathrm{ref}}/\pi]$ are different "
    "numbers, and only the second one enters the variance of k3.",
    verdict="folklore is wrong",
    folklore=r"A large $\chi^2$ beside a small KL means heavy tails of the policy against the reference.",
    kind="exact",
    source_rows=("m:I17", "m:H09"),
)
def the_two_chi2() -> str:
    """A policy that lifts one outcome from 1e-8 to 1e-2: huge one way, harmless the other."""
    policy, ref = logp(1e-2, 1 - 1e-2), logp(1e-8, 1 - 1e-8)
    probs, w = policy.exp(), (ref - policy).exp()
    large, small = chi2(policy, ref), chi2(ref, policy)
    agree(large, probs @ w.reciprocal() - 1, "χ²(policy ‖ ref) and E[ratio] - 1", 1e-6)
    agree(large, ref.exp() @ (w.reciprocal() - 1) ** 2, "χ² as the f-divergence of (t - 1)²", 1e-6)
    agree(small, probs @ (w - 1) ** 2, "χ²(ref ‖ policy) and Var w", 1e-12)
    ensure(bool(large > 9999 and small < 0.0102), f"χ² are {large} and {small}")
    k3_values = w - 1 - w.log()
    variance = probs @ (k3_values - kl(policy, ref)) ** 2
    ratios = policy - ref
    k1_variance = probs @ (ratios - kl(policy, ref)) ** 2
    agree(variance, k1_variance + small - 2 * jeffreys(policy, ref), "variance of k3", 1e-9)
    ensure(bool(variance < k1_variance), "k3 is worse than k1 although χ²(ref ‖ policy) is small")
    return (
        f"1e-8 lifted to 1e-2: KL {num(kl(policy, ref))}, χ²(policy ‖ ref) {num(large)}, χ²(ref ‖ policy) "
        f"{num(small)}; Var k3 {num(variance)} < Var k1 {num(k1_variance)}."
    )


def _pairs(grid: Float[Tensor, "n o"]) -> tuple[Float[Tensor, "n n o"], Float[Tensor, "n n o"]]:
    return grid[:, None].expand(-1, len(grid), -1), grid[None].expand(len(grid), -1, -1)


def _all_pairs(
    divergence: Callable[[Tensor, Tensor], Tensor], grid: Float[Tensor, "n o"]
) -> Float[Tensor, "n n"]:
    return divergence(*_pairs(grid))


def _worst_detour(distance: Float[Tensor, "n n"]) -> float:
    """Return the largest d(a, c) - d(a, b) - d(b, c)."""
    shortest = torch.stack([(distance[:, [b]] + distance[[b]]) for b in range(len(distance))]).amin(0)
    return (distance - shortest).max().item()
