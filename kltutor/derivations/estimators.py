"""Derivations of chapter 2: what k1, k2 and k3 are worth.

Throughout, w = ref/policy and k1 = -log w, k2 = k1²/2, k3 = w - 1 + k1. Each function builds one
`Derivation`; its keyword argument breaks an assumption.
"""

from collections.abc import Iterable

import sympy as sp

from kltutor.derivations.basics import KL, REVERSED_KL, log_tangent, outcomes
from kltutor.derivations.engine import Derivation

MEAN = r"\mathbb{E}_\pi"


def k3_is_nonnegative(*, flipped: bool = False) -> Derivation:
    """Derive k3 = w - 1 - log w ≥ 0, with equality only at w = 1.

    Break it: `flipped` takes the log-ratio with the wrong sign inside the exponential.
    """
    k1 = sp.Symbol("k_1", real=True)
    w = sp.Symbol("w", positive=True)
    derivation = Derivation("k3 is never negative", where={w: sp.exp(k1 if flipped else -k1)})
    derivation.start(w - 1 + k1, r"The definition; $k_1$ is the log-ratio of one sample.", name="k_3")
    derivation.equal(sp.exp(k1 if flipped else -k1) - 1 + k1, "Write both parts in the log-ratio.")
    return derivation.at_least(0, "Look for the minimum over all log-ratios.", minimum=(k1, 0))


def only_coef_one_is_nonnegative(*, coef: sp.Expr | int = 1) -> Derivation:
    """Derive that k1 + λ (w - 1) takes negative values for every λ but 1, and none for λ = 1.

    Break it: any other `coef` in the last chain has no minimum of 0 at w = 1.
    """
    coef_, opposite = sp.Symbol("lambda", positive=True), sp.Symbol("nu", nonnegative=True)
    u = sp.Symbol("u", real=True)
    tangent = log_tangent()
    (x,) = tangent.steps[0].expr.free_symbols

    derivation = Derivation("Only the coefficient one never goes negative")
    derivation.start(
        -sp.log(1 / coef_) + coef_ * (1 / coef_ - 1),
        r"For $\lambda > 0$, the value of $k_1 + \lambda (w - 1)$ at $w = 1/\lambda$.",
        name=r"\lambda > 0:\quad -\log w + \lambda (w - 1)",
    )
    derivation.equal(1 - coef_ + sp.log(coef_), "Multiply out.")
    derivation.at_most(
        0,
        r"Lemma: $\log x \le x - 1$ at $x = \lambda$, with equality only at $\lambda = 1$.",
        lemma=tangent,
        terms=[(1, {x: coef_})],
    )
    derivation.start(
        -sp.log(sp.E) - opposite * (sp.E - 1),
        r"For $\lambda = -\nu \le 0$, the value at $w = e$.",
        name=r"\lambda \le 0:\quad -\log w + \lambda (w - 1)",
    )
    derivation.at_most(-1, r"Both factors of $\nu (e - 1)$ are non-negative.")
    derivation.start(
        coef * (sp.exp(u) - 1) - u,
        rf"For $\lambda = {sp.latex(coef)}$, with $w = e^u$.",
        name=rf"\lambda = {sp.latex(coef)}:\quad -\log w + \lambda (w - 1)",
    )
    return derivation.at_least(0, "Look for the minimum over all $u$.", minimum=(u, 0))


def k3_is_unbiased(*, covers: bool = True) -> Derivation:
    """Derive E[k3] = KL(policy ‖ ref), summing over the three outcomes that the policy draws.

    Break it: unless the policy `covers` the reference, mass m lies where the policy never draws, and
    E[k3] = KL - m.
    """
    pi, ref, log_ratio = _three()
    w, where = _weights(pi, ref)
    kl = sp.Symbol("KL", real=True)
    derivation = Derivation("k3 is unbiased", where=where | {kl: _dot(pi, log_ratio)}, outcomes=3)
    derivation.start(
        sum(p * (v - 1 + d) for p, v, d in zip(pi, w, log_ratio, strict=True)),
        r"Three outcomes; $\delta_i$ is the log-ratio of outcome $i$, the value of $k_1$ there.",
        name=rf"{MEAN}[k_3]",
    )
    derivation.equal(sum(ref) - sum(pi) + kl, r"Multiply out: $\pi_i w_i = \pi_{\mathrm{ref},i}$.")
    return derivation.equal(kl, "Both distributions sum to one.", given=_normalised(pi, ref, covers))


def variance_of_k3(*, swapped: bool = False) -> Derivation:
    """Derive Var k3 = Var k1 + χ²(ref ‖ policy) - 2 J, with J Jeffreys' divergence.

    Break it: `swapped` takes χ²(policy ‖ ref), the other direction.
    """
    pi, ref, log_ratio = _three()
    w, where = _weights(pi, ref)
    kl, var_k1, chi2, jeffreys = sp.symbols("KL VarK1 chi2 J", real=True)
    below = ref if swapped else pi
    where |= {
        kl: _dot(pi, log_ratio),
        var_k1: _dot(pi, [d**2 for d in log_ratio]) - kl**2,
        chi2: sum((q - p) ** 2 / b for p, q, b in zip(pi, ref, below, strict=True)),
        jeffreys: sum((p - q) * d for p, q, d in zip(pi, ref, log_ratio, strict=True)),
    }
    given = _normalised(pi, ref, True)
    derivation = Derivation("The variance of k3", where=where, outcomes=3)
    derivation.start(
        _dot(pi, [(v - 1 + d) ** 2 for v, d in zip(w, log_ratio, strict=True)])
        - _dot(pi, [v - 1 + d for v, d in zip(w, log_ratio, strict=True)]) ** 2,
        r"Mean of the square minus square of the mean; $\delta_i$ is the log-ratio of outcome $i$.",
        name=r"\mathrm{Var}[k_3]",
    )
    derivation.equal(
        var_k1
        + _dot(pi, [(v - 1) ** 2 for v in w])
        + 2 * _dot(pi, [(v - 1) * d for v, d in zip(w, log_ratio, strict=True)]),
        r"$\mathbb{E}_\pi[w - 1] = 0$, because both distributions sum to one.",
        given=given,
    )
    return derivation.equal(
        var_k1 + chi2 - 2 * jeffreys, r"$\pi_i (w_i - 1) = \pi_{\mathrm{ref},i} - \pi_i$ in both sums."
    )


def covariance_with_control_variate(*, covers: bool = True) -> Derivation:
    """Derive Cov(k1, w - 1) = -J, and from it the coefficient λ* = J/χ²(ref ‖ policy) of least variance.

    Break it: unless the policy `covers` the reference, E[w - 1] is not 0 and the covariance another.
    """
    pi, ref, log_ratio = _three()
    w, where = _weights(pi, ref)
    kl, var_k1, jeffreys, coef = sp.symbols("KL VarK1 J lambda", real=True)
    chi2 = sp.Symbol("chi2", positive=True)
    where |= {
        kl: _dot(pi, log_ratio),
        var_k1: _dot(pi, [d**2 for d in log_ratio]) - kl**2,
        jeffreys: sum((p - q) * d for p, q, d in zip(pi, ref, log_ratio, strict=True)),
    }
    given = _normalised(pi, ref, covers)
    family = [d + coef * (v - 1) for v, d in zip(w, log_ratio, strict=True)]

    derivation = Derivation("The best coefficient of the control variate", where=where, outcomes=3)
    derivation.start(
        _dot(pi, [d * (v - 1) for v, d in zip(w, log_ratio, strict=True)])
        - kl * _dot(pi, [v - 1 for v in w]),
        r"Mean of the product minus product of the means; $\delta_i$ is the log-ratio of outcome $i$.",
        name=r"\mathrm{Cov}(k_1, w - 1)",
    )
    derivation.equal(-jeffreys, r"$\mathbb{E}_\pi[w - 1] = 0$ removes the second part.", given=given)
    derivation.start(
        _dot(pi, [k**2 for k in family]) - _dot(pi, family) ** 2,
        "The variance of the whole family, a parabola in the coefficient.",
        name=r"\mathrm{Var}[k_1 + \lambda (w - 1)]",
    )
    spread = sum((q - p) ** 2 / p for p, q in zip(pi, ref, strict=True))
    derivation.equal(
        var_k1 - 2 * coef * jeffreys + coef**2 * chi2,
        r"The covariance is $-J$, and $\mathrm{Var}[w]$ is $\chi^2(\pi_{\mathrm{ref}} \,\|\, \pi)$, "
        r"positive unless $\pi = \pi_{\mathrm{ref}}$.",
        given=given | {chi2: spread},
    )
    derivation.equal(
        var_k1 - jeffreys**2 / chi2 + chi2 * (coef - jeffreys / chi2) ** 2, "Complete the square."
    )
    return derivation.at_least(
        var_k1 - jeffreys**2 / chi2,
        r"A square is never negative; it is $0$ only at $\lambda^* = J/\chi^2$.",
    )


def taylor_orders(*, bias_order: int = 3) -> Derivation:
    """Derive both KLs and E[k2] to fourth order for a policy tilted by e^{ε f}, in cumulants of f under ref.

    The bias of k2 starts at κ_n ε^n/n! with n = 3. Break it: claim that it starts at another `bias_order`.
    """
    eps = sp.Symbol("epsilon", real=True)
    psi = sp.Function("psi")(eps)
    pi, ref, f = outcomes("pi"), outcomes("ref"), sp.symbols("f_1:4", real=True)
    kappa = dict(enumerate(sp.symbols("kappa_1:5", real=True), 1))
    log_ratio = [eps * g - psi for g in f]
    norm = _dot(ref, [sp.exp(eps * g) for g in f])
    tilt = {p: q * sp.exp(eps * g - psi) for p, q, g in zip(pi, ref, f, strict=True)}
    tilt |= {psi: sp.log(norm)}
    cumulants = {psi: sum(k * eps**n / sp.factorial(n) for n, k in kappa.items()) + sp.O(eps**5)}
    kl, spread = eps * psi.diff(eps) - psi, eps**2 * psi.diff(eps, 2)

    derivation = Derivation("How far k2 is from KL near the reference", outcomes=3)
    derivation.start(
        _dot(pi, log_ratio),
        r"The definition: the tilt by $\epsilon f$ has log-ratio $\epsilon f - \psi(\epsilon)$.",
        name=KL,
    )
    derivation.equal(kl, r"$\psi'$ is the mean of $f$ under the tilted policy.", given=tilt)
    derivation.equal(
        kappa[2] * eps**2 / 2 + kappa[3] * eps**3 / 3 + kappa[4] * eps**4 / 8 + sp.O(eps**5),
        r"Taylor: the cumulants $\kappa_n$ of $f$ are the derivatives of $\psi$ at $0$.",
        given=cumulants,
    )
    derivation.start(-_dot(ref, log_ratio), "The other direction.", name=REVERSED_KL)
    derivation.equal(
        psi - eps * kappa[1],
        r"The reference sums to one, and $\kappa_1$ is the mean of $f$ under it.",
        given={ref[2]: 1 - ref[0] - ref[1], kappa[1]: _dot(ref, f)},
    )
    derivation.equal(
        kappa[2] * eps**2 / 2 + kappa[3] * eps**3 / 6 + kappa[4] * eps**4 / 24 + sp.O(eps**5),
        "Taylor again.",
        given=cumulants,
    )
    derivation.start(
        _dot(pi, [d**2 / 2 for d in log_ratio]) - _dot(pi, log_ratio),
        "The bias of k2.",
        name=rf"{MEAN}[k_2] - {KL}",
    )
    derivation.equal(
        (spread + kl**2) / 2 - kl,
        r"$\psi''$ is the variance of $f$ under the tilted policy.",
        given=tilt,
    )
    derivation.equal(
        kappa[3] * eps**3 / 6 + (kappa[4] + kappa[2] ** 2) * eps**4 / 8 + sp.O(eps**5),
        "The second order cancels.",
        given=cumulants,
    )
    return derivation.equal(
        kappa[bias_order] * eps**bias_order / sp.factorial(bias_order) + sp.O(eps ** (bias_order + 1)),
        "What is left leads, so the sign of the bias is that of the third cumulant.",
    )


def _three() -> tuple[tuple[sp.Symbol, ...], tuple[sp.Symbol, ...], tuple[sp.Symbol, ...]]:
    """Return policy and reference probabilities of three outcomes, and free symbols for their log-ratios."""
    return outcomes("pi"), outcomes("ref"), tuple(sp.symbols("delta_1:4", real=True))


def _weights(
    pi: Iterable[sp.Symbol], ref: Iterable[sp.Symbol]
) -> tuple[tuple[sp.Symbol, ...], dict[sp.Symbol, sp.Expr]]:
    """Return symbols for w = ref/policy of each outcome, and what they stand for."""
    w = outcomes("w")
    return w, {v: q / p for v, p, q in zip(w, pi, ref, strict=True)}


def _dot(weights: Iterable[sp.Expr], values: Iterable[sp.Expr]) -> sp.Expr:
    return sum(a * b for a, b in zip(weights, values, strict=True))


def _normalised(
    pi: tuple[sp.Symbol, ...], ref: tuple[sp.Symbol, ...], covers: bool
) -> dict[sp.Symbol, sp.Expr]:
    """Return that the policy sums to one, and the reference too up to the mass m that the policy misses."""
    missed = sp.S.Zero if covers else sp.Symbol("m", nonnegative=True)
    return {pi[2]: 1 - pi[0] - pi[1], ref[2]: 1 - missed - ref[0] - ref[1]}
