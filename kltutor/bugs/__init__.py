"""The bug zoo: mistakes with a KL, each re-created in a few lines, measured exactly, and cured.

A bug is a pair of functions with one signature: `broken`, and `cured`, which goes through the package. Its
`measure` puts either to work in a world small enough to list and returns one number; `truth` is that number
from a sum over all outcomes. So the test that catches a bug is one comparison. Modules of this package hold
the bugs of one subject each, and are found by themselves. BUG-01 to BUG-08 are the checklist of chapter 7,
in its order.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

Code = Callable[..., Any]  # what a bug is in: each has a signature of its own
Measure = Callable[[Code], float]

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
        cure: what to do, one or two sentences.
        quantity: what `measure` returns, and its unit.
        broken: the mistake; `inspect.getsource` prints it.
        cured: the same without it.
        measure: from either to a number.
        truth: that number from the definition.
        also: further numbers that explain the symptom, by name.
        thread: a public thread in which it or its like comes up, owner/repository#number; empty if unknown.
    """

    id: str
    title: str
    symptom: str
    cure: str
    quantity: str
    broken: Code
    cured: Code
    measure: Measure
    truth: Callable[[], float]
    also: Callable[[], dict[str, float]] = field(default=_nothing)
    thread: str = ""

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
    cure: str,
    quantity: str,
    broken: Code,
    cured: Code,
    truth: Callable[[], float],
    also: Callable[[], dict[str, float]] = _nothing,
    thread: str = "",
) -> Callable[[Measure], Measure]:
    """Register the decorated function as the measure of a bug; arguments as the attributes of `Bug`.

    Bugs that one test tells apart from the truth may share a measure: stack the decorators.

    Raises:
        ValueError: the id is taken or not of the form BUG-12; a text is empty or no sentence; the quantity
            is empty; broken is cured; or the thread is not of the form owner/repository#12.

    Example:
        >>> @bug("BUG-02", title="Twice.", symptom="Two.", cure="Once.", quantity="nats", broken=min,
        ...      cured=max, truth=float)
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
    for name, text in (("title", title), ("symptom", symptom), ("cure", cure)):
        if len(text) < 2 or not text.endswith("."):
            raise ValueError(f"{name} of {id} is {text!r}; a sentence that ends in a full stop is expected.")
    if not quantity.strip():
        raise ValueError(f"quantity of {id} is empty; what is measured, and its unit, is expected.")
    if broken is cured:
        raise ValueError(f"broken and cured of {id} are the same function; two that differ are expected.")
    if thread and not re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread):
        raise ValueError(f"thread of {id} is {thread!r}; owner/repository#number is expected.")

    def register(measure: Measure) -> Measure:
        _registry[id] = Bug(id, title, symptom, cure, quantity, broken, cured, measure, truth, also, thread)
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
