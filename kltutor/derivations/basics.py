"""Derivations of chapter 1: the sign of KL, its chain rule, its local form and Pinsker's inequality.

Each function builds one `Derivation`. Its keyword argument breaks an assumption; the derivation then stops
with a `DerivationError` that shows what the assumption had removed.
"""

import sympy as sp

from kltutor.derivations.engine import Derivation

KL = r"\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})"
REVERSED_KL = r"\mathrm{KL}(\pi_{\mathrm{ref}} \,\|\, \pi)"


def outcomes(stem: str, count: int = 3) -> tuple[sp.Symbol, ...]:
    """Return positive symbols stem_1, stem_2, ..., one for each outcome."""
    return tuple(sp.symbols(f"{stem}_1:{count + 1}", positive=True))


def log_tangent(*, slope: int = 1) -> Derivation:
    """Derive x - 1 - log x ≥ 0 for x > 0: the logarithm lies below its tangent at 1.

    Break it: another `slope` gives a line that crosses the logarithm.
    """
    x = sp.Symbol("x", positive=True)
    derivation = Derivation("The logarithm lies below its tangent")
    derivation.start(slope * (x - 1) - sp.log(x), r"The line through $(1, 0)$ minus the logarithm.")
    return derivation.at_least(0, r"Look for the minimum over $x > 0$.", minimum=(x, 1))


def gibbs_inequality(*, normalised: bool = True) -> Derivation:
    """Derive KL(policy ‖ ref) ≥ m ≥ 0, with m the reference mass on outcomes that the policy never draws.

    Three outcomes carry the policy. Break it: without `normalised`, nothing makes them sum to one.
    """
    pi, ref = outcomes("pi"), outcomes("ref")
    missed = sp.Symbol("m", nonnegative=True)
    tangent = log_tangent()
    (x,) = tangent.steps[0].expr.free_symbols
    sums_to_one = {pi[2]: 1 - pi[0] - pi[1]} if normalised else {}

    derivation = Derivation("KL is never negative", outcomes=3)
    derivation.start(
        sum(p * sp.log(p / q) for p, q in zip(pi, ref, strict=True)),
        "The definition, summed over the outcomes that the policy can draw.",
        name=KL,
    )
    derivation.at_least(
        sum(p - q for p, q in zip(pi, ref, strict=True)),
        r"Lemma: $\log x \le x - 1$, with equality only at $x = 1$. Take $x = \pi_{\mathrm{ref},i}/\pi_i$ "
        r"and weight by $\pi_i$: $\pi_i \log(\pi_i/\pi_{\mathrm{ref},i}) \ge \pi_i - \pi_{\mathrm{ref},i}$.",
        lemma=tangent,
        terms=[(p, {x: q / p}) for p, q in zip(pi, ref, strict=True)],
    )
    derivation.equal(1 - sum(ref), "The policy sums to one.", given=sums_to_one)
    derivation.equal(
        missed,
        "The reference sums to one as well; it puts $m$ on outcomes that the policy never draws.",
        given={ref[2]: 1 - missed - ref[0] - ref[1]},
    )
    return derivation.at_least(0, "A mass is never negative.")


def chain_rule(*, normalised: bool = True) -> Derivation:
    """Derive that KL of two tokens is KL of the first plus the expected KL of the second.

    The first token is a or b, the second u or v; pi_u|a is the probability of u after a.
    Break it: without `normalised` the conditionals need not sum to one.
    """
    firsts, seconds = ("a", "b"), ("u", "v")
    pi, ref = ({a: sp.Symbol(f"{stem}_{a}", positive=True) for a in firsts} for stem in ("pi", "ref"))
    pi_then, ref_then = (
        {(a, u): sp.Symbol(f"{stem}_{u}|{a}", positive=True) for a in firsts for u in seconds}
        for stem in ("pi", "ref")
    )
    sums_to_one = {pi_then[a, "v"]: 1 - pi_then[a, "u"] for a in firsts} if normalised else {}

    joint, split = sp.S.Zero, sp.S.Zero
    for a, u in pi_then:
        p, q = pi[a] * pi_then[a, u], ref[a] * ref_then[a, u]
        joint += p * sp.log(p / q)
        split += p * (sp.log(pi[a] / ref[a]) + sp.log(pi_then[a, u] / ref_then[a, u]))
    after = {a: sp.Symbol(f"KL_{a}", real=True) for a in firsts}
    where = {
        after[a]: sum(pi_then[a, u] * sp.log(pi_then[a, u] / ref_then[a, u]) for u in seconds) for a in firsts
    }

    derivation = Derivation("The chain rule for two tokens", where=where)
    derivation.start(joint, "The definition over the four pairs of tokens.", name=KL)
    derivation.equal(split, "The logarithm of a product is the sum of the token log-ratios.")
    return derivation.equal(
        sum(pi[a] * sp.log(pi[a] / ref[a]) + pi[a] * after[a] for a in firsts),
        "The log-ratio of the first token does not depend on the second, whose probabilities sum to one.",
        given=sums_to_one,
    )


def fisher_hessians(*, at_reference: bool = True) -> Derivation:
    """Derive that KL both ways and E[k2] have the same second derivatives where policy and ref meet.

    Three outcomes, one free logit each; the Hessian is diag(π) - ππᵀ. Break it: without `at_reference` the
    derivatives are taken where the two differ.
    """
    pi, gaps = outcomes("pi"), sp.symbols("delta_1:4", real=True)
    logits = sp.symbols("z_1:4", real=True)
    ref = [p * sp.exp(-gap) for p, gap in zip(pi, gaps, strict=True)]
    log_norm = sp.log(sum(map(sp.exp, logits)))
    policy = [sp.exp(z - log_norm) for z in logits]
    log_ratio = [z - log_norm - sp.log(q) for z, q in zip(logits, ref, strict=True)]
    here = {pi[2]: 1 - pi[0] - pi[1]}
    if at_reference:
        here |= dict.fromkeys(gaps, 0)

    def curvature(value: sp.Expr) -> sp.Expr:
        hessian = sp.hessian(value, logits)
        return hessian.subs({z: sp.log(p) for z, p in zip(logits, pi, strict=True)}).as_immutable()

    derivation = Derivation("One local geometry for both directions and for k2", outcomes=3)
    derivation.start(
        curvature(sum(p * d for p, d in zip(policy, log_ratio, strict=True))),
        r"Second derivatives in the logits $z$ of $\pi$. The reference is "
        r"$\pi_{\mathrm{ref},i} = \pi_i e^{-\delta_i}$; the two meet where every $\delta_i = 0$.",
        name=rf"\nabla_z^2\, {KL}",
        shown=False,
    )
    derivation.equal(
        curvature(sum(p * d**2 / 2 for p, d in zip(policy, log_ratio, strict=True))),
        "The mean of k2, with the sampler differentiated as well.",
        given=here,
        name=r"\nabla_z^2\, \mathbb{E}_\pi[k_2]",
    )
    derivation.equal(
        curvature(-sum(q * d for q, d in zip(ref, log_ratio, strict=True))),
        "The other direction.",
        given=here,
        name=rf"\nabla_z^2\, {REVERSED_KL}",
    )
    return derivation.equal(
        sp.ImmutableMatrix(3, 3, lambda i, j: pi[i] * int(i == j) - pi[i] * pi[j]),
        r"All three are $\mathrm{diag}(\pi) - \pi\pi^\top$, the Fisher matrix of the softmax.",
        given=here,
    )


def pinsker_bernoulli(*, constant: int = 2) -> Derivation:
    """Derive KL ≥ 2 TV² for two outcomes with probabilities (x, 1 - x) and (y, 1 - y), where TV = |x - y|.

    Break it: 2 is the largest `constant` for which the argument, and the inequality, holds.
    """
    x, y = sp.symbols("x y", positive=True)
    derivation = Derivation("Pinsker's inequality for two outcomes")
    derivation.start(
        x * sp.log(x / y) + (1 - x) * sp.log((1 - x) / (1 - y)),
        r"The definition, for $\pi = (x, 1 - x)$ and $\pi_{\mathrm{ref}} = (y, 1 - y)$.",
        name=KL,
    )
    return derivation.at_least(
        constant * (x - y) ** 2,
        "Hold $x$ and look for the minimum over $y$.",
        minimum=(y, x),
        on={x: (0, 1), y: (0, 1)},
    )
