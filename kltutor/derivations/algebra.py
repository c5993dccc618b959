"""What sympy must be told to decide: whether two expressions are equal, and whether one is ever negative."""

from collections.abc import Callable, Mapping

import sympy as sp

Interval = tuple[sp.Expr | int, sp.Expr | int]


def collect_logs(expr: sp.Expr) -> sp.Expr:
    """Split logarithms as far as the signs of their arguments allow, and factor what multiplies each."""
    split = sp.expand(sp.expand_log(expr))
    return sp.collect(split, sorted(split.atoms(sp.log), key=str), sp.factor)


ROUTES = (sp.expand, sp.factor, collect_logs, sp.simplify)


def residual(
    previous: sp.Expr, claim: sp.Expr, routes: tuple[Callable[[sp.Expr], sp.Expr], ...] = ROUTES
) -> sp.Expr:
    """Return 0 if a route proves the two equal, else the shortest form of previous - claim.

    Of two matrices that differ, it is the entry of the difference that is shortest to write.
    """
    difference = (previous - claim).doit()
    if isinstance(difference, sp.MatrixBase):
        left = [entry for entry in (residual(entry, sp.S.Zero, routes) for entry in difference) if entry != 0]
        return min(left, key=_length) if left else sp.S.Zero
    if difference.has(sp.Order):  # only expansion is sure to keep the remainder
        form, order = sp.expand(difference), claim.getO()
        return sp.S.Zero if isinstance(form, sp.Order) and order and order.contains(form) else form
    forms = []
    for route in routes:
        forms.append(route(difference))
        if forms[-1] == 0:
            return sp.S.Zero
    return min(forms, key=_length) if len(forms) > 1 else forms[0]


def _length(form: sp.Expr) -> tuple[bool, int]:
    """Measure how hard a form is to read; a power with a symbolic exponent inside a logarithm is worst."""
    powers = [power for log in form.atoms(sp.log) for power in log.atoms(sp.Pow)]
    return any(power.exp.free_symbols for power in powers), int(sp.count_ops(form))


def on_interval(expr: sp.Expr, on: Mapping[sp.Symbol, Interval]) -> sp.Expr:
    """Write every symbol s in (a, b) as (a + b t)/(1 + t), which meets each of its values once as t > 0."""
    odds = {s: sp.Dummy(positive=True) for s in on}
    return expr.subs({s: (a + b * odds[s]) / (1 + odds[s]) for s, (a, b) in on.items()})


def sign(expr: sp.Expr, on: Mapping[sp.Symbol, Interval]) -> str:
    """Return ">", ">=" or "" for an expression that is positive, non-negative or neither, provably."""
    moved = on_interval(expr.doit(), on)
    forms = [moved, sp.factor(moved), sp.expand(moved), sp.simplify(moved)]
    if any(form.is_positive for form in forms):
        return ">"
    return ">=" if any(form.is_nonnegative for form in forms) else ""


def tidy(expr: sp.Expr, on: Mapping[sp.Symbol, Interval]) -> sp.Expr:
    """Write every odd power of a negative factor as that of a positive one: -1/(y - 1) as 1/(1 - y)."""
    factors = []
    for base, power in (factor.as_base_exp() for factor in sp.Mul.make_args(expr)):
        flip = power.is_odd and sign(-base, on)
        factors += [-1, (-base) ** power] if flip else [base**power]
    return sp.Mul(*factors)


def satisfies(value: sp.Expr, symbol: sp.Symbol) -> bool:
    """Say whether every assumption on the symbol is known to hold for the value."""
    return all(getattr(value, f"is_{name}") is held for name, held in symbol.assumptions0.items())
