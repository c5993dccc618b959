"""The moments of k1, k2 and k3 for two normal distributions, derived by completing the square."""

import sympy as sp
from sympy.printing.latex import LatexPrinter

from kltutor.derivations.engine import Derivation
from kltutor.derivations.estimators import MEAN


class StandardMean(sp.Expr):  # type: ignore[misc]  # sympy carries no annotations
    """E[g(y)] for y ~ N(0, 1), unevaluated until `doit` integrates g times the density."""

    y = sp.Symbol("y", real=True)

    @staticmethod
    def bell(at: sp.Expr) -> sp.Expr:
        """Return the density of N(0, 1) relative to its peak."""
        return sp.exp(-(at**2) / 2)

    def doit(self, **hints: bool) -> sp.Expr:
        """Integrate over the real line."""
        integrand = sp.expand(sp.expand(self.args[0]) * self.bell(self.y))
        return sp.integrate(integrand, (self.y, -sp.oo, sp.oo)) / sp.sqrt(2 * sp.pi)

    def _latex(self, printer: LatexPrinter) -> str:
        return rf"\mathbb{{E}}\left[{printer.doprint(self.args[0])}\right]"


def gaussian_moments(*, shift: int = 1) -> Derivation:
    """Derive mean and variance of k1, k2 and k3 for policy N(0, 1) and reference N(μ, 1).

    The density times w is the density moved by μ, which turns every mean that contains w into the mean of
    a polynomial. Break it: `shift=-1` moves it the wrong way.
    """
    mu, y, bell = sp.Symbol("mu", real=True), StandardMean.y, StandardMean.bell
    k1 = mu**2 / 2 - mu * y
    w = sp.exp(-k1)
    shifted = k1.subs(y, y + mu)
    var = r"\mathrm{Var}"

    derivation = Derivation("Moments of the estimators for two normal distributions")
    derivation.start(
        bell(y) * w,
        r"The policy's density $\varphi$ relative to its peak, times $w$, with $k_1 = \mu^2/2 - \mu y$.",
        name=r"\varphi(y)\, w / \varphi(0)",
    )
    derivation.equal(bell(y - shift * mu), r"Complete the square: $\varphi(y)\, w = \varphi(y - \mu)$.")
    derivation.start(
        bell(y) * w**2, "The same with the square of $w$.", name=r"\varphi(y)\, w^2 / \varphi(0)"
    )
    derivation.equal(sp.exp(mu**2) * bell(y - 2 * mu), "Complete the square again.")

    derivation.start(StandardMean(k1), r"The definition, with $y \sim N(0, 1)$.", name=rf"{MEAN}[k_1]")
    derivation.equal(mu**2 / 2, r"$\mathbb{E}[y] = 0$. This is the KL.")
    derivation.start(StandardMean(k1**2) - mu**4 / 4, "Square of the mean taken off.", name=rf"{var}[k_1]")
    derivation.equal(mu**2, r"$\mathbb{E}[y^2] = 1$.")

    derivation.start(StandardMean(k1**2 / 2), "The definition.", name=rf"{MEAN}[k_2]")
    derivation.equal(mu**2 / 2 + mu**4 / 8, r"KL plus a bias of $\mu^4/8 = \mathrm{KL}^2/2$.")
    derivation.start(
        StandardMean(k1**4 / 4) - (mu**2 / 2 + mu**4 / 8) ** 2,
        "Square of the mean taken off.",
        name=rf"{var}[k_2]",
    )
    derivation.equal(mu**4 / 2 + mu**6 / 4, r"$\mathbb{E}[y^4] = 3$, odd moments are $0$.")

    derivation.start(StandardMean(w - 1 + k1), "The definition.", name=rf"{MEAN}[k_3]")
    derivation.equal(
        StandardMean(k1), r"By the first chain, $\mathbb{E}[w] = \int \varphi(y - \mu)\, dy = 1$."
    )
    derivation.equal(mu**2 / 2, "As for $k_1$.")
    derivation.start(
        StandardMean((w - 1 + k1) ** 2) - mu**4 / 4, "Square of the mean taken off.", name=rf"{var}[k_3]"
    )
    derivation.equal(
        sp.exp(mu**2) + 2 * StandardMean(shifted - 1) + StandardMean((k1 - 1) ** 2) - mu**4 / 4,
        r"Multiply out. By the two chains, $\mathbb{E}[w^2] = e^{\mu^2}$ and "
        r"$\mathbb{E}[w\, g(y)] = \mathbb{E}[g(y + \mu)]$.",
    )
    return derivation.equal(sp.exp(mu**2) - 1 - mu**2, "Only polynomials in $y$ are left.")
