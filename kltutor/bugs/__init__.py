"""The bug zoo: mistakes with a KL, each re-created in a few lines, measured exactly, and cured.

A bug is a pair of functions with one signature: `broken`, and `cured`, which goes through the package. Its
`measure` puts either to work in a world small enough to list and returns one number; `truth` is that number
from a sum over all outcomes. So the test that catches a bug is one comparison. `line` is the wrong line of
`broken`, and `curve` what one would see of it in a plot. Modules of this package hold the bugs of one subject
each, and are found by themselves. BUG-01 to BUG-08 are the checklist of chapter 7, in its order.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from kltutor.bugs.curves import Curve, Plot

Code = Callable[..., Any]  # what a bug is in: each has a signature of its own
Measure = Callable[[Code], float]
Returns = Literal["token", "sequence", "scalar"]

TOLERANCE = 1e-8  # distance from the truth, relative to it or to 1, that is rounding


def _nothing() -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Bug:
    """A mistake, what one sees of it, and the two pieces of code that differ by it.

    Attributes:
        id: such as "BUG-01".
        title: what is wrong, one sentence.
        symptom: what one sees, one sentence.
        why: how the wrong line makes the symptom, a few sentences.
        cure: what to do, one or two sentences.
        quantity: what `measure` returns, and its unit.
        broken: the mistake; `inspect.getsource` prints it.
        cured: the same without it.
        measure: from either to a number.
        truth: that number from the definition.
        line: the line of `broken` that is wrong, without its indent.
        finding: what the plot shows, in a few words.
        plot: what one would see of it.
        also: further numbers that explain the symptom, by name.
        thread: a public thread in which it or its like comes up, owner/repository#number; empty if unknown.
        inputs: where the code is a function that claims to be a KL, what its arguments are, in the words of
            `kltutor.check`; else empty.
        returns: what such a function returns one value for; else None.
    """

    id: str
    title: str
    symptom: str
    why: str
    cure: str
    quantity: str
    broken: Code
    cured: Code
    measure: Measure
    truth: Callable[[], float]
    line: str
    finding: str
    plot: Plot
    also: Callable[[], dict[str, float]] = field(default=_nothing)
    thread: str = ""
    inputs: tuple[str, ...] = ()
    returns: Returns | None = None

    @property
    def kind(self) -> Literal["KL function", "other code"]:
        """Return whether `kltutor.check` can judge the code."""
        return "KL function" if self.inputs else "other code"

    def demonstrate(self) -> dict[str, float]:
        """Return what the broken code gives, what the cured code gives, the truth, and what explains them.

        Example:
            >>> numbers = get("BUG-02").demonstrate()
            >>> [round(numbers[name], 4) for name in ("broken", "cured", "truth")]
            [-1.0227, 1.0227, 1.0227]
        """
        return {
            "broken": self.measure(self.broken),
            "cured": self.measure(self.cured),
            "truth": self.truth(),
            **self.also(),
        }

    def curve(self) -> Curve:
        """Return what one would see: the plot's quantity of the broken code and of the cured.

        Example:
            >>> curve = get("BUG-02").curve()
            >>> round(curve.x[-1], 4), round(curve.broken[-1], 4), round(curve.cured[-1], 4)
            (2.1482, -2.1482, 2.1482)
        """
        x, broken, cured = self.plot.points(), self.plot.at(self.broken), self.plot.at(self.cured)
        return Curve(self.finding, self.plot, tuple(x), tuple(broken), tuple(cured))

    def caught(self, code: Code) -> None:
        """Raise AssertionError with the symptom if the given code has this bug: the test that catches it.

        Args:
            code: any function with the signature of `broken`, meant to do what `cured` does.

        Example:
            >>> get("BUG-02").caught(lambda logp, ref_logp: logp - ref_logp)
        """
        value, truth = self.measure(code), self.truth()
        if not abs(value - truth) <= TOLERANCE * max(1.0, abs(truth)):  # so written, nan is caught too
            raise AssertionError(
                f"{self.id}: {self.symptom} {self.quantity}: {value:.6g}, but {truth:.6g} is expected."
            )


_registry: dict[str, Bug] = {}


def bug(
    id: str,
    *,
    title: str,
    symptom: str,
    why: str,
    cure: str,
    quantity: str,
    broken: Code,
    cured: Code,
    truth: Callable[[], float],
    line: str,
    finding: str,
    plot: Plot,
    also: Callable[[], dict[str, float]] = _nothing,
    thread: str = "",
    inputs: tuple[str, ...] = (),
    returns: Returns | None = None,
) -> Callable[[Measure], Measure]:
    """Register the decorated function as the measure of a bug; arguments as the attributes of `Bug`.

    Bugs that one test tells apart from the truth may share a measure: stack the decorators.

    Raises:
        ValueError: the id is taken or not of the form BUG-12; a text is empty or no sentence; the quantity
            or the finding is empty; broken is cured; the line does not stand in broken exactly once; the
            thread is not of the form owner/repository#12; or one of inputs and returns lacks the other.

    Example:
        >>> get("BUG-02").line
        'return ref_logp - logp'
        >>> @bug("BUG-02", title="Twice.", symptom="Two.", why="A sum.", cure="Once.", quantity="nats",
        ...      broken=min, cured=max, truth=float, line="", finding="Twice", plot=get("BUG-02").plot)
        ... def twice(code: Code) -> float:
        ...     return code(1.0, 2.0)
        Traceback (most recent call last):
        ValueError: id 'BUG-02' is taken; every bug has its own.
    """
    _load()
    if not re.fullmatch(r"BUG-\d{2}", id):
        raise ValueError(f"id is {id!r}; BUG- and two digits are expected.")
    if id in _registry:
        raise ValueError(f"id {id!r} is taken; every bug has its own.")
    for name, text in (("title", title), ("symptom", symptom), ("why", why), ("cure", cure)):
        if len(text) < 2 or not text.endswith("."):
            raise ValueError(f"{name} of {id} is {text!r}; a sentence that ends in a full stop is expected.")
    if not quantity.strip():
        raise ValueError(f"quantity of {id} is empty; what is measured, and its unit, is expected.")
    if not finding.strip():
        raise ValueError(f"finding of {id} is empty; what the plot shows is expected.")
    if broken is cured:
        raise ValueError(f"broken and cured of {id} are the same function; two that differ are expected.")
    found = [text.strip() for text in inspect.getsource(broken).splitlines()].count(line)
    if found != 1:
        raise ValueError(f"line of {id} is {line!r}, found {found} times in broken; once is expected.")
    if bool(inputs) != bool(returns):
        raise ValueError(f"inputs of {id} are {inputs} and returns is {returns!r}; both or none is expected.")
    if thread and not re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread):
        raise ValueError(f"thread of {id} is {thread!r}; owner/repository#number is expected.")

    def register(measure: Measure) -> Measure:
        _registry[id] = Bug(
            id,
            title=title,
            symptom=symptom,
            why=why,
            cure=cure,
            quantity=quantity,
            broken=broken,
            cured=cured,
            measure=measure,
            truth=truth,
            line=line,
            finding=finding,
            plot=plot,
            also=also,
            thread=thread,
            inputs=inputs,
            returns=returns,
        )
        return measure

    return register


def all_bugs() -> tuple[Bug, ...]:
    """Return every bug, in the order of their ids."""
    _load()
    return tuple(_registry[id] for id in sorted(_registry))


def get(id: str) -> Bug:
    """Return the bug of that id.

    Raises:
        ValueError: there is none.

    Example:
        >>> get("BUG-05").title
        'The reference is the policy itself.'
    """
    _load()
    if id not in _registry:
        raise ValueError(f"id is {id!r}, which no bug has; expected one of {', '.join(sorted(_registry))}.")
    return _registry[id]


@cache
def _load() -> None:
    """Import every module of this package, so that its bugs register themselves."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
