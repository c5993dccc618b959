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
    "kappa": "κ",
    "lambda": "λ",
    "mu": "μ",
    "pi": "π",
    "rho": "ρ",
    "sigma": "σ",
    "theta": "θ",
    "chi": "χ",
    "psi": "ψ",
    "Phi": "Φ",
    "nabla": "∇",
    "sum": "Σ",
    "infty": "∞",
    "sqrt": "√",
    "le": "≤",
    "ge": "≥",
    "ne": "≠",
    "ll": "≪",
    "gg": "≫",
    "approx": "≈",
    "propto": "∝",
    "sim": "~",
    "to": "→",
    "pm": "±",
    "cdot": "·",
    "times": "×",
    "in": "∈",
    "tfrac12": "½",
}
POWERS = str.maketrans("0123456789+-*", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻*")


def plain(text: str) -> str:
    r"""Return text with its LaTeX written in Unicode, to be read in a terminal.

    Example:
        >>> plain(r"$\mathrm{KL}(p \Vert q) \ge 0$, and $\tfrac{\mu^2}{2}$ if $\sigma_{1} = 1$.")
        'KL(p ‖ q) ≥ 0, and μ²/2 if σ1 = 1.'
    """
    return re.sub(r"\$(.*?)\$", lambda match: _unicode(match[1]), text)


def _unicode(math: str) -> str:
    """Write one formula without dollar signs in Unicode; unknown commands keep their name."""
    math = re.sub(r"\\(?:mathrm|operatorname|text|mathbb)\{([^{}]*)\}", r"\1", math)
    math = math.replace(r"\tfrac12", "½")
    math = re.sub(r"\^\{([-+\d]+)\}|\^([\d*])", lambda m: (m[1] or m[2]).translate(POWERS), math)
    math = re.sub(r"\\t?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", math)
    math = re.sub(r"\^\{([^{}]*)\}", r"^(\1)", math)
    math = re.sub(r"\\([A-Za-z]+)", lambda m: SYMBOLS.get(m[1], m[1]), math)
    math = re.sub(r"\\[,;! ]", " ", math)
    math = re.sub(r"[{}_\\]", "", math)
    return " ".join(math.split())
