"""Derivations whose every step sympy proves before it is accepted.

A `Derivation` is a list of chains. Each chain starts from an expression; each further step claims that the
next one is equal to it, or bounds it. A claim that does not follow raises `DerivationError`, which shows
what is left over. Nothing is sampled and nothing is evaluated in floating point.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import sympy as sp
from sympy.core.function import Application

from kltutor.derivations.algebra import ROUTES, Interval, residual, satisfies, sign, tidy
from kltutor.derivations.printing import BookPrinter, Substitution, latex, visible


class DerivationError(ValueError):
    """A step that sympy cannot prove; `residual` is what is left over."""

    def __init__(self, message: str, residual: sp.Expr) -> None:
        """Show the residual at the end of the message."""
        super().__init__(f"{message}\nResidual: {residual}")
        self.residual = residual


class Step(NamedTuple):
    """One proved line: the relation to the line before it, the expression, and why."""

    relation: str  # "" opens a chain; else "=", r"\ge" or r"\le"
    expr: sp.Expr
    reason: str
    name: str = ""  # LaTeX: what a chain is about, or what to print in place of a formula
    shown: bool = True  # False where the name alone is printed
    given: Substitution = MappingProxyType({})  # the assumptions that the step needs


class Derivation:
    """A derivation that is proved while it is written, and prints as mathematics with reasons.

    Args:
        title: what is derived, in words.
        where: abbreviations, each a symbol and what it stands for; put in at every step.
        outcomes: how many outcomes p_1, p_2, ... there are; terms alike in all of them print as one sum.

    Example:
        >>> import sympy as sp
        >>> x = sp.Symbol("x", real=True)
        >>> square = Derivation("A square is never negative")
        >>> square.start(x**2 + 2 * x + 1, "The example.")
        Derivation('A square is never negative', 1 step)
        >>> square.equal((x + 1) ** 2, "Complete the square.").at_least(0, "It is a square.")
        Derivation('A square is never negative', 3 steps)
        >>> square.equal(1, "A slip.")
        Traceback (most recent call last):
        ...
        kltutor.derivations.engine.DerivationError: 'A square is never negative', step 4: not equal. A slip.
        Residual: -1
    """

    def __init__(self, title: str, *, where: Substitution | None = None, outcomes: int = 0) -> None:
        """Start with no step; every abbreviation must satisfy what its symbol assumes."""
        self.title = title
        self.outcomes = outcomes
        self.where = dict(where or {})
        self.steps: list[Step] = []
        self._conditional = False
        for symbol, value in self.where.items():
            self._check_assumptions(symbol, sp.sympify(value))

    def start(self, expr: sp.Expr, reason: str, *, name: str = "", shown: bool = True) -> "Derivation":
        """Open a chain. It claims nothing but the definition that `reason` states."""
        self.steps.append(Step("", sp.sympify(expr), reason, name, shown))
        return self

    def equal(
        self,
        expr: sp.Expr | int,
        reason: str,
        *,
        given: Substitution | None = None,
        lemma: "Derivation | None" = None,
        terms: Sequence[tuple[sp.Expr | int, Substitution]] = (),
        name: str = "",
    ) -> "Derivation":
        """Add a step equal to the last one, under the assumptions `given` (symbol: value).

        With a `name`, that LaTeX is printed in place of the formula.

        With a lemma, the step must follow from adding up weight · lemma at the given values, one
        (weight, values) of `terms` at a time.
        """
        claim = sp.sympify(expr)
        if lemma is not None and lemma.relation != "=":
            raise self._error(f"the lemma {lemma.title!r} is no equality", claim)
        proved = self._instances(lemma, terms) if lemma is not None else sp.S.Zero
        before = self._last - proved if lemma else self._last
        if self.where.keys() & (given or {}).keys():
            raise self._error("an abbreviation cannot be given another value", claim)
        everything = self.where | dict(given or {})
        for known in ({}, self.where, everything):  # a step lists under "Given" only what it needs
            routes = ROUTES if known == everything else (sp.expand,)
            left = residual(self._put_in(before, known), self._put_in(claim, known), routes)
            if left == 0:
                used = {symbol: value for symbol, value in (given or {}).items() if symbol in known}
                self._conditional |= bool(used)
                self.steps.append(Step("=", claim, reason, name, not name, used))
                return self
            if known == everything:
                break
        raise self._error(f"not equal. {reason}", left)

    def at_least(
        self,
        expr: sp.Expr | int,
        reason: str,
        *,
        minimum: tuple[sp.Symbol, sp.Expr | int] | None = None,
        on: Mapping[sp.Symbol, Interval] | None = None,
        lemma: "Derivation | None" = None,
        terms: Sequence[tuple[sp.Expr | int, Substitution]] = (),
    ) -> "Derivation":
        """Add a lower bound of the last step, proved in one of three ways.

        By default the difference must be non-negative by its form and the assumptions on its symbols.
        `minimum=(x, x0)`: it is 0 at x0 and its derivative in x falls to 0 there and then rises.
        `lemma`, `terms`: it is a sum of non-negative weights times a proved lemma "... ≥ ...".
        `on={x: (a, b)}` restricts x to the open interval from a to b.
        """
        return self._bound(r"\ge", expr, reason, minimum, on, lemma, terms)

    def at_most(
        self,
        expr: sp.Expr | int,
        reason: str,
        *,
        minimum: tuple[sp.Symbol, sp.Expr | int] | None = None,
        on: Mapping[sp.Symbol, Interval] | None = None,
        lemma: "Derivation | None" = None,
        terms: Sequence[tuple[sp.Expr | int, Substitution]] = (),
    ) -> "Derivation":
        """Add an upper bound of the last step, proved like `at_least`."""
        return self._bound(r"\le", expr, reason, minimum, on, lemma, terms)

    @property
    def chain(self) -> list[Step]:
        """The steps of the last chain."""
        opening = max(i for i, step in enumerate(self.steps) if not step.relation)
        return self.steps[opening:]

    @property
    def relation(self) -> str:
        """How the first line of the last chain relates to its last: "=", or a bound if a step is one."""
        return next((step.relation for step in self.chain if step.relation in (r"\ge", r"\le")), "=")

    @property
    def results(self) -> dict[str, sp.Expr]:
        """The last line of every named chain, by its LaTeX name, with the abbreviations written out."""
        ends, name = {}, ""
        for step in self.steps:
            name = name if step.relation else step.name
            ends[name] = self._put_in(step.expr, self.where)
        return {name: expr for name, expr in ends.items() if name}

    def _bound(
        self,
        relation: str,
        expr: sp.Expr | int,
        reason: str,
        minimum: tuple[sp.Symbol, sp.Expr | int] | None,
        on: Mapping[sp.Symbol, Interval] | None,
        lemma: "Derivation | None",
        terms: Sequence[tuple[sp.Expr | int, Substitution]],
    ) -> "Derivation":
        claim = sp.sympify(expr)
        if {relation, self.relation} == {r"\ge", r"\le"}:
            raise self._error("a chain bounds from one side only", claim)
        raw = self._last - claim if relation == r"\ge" else claim - self._last
        gap = self._put_in(raw, self.where)
        if gap.has(sp.Order):
            raise self._error("a remainder has no sign", gap)
        if lemma is not None:
            if lemma.relation == r"\le" or not all(sp.sympify(weight).is_nonnegative for weight, _ in terms):
                raise self._error("a bound needs weights >= 0 and a lemma with >=", gap)
            left = residual(gap, self._put_in(self._instances(lemma, terms), self.where))
            if left != 0:
                raise self._error(f"does not follow from the lemma. {reason}", left)
        elif minimum is not None:
            reason += self._minimum(gap, minimum, on or {})
        elif not (sign(raw, on or {}) or sign(gap, on or {})):
            raise self._error(f"not known to be >= 0. {reason}", residual(gap, sp.S.Zero))
        if on:
            self._conditional = True
            ranges = (f"${latex(a)} < {latex(x)} < {latex(b)}$" for x, (a, b) in on.items())
            reason += f" For {', '.join(ranges)}."
        self.steps.append(Step(relation, claim, reason))
        return self

    def _minimum(
        self, gap: sp.Expr, minimum: tuple[sp.Symbol, sp.Expr | int], on: Mapping[sp.Symbol, Interval]
    ) -> str:
        """Prove gap >= 0: it is 0 at x0, and falls before x0 and rises after it; say how."""
        x, at = minimum[0], sp.sympify(minimum[1])
        if not all(isinstance(part, sp.exp | sp.log) for part in gap.atoms(Application)):
            raise self._error("the minimum route differentiates exp and log only", gap)
        if x.assumptions0 not in (sp.Dummy(real=True).assumptions0, sp.Dummy(positive=True).assumptions0):
            raise self._error(
                f"the minimum route needs {x} real or positive, so that it fills an interval", gap
            )
        if x in on:
            inside = all(sign(side, on) == ">" for side in (at - on[x][0], on[x][1] - at))
        else:
            inside = satisfies(at, x)
        if not inside:
            raise self._error(f"{x} = {at} is not known to lie where {x} may", at)
        slope = sp.diff(gap, x)
        for what, value in (("the difference", gap), (f"its derivative in {x}", slope)):
            left = residual(value.subs(x, at), sp.S.Zero)
            if left != 0:
                raise self._error(f"{what} is not 0 at {x} = {at}, so no minimum of 0 is there", left)
        where = rf"${latex(x)} = {latex(at)}$"
        factor, bend = sp.factor(sp.cancel(slope / (x - at))), sp.simplify(sp.diff(slope, x))
        if found := sign(factor, on):
            product = rf"{_factor(x - at)}\cdot {latex(tidy(factor, on))}"
            sides = f" The derivative of the difference is ${product}$:"
            return f"{sides} it falls before {where}, where it is 0, and rises after." + _only(found, where)
        if found := sign(bend, on):
            sides = rf" The difference has second derivative ${latex(bend)}$, never negative:"
            return f"{sides} it is convex, and value and slope are 0 at {where}." + _only(found, where)
        raise self._error(f"the derivative may change sign away from {x} = {at}", factor)

    def _instances(self, lemma: "Derivation", terms: Sequence[tuple[sp.Expr | int, Substitution]]) -> sp.Expr:
        """Add up weight · (first - last line of the lemma), each at admissible values."""
        if lemma._conditional or lemma.where:
            raise self._error(f"the lemma {lemma.title!r} holds under assumptions", sp.S.Zero)
        gap, total = lemma.chain[0].expr - lemma.chain[-1].expr, sp.S.Zero
        for weight, values in terms:
            for symbol, value in values.items():
                self._check_assumptions(symbol, sp.sympify(value))
            total += weight * gap.subs(dict(values), simultaneous=True)
        return total

    def _check_assumptions(self, symbol: sp.Symbol, value: sp.Expr) -> None:
        if not satisfies(value, symbol):
            raise self._error(f"{symbol} assumes more than its value is known to satisfy", value)

    def _put_in(self, expr: sp.Expr, known: Substitution) -> sp.Expr:
        """Write out abbreviations and assumptions, which may refer to one another."""
        for symbol, value in known.items():
            facts = symbol.assumptions0.items()
            if any(getattr(sp.sympify(value), f"is_{name}") is (not held) for name, held in facts):
                raise self._error(f"{symbol} = {value} contradicts what {symbol} assumes", sp.sympify(value))
        for _ in known:
            expr = expr.subs(known)
        return expr

    @property
    def _last(self) -> sp.Expr:
        return self.steps[-1].expr

    def _error(self, what: str, left: sp.Expr) -> DerivationError:
        return DerivationError(f"{self.title!r}, step {len(self.steps) + 1}: {what}", left)

    def __repr__(self) -> str:
        """Return the title and the number of steps."""
        return f"Derivation({self.title!r}, {len(self.steps)} step{'s' * (len(self.steps) != 1)})"

    def _repr_markdown_(self) -> str:
        """Return the title, an aligned block of numbered lines, and the reason of each."""
        printer = BookPrinter(self.outcomes)
        rows: list[str] = []
        left_side = max(visible(step.name) for step in self.steps if not step.relation)
        for number, step in enumerate(self.steps, 1):
            if rows and not step.relation:
                rows[-1] += "[6pt]"  # room before the next chain
            head = "" if step.relation else step.name
            relation = step.relation or ("=" if step.name and step.shown else "")
            hidden = [step.name if step.relation else ""]
            first, *rest = printer.lines(step.expr, left_side) if step.shown else hidden
            lines = [f"{head} &{relation} {first}", *(rf"&\quad {{}} {line}" for line in rest)]
            lines[-1] += f" &&({number})"
            rows += [rf"{line.strip()} \\" for line in lines]
        rows[-1] = rows[-1].removesuffix(r" \\")
        block = ["$$", r"\begin{aligned}", *rows, r"\end{aligned}", "$$"]
        reasons = [
            f"{number}. {step.reason}" + (f" Given {printer.equations(step.given)}." if step.given else "")
            for number, step in enumerate(self.steps, 1)
        ]
        title = f"**{self.title}.**"
        if self.where:
            title += f" Here {printer.equations(self.where)}."
        if any(r"\sum_i" in line for line in [title, *rows, *reasons]):
            title += f" Sums run over $i = 1, \\dots, {self.outcomes}$."
        return "\n".join([title, "", *block, "", *reasons, ""])


def _only(found: str, where: str) -> str:
    return f" Equality holds only at {where}." if found == ">" else ""


def _factor(expr: sp.Expr) -> str:
    return latex(expr) if expr.is_Atom else rf"\left({latex(expr)}\right)"
