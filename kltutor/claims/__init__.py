"""The ledger: every numbered claim of the book, and the function that checks it.

A module of this package holds the claims of one subject; each registers its checks with `claim` and is found
by itself. A check takes no argument, raises AssertionError when the claim is false, and returns the numbers
it measured as one line of text. `verify` runs checks; the book, the command line and the tests read the rest.
"""

import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from kltutor.claims.text import plain

VERDICTS = ("holds", "holds if", "folklore is wrong")
STATUS = {"symbolic": "proven", "exact": "exact", "sampled": "sampled", "cited": "cited"}  # kind -> badge

Check = Callable[[], str]


@dataclass(frozen=True)
class Claim:
    """One numbered statement, what it rests on, and its check.

    Attributes:
        id: such as "KL-101"; the first digit is the chapter.
        section: of the book, such as "1.1".
        says: the statement, one sentence; may hold LaTeX between dollar signs.
        verdict: one of `VERDICTS`.
        kind: how it is checked, a key of `STATUS`. "cited" rests on a source that no program can run.
        check: returns the evidence or raises AssertionError.
        condition: when it holds; given for "holds if".
        folklore: the common belief, paraphrased, that the check refutes; given for "folklore is wrong".
        sources: keys of the bibliography.
        source_rows: rows of the project's notes that the claim settles.
    """

    id: str
    section: str
    says: str
    verdict: str
    kind: str
    check: Check
    condition: str = ""
    folklore: str = ""
    sources: tuple[str, ...] = ()
    source_rows: tuple[str, ...] = ()

    @property
    def badge(self) -> str:
        """Return the words of the badge: what kind of truth this is, and whether folklore denies it."""
        wrong = " · folklore wrong" if self.verdict == "folklore is wrong" else ""
        return STATUS[self.kind] + wrong

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the CSS classes of the badge."""
        wrong = ("claim-wrong",) if self.verdict == "folklore is wrong" else ()
        return (f"claim-{STATUS[self.kind]}", *wrong)

    @property
    def plain(self) -> str:
        """Return the statement with its LaTeX written in Unicode."""
        return plain(self.says)


@dataclass(frozen=True)
class Result:
    """What one run of a check gave: its evidence, or the error in words when it did not pass."""

    claim: Claim
    passed: bool
    evidence: str
    seconds: float


_registry: dict[str, Claim] = {}


def claim(
    id: str,
    *,
    section: str,
    says: str,
    verdict: str,
    kind: str,
    condition: str = "",
    folklore: str = "",
    sources: tuple[str, ...] = (),
    source_rows: tuple[str, ...] = (),
) -> Callable[[Check], Check]:
    """Register the decorated function as the check of a claim; arguments as the attributes of `Claim`.

    Raises:
        ValueError: the id is taken or not of the form KL-123, the section does not lie in its chapter, the
            verdict or kind is unknown, or an argument that the verdict or kind needs is missing.

    Example:
        >>> @claim("KL-101", section="1.1", says="Twice.", verdict="holds", kind="exact")
        ... def twice() -> str:
        ...     return "2"
        Traceback (most recent call last):
        ValueError: id 'KL-101' is taken; every claim has its own.
    """
    _load()
    if not re.fullmatch(r"KL-\d{3}", id):
        raise ValueError(f"id is {id!r}; KL- and three digits are expected.")
    if id in _registry:
        raise ValueError(f"id {id!r} is taken; every claim has its own.")
    if not re.fullmatch(r"\d(\.\d+)?", section) or section[0] != id[3]:
        raise ValueError(f"section is {section!r}; a section of chapter {id[3]} is expected for {id}.")
    if not says.strip():
        raise ValueError(f"says of {id} is empty; one sentence is expected.")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict of {id} is {verdict!r}; expected one of {', '.join(VERDICTS)}.")
    if kind not in STATUS:
        raise ValueError(f"kind of {id} is {kind!r}; expected one of {', '.join(STATUS)}.")
    if verdict == "holds if" and not condition.strip():
        raise ValueError(f"condition of {id} is empty; the verdict 'holds if' needs one.")
    if verdict == "folklore is wrong" and not folklore.strip():
        raise ValueError(f"folklore of {id} is empty; the verdict 'folklore is wrong' needs one.")
    if kind == "cited" and not sources:
        raise ValueError(f"sources of {id} are empty; the kind 'cited' needs at least one.")

    def register(check: Check) -> Check:
        _registry[id] = Claim(
            id, section, says, verdict, kind, check, condition, folklore, sources, source_rows
        )
        return check

    return register


def all_claims() -> tuple[Claim, ...]:
    """Return every claim, in the order of their ids."""
    _load()
    return tuple(_registry[id] for id in sorted(_registry))


def get(id: str) -> Claim:
    """Return the claim of that id.

    Raises:
        ValueError: there is none.

    Example:
        >>> get("KL-101").section
        '1.1'
    """
    _load()
    if id not in _registry:
        raise ValueError(f"id is {id!r}, which no claim has; `kltutor verify` lists those there are.")
    return _registry[id]


def verify(ids: Iterable[str] | None = None) -> list[Result]:
    """Run the checks of the given claims, all when None, and report each.

    A check that raises, whatever it raises, is reported as not passed; the others still run.

    Raises:
        ValueError: an id is unknown. No check has run then.

    Example:
        >>> [result.passed for result in verify(["KL-103"])]
        [True]
    """
    claims = all_claims() if ids is None else tuple(get(id) for id in ids)
    return [_run(claim) for claim in claims]


def _run(claim: Claim) -> Result:
    start = time.perf_counter()
    try:
        evidence, passed = claim.check(), True
        if not (isinstance(evidence, str) and evidence.strip()):
            raise AssertionError("the check returned no evidence.")
    except Exception as error:  # one broken check must not hide the others
        evidence, passed = f"{type(error).__name__}: {error}", False
    return Result(claim, passed, " ".join(evidence.split()), time.perf_counter() - start)


@cache
def _load() -> None:
    """Import every module of this package, so that its claims register themselves."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
