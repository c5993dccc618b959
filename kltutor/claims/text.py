"""Statements of claims, which hold LaTeX, as plain text for terminals, tooltips and cards."""

import re

SYMBOLS = {
    "Vert": "‖",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "Delta": "Δ",
    "epsilon": "ε",
    "varepsilon": "ε",
    "eta": "η",
    "kappa": "κ",
    "lambda": "λ",
    "mu": "μ",
    "pi": "π",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "theta": "θ",
    "chi": "χ",
    "psi": "ψ",
    "Phi": "Φ",
    "nabla": "∇",
    "sum": "Σ",
    "infty": "∞",
    "le": "≤",
    "ge": "≥",
    "ne": "≠",
    "ll": "≪",
    "gg": "≫",
    "approx": "≈",
    "propto": "∝",
    "succ": "≻",
    "sim": "~",
    "to": "→",
    "pm": "±",
    "cdot": "·",
    "times": "×",
    "in": "∈",
    "dots": "…",
}
POWERS = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")


def plain(text: str) -> str:
    r"""Return text with its LaTeX written in Unicode, to be read in a terminal.

    Example:
        >>> plain(r"$\mathrm{KL}(p \Vert q) \ge 0$, and $\frac{\mu^2}{2}$ if $\sigma_{1} = \sqrt{1 + x}$.")
        'KL(p ‖ q) ≥ 0, and μ²/2 if σ1 = √(1 + x).'
    """
    return re.sub(r"\$(.*?)\$", lambda match: _unicode(match[1]), text)


def _unicode(math: str) -> str:
    """Write one formula in Unicode, innermost braces first; a command that is not known keeps its name."""
    math = re.sub(r"\^(\d)", r"^{\1}", math.replace(r"\tfrac12", "½").replace("^*", "*"))
    math = re.sub(r"\\([A-Za-z]+)", lambda m: SYMBOLS.get(m[1], m[0]), math)
    before = ""
    while math != before:
        before = math
        math = re.sub(r"\\(?:mathrm|operatorname|text|mathbb)\{([^{}]*)\}", r"\1", math)
        math = re.sub(r"\^\{([-+\d]+)\}", lambda m: m[1].translate(POWERS), math)
        math = re.sub(r"\\t?frac\{([^{}]*)\}\{([^{}]*)\}", lambda m: f"{_terms(m[1])}/{_terms(m[2])}", math)
        math = re.sub(
            r"(\^|\\sqrt)\{([^{}]*)\}", lambda m: m[1] + (f"({m[2]})" if len(m[2]) > 1 else m[2]), math
        )
        math = re.sub(r"_\{([^{}]*)\}", r"\1", math)
    math = re.sub(r"\\[,;! ]", " ", math.replace(r"\sqrt", "√"))
    return " ".join(re.sub(r"[{}_\\]", "", math).split())


def _terms(math: str) -> str:
    """Put brackets around a sum, so that it stays one without its braces."""
    return f"({math})" if re.search(r".[-+ /]", math) else math
