"""Claims of section 1.1: the sign of KL, its symmetry, convexity, chain rule and data processing."""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact, tasks
from kltutor.claims import claim
from kltutor.claims.witnesses import POLICY, REF, agree, differ, ensure, logp, num, proof, simplex
from kltutor.divergences import gaussian_kl, kl
from kltutor.estimators import full_vocab_kl, k1
from kltutor.tasks import TabularPolicy


@claim(
    "KL-101",
    section="1.1",
    says=r"$\mathrm{KL}(p \Vert q) \ge -\log q(\mathrm{supp}\, p) \ge 0$, and it is zero only if $p = q$.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:H01", "m:I03"),
)
def kl_is_nonnegative() -> str:
    """Jensen's step needs E_p[q/p], which is q(supp p) and less than 1 where p has gaps."""
    proven = proof("gibbs_inequality", normalised=False)
    grid = simplex(3, 12)
    every = kl(grid[:, None].expand(-1, len(grid), -1), grid[None].expand(len(grid), -1, -1))
    unlike = ~torch.eye(len(grid), dtype=torch.bool)
    agree(every.diagonal(), torch.zeros(len(grid)), "KL(p ‖ p)", 1e-15)
    ensure(bool((every[unlike] > 1e-4).all()), "KL of two different distributions is not positive")

    p, q = logp(0.6, 0.4, 0.0), logp(0.3, 0.3, 0.4)
    drawn = p > -torch.inf
    mean_ratio = (p.exp() * (q - p.masked_fill(~drawn, 0)).exp())[drawn].sum()
    agree(mean_ratio, q.exp()[drawn].sum(), "E_p[q/p] and q(supp p)")
    differ(mean_ratio, 1.0, "E_p[q/p] and 1", 0.3)
    divergence, bound = kl(p, q), -mean_ratio.log()
    agree(divergence, 0.6 * math.log(2) + 0.4 * math.log(4 / 3), "KL with a gap in the support")
    ensure(bool(divergence > bound > 0), "KL does not exceed -log q(supp p)")
    pairs = int(unlike.sum())
    return (
        f"{proven}; least KL of {pairs} unlike pairs {num(every[unlike].min())}; "
        f"with q(supp p) = {num(mean_ratio)}: KL {num(divergence)} ≥ {num(bound)}."
    )


@claim(
    "KL-102",
    section="1.1",
    says=r"$\mathrm{KL}(p \Vert q)$ and $\mathrm{KL}(q \Vert p)$ differ in general; they are equal for "
    r"Bernoulli$(a)$ and Bernoulli$(1-a)$, and for two Gaussians of equal variance.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I04",),
)
def kl_is_not_symmetric() -> str:
    """Both directions, for an unlike pair and for the pairs that a symmetry makes equal."""
    forth, back = kl(POLICY, REF), kl(REF, POLICY)
    differ(forth, back, "KL both ways", 0.1)
    for a in (0.1, 0.3, 0.45):
        coin, mirror = logp(a, 1 - a), logp(1 - a, a)
        agree(kl(coin, mirror), kl(mirror, coin), f"Bernoulli({a}) and its mirror image")
        differ(kl(coin, mirror), 0, f"Bernoulli({a}) and its mirror image")
    mean, sd, other_mean, other_sd = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    agree(gaussian_kl(mean, sd, other_mean, sd), gaussian_kl(other_mean, sd, mean, sd), "equal variance")
    one, two = gaussian_kl(mean, sd, mean, other_sd), gaussian_kl(mean, other_sd, mean, sd)
    agree(one, math.log(3) + 1 / 18 - 1 / 2, "N(0, 1) against N(0, 9)")
    differ(one, two, "unequal variance", 0.1)
    same = gaussian_kl(mean, sd, other_mean, sd)
    return (
        f"Three outcomes: {num(forth)} and {num(back)}; N(0, 1) and N(2, 1): {num(same)} both ways; "
        f"N(0, 1) and N(0, 9): {num(one)} and {num(two)}."
    )


@claim(
    "KL-103",
    section="1.1",
    says=r"KL violates the triangle inequality: $\mathrm{KL}(a \Vert c)$ can exceed "
    r"$\mathrm{KL}(a \Vert b) + \mathrm{KL}(b \Vert c)$.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H02",),
)
def kl_has_no_triangle_inequality() -> str:
    """Three coins, each step short and the whole way long."""
    a, b, c = (logp(x, 1 - x) for x in (0.5, 0.25, 0.1))
    direct, detour = kl(a, c), kl(a, b) + kl(b, c)
    ensure(bool(direct > detour + 0.2), f"direct {direct} does not exceed the detour {detour}")
    differ(kl(c, a), direct, "the other direction", 0.1)
    return f"Bernoulli .5, .25, .1: {num(direct)} > {num(detour)}."


@claim(
    "KL-104",
    section="1.1",
    says=r"KL is jointly convex: $\mathrm{KL}$ of two mixtures with the same weights is at most the mixture "
    r"of the two $\mathrm{KL}$.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:H03",),
)
def kl_is_jointly_convex() -> str:
    """The Hessian of p log(p/q) has determinant zero and positive trace, so no negative eigenvalue."""
    import sympy as sp

    p, q = sp.symbols("p q", positive=True)
    hessian = sp.hessian(p * sp.log(p / q), (p, q))
    ensure(sp.simplify(hessian.det()) == 0, "the determinant is not zero")
    ensure(bool(sp.simplify(hessian.trace()).is_positive), "the trace is not positive")
    ensure(bool(sp.hessian(p * (p - q) ** 2, (p, q)).det() != 0), "any Hessian would have passed")
    weight = 0.25
    mixed = kl(_mix(POLICY, REF, weight), _mix(REF, POLICY.flip(0), weight))
    bound = weight * kl(POLICY, REF) + (1 - weight) * kl(REF, POLICY.flip(0))
    agree(kl(_mix(POLICY, POLICY, weight), REF), kl(POLICY, REF), "a mixture of one distribution with itself")
    ensure(bool(mixed < bound - 0.1), f"KL of the mixtures {mixed} is not below {bound}")
    return (
        f"Hessian of p log(p/q): determinant 0, trace {str(hessian.trace()).replace('**', '^')} > 0; "
        f"example: {num(mixed)} ≤ {num(bound)}."
    )


@claim(
    "KL-105",
    section="1.1",
    says=r"The chain rule: the sequence KL is the expected sum, over prefixes drawn from the policy, of the "
    r"token KLs, and also the expected sum of the sampled log-ratios.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:H04",),
)
def sequence_kl_is_a_sum_of_token_kls() -> str:
    """Three sums over every completion of a task, and the one with the wrong prefixes."""
    proven = proof("chain_rule", normalised=False)
    task, policy, ref = _lab()
    truth = exact.kl(policy, ref, task)
    logits, ref_logits = exact.prefix_logps(policy, task), exact.prefix_logps(ref, task)
    prompts = torch.tensor(task.prompt_probs, dtype=torch.float64)
    per_prefix = full_vocab_kl(logits, ref_logits)
    tokens = prompts @ (exact.prefix_reach(policy, task) * per_prefix).sum(-1)
    ratios = k1(exact.token_logps(policy, task), exact.token_logps(ref, task)).sum(-1)
    sampled = exact.expectation(ratios, exact.seq_logp(policy, task), task)
    agree(tokens, truth, "sum of token KLs")
    agree(sampled, truth, "sum of sampled log-ratios")
    elsewhere = prompts @ (exact.prefix_reach(ref, task) * per_prefix).sum(-1)
    differ(elsewhere, truth, "prefixes drawn from the reference", 0.05)
    return (
        f"{proven}; {task.size} completions: sequence KL {num(truth)}, token KLs {num(tokens)}, "
        f"log-ratios {num(sampled)}; with prefixes drawn from the reference {num(elsewhere)}."
    )


@claim(
    "KL-106",
    section="1.1",
    says=r"Processing both distributions by the same map never raises $\mathrm{KL}(p \Vert q)$ and, if that "
    r"is finite, leaves it as it is if and only if $p/q$ is constant on each set of outcomes that the map "
    "merges.",
    verdict="folklore is wrong",
    folklore="KL survives a map of the outcomes only if the map is invertible.",
    kind="exact",
    source_rows=("m:W14", "f:I17"),
)
def merging_outcomes_never_raises_kl() -> str:
    """Every map of four outcomes to fewer, and one that merges outcomes of equal ratio."""
    p, q = logp(0.4, 0.3, 0.2, 0.1), logp(0.1, 0.2, 0.3, 0.4)
    whole = kl(p, q)
    maps = [m for m in itertools.product(range(4), repeat=4) if len(set(m)) < 4]
    merged = torch.stack([kl(_merge(p, m), _merge(q, m)) for m in maps])
    ensure(bool((merged < whole - 1e-3).all()), "merging unequal ratios did not lower KL")

    p, q, merge = logp(0.2, 0.1, 0.7), logp(0.4, 0.2, 0.4), (0, 0, 1)
    kept, after = kl(p, q), kl(_merge(p, merge), _merge(q, merge))
    agree(kept, 0.3 * math.log(1 / 2) + 0.7 * math.log(7 / 4), "KL before merging")
    agree(after, kept, "merging two outcomes of equal ratio", 1e-12)
    differ(kl(_merge(p, (0, 1, 1)), _merge(q, (0, 1, 1))), kept, "merging two of unequal ratio", 0.05)
    p, q, unlike = logp(0.3, 0.3, 0.4), logp(0.0, 0.25, 0.75), (0, 1, 1)
    ensure(kl(p, q).item() == math.inf, "KL with mass that q lacks is finite")
    ensure(kl(_merge(p, unlike), _merge(q, unlike)).item() == math.inf, "merging unequal ratios lowered inf")
    return (
        f"{len(maps)} maps that merge unequal ratios: KL {num(whole)} falls to at most {num(merged.max())}; "
        f"a 2-to-1 map that merges equal ratios keeps {num(kept, 6)}; inf can survive unequal ones."
    )


@claim(
    "KL-107",
    section="1.1",
    says=r"The full-vocabulary KL has the mean of the sampled log-ratio and, given the prefix, no variance; "
    r"its sum over a sequence can still vary more than the sum of the sampled log-ratios.",
    verdict="folklore is wrong",
    folklore="Summing the full-vocabulary KL over a sequence never varies more than summing log-ratios.",
    kind="exact",
    sources=("amini2025rb",),
    source_rows=("m:R7", "m:H04", "f:I01"),
)
def full_vocabulary_sum_can_vary_more() -> str:
    """Two tokens: the log-ratio of the first cancels what the second will cost, so their sum is constant."""
    cost = torch.tensor(
        [2.5, 0.5], dtype=torch.float64
    )  # log-ratio of token 2, which the policy never varies
    first = logp(0.5, 0.5)
    ref_first = torch.tensor([2.0, 0.0], dtype=torch.float64).log_softmax(-1)
    second = logp(1.0, 0.0).expand(2, 2)
    ref_second = torch.stack([-cost, torch.log1p(-torch.exp(-cost))], -1)
    sampled = k1(first, ref_first) + cost
    full = full_vocab_kl(first, ref_first) + full_vocab_kl(second, ref_second)
    agree(first.exp() @ sampled, first.exp() @ full, "the two means")
    var_sampled, var_full = _variance(first, sampled), _variance(first, full)
    agree(var_sampled, 0, "variance of the sampled sum")
    agree(var_full, 1, "variance of the full-vocabulary sum")

    task, policy, ref = _lab()
    logits, ref_logits = exact.prefix_logps(policy, task), exact.prefix_logps(ref, task)
    log_ratio = logits - ref_logits
    agree((logits.exp() * log_ratio).sum(-1), full_vocab_kl(logits, ref_logits), "means at every prefix")
    given_prefix = _variance(logits, log_ratio)
    ensure(bool((given_prefix > 1e-3).all()), "a sampled log-ratio has no variance given its prefix")
    return (
        f"Two tokens that cancel: variance {num(var_full)} full-vocabulary, {abs(var_sampled.item()):.1f} "
        f"sampled; given the prefix 0 against {num(given_prefix.min(), 3)} to {num(given_prefix.max(), 3)} "
        f"at {given_prefix.numel()} prefixes."
    )


def _lab() -> tuple[tasks.Task, TabularPolicy, TabularPolicy]:
    """Return the small task with two unlike policies."""
    task = tasks.small()
    policy, ref = (TabularPolicy.random(task, torch.Generator().manual_seed(seed), 1.5) for seed in (4, 5))
    return task, policy.requires_grad_(False), ref.requires_grad_(False)


def _mix(p: Float[Tensor, " o"], q: Float[Tensor, " o"], weight: float) -> Float[Tensor, " o"]:
    return torch.logaddexp(p + math.log(weight), q + math.log1p(-weight))


def _merge(p: Float[Tensor, " o"], target: tuple[int, ...]) -> Float[Tensor, " merged"]:
    """Return the distribution of target[y] for y ~ p."""
    merged = torch.zeros(max(target) + 1, dtype=p.dtype)
    return merged.index_add(0, torch.tensor(target), p.exp()).log()


def _variance(p: Float[Tensor, "*batch o"], values: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch"]:
    mean = (p.exp() * values).sum(-1, keepdim=True)
    return (p.exp() * (values - mean).square()).sum(-1)
