"""What a kata is, and how an answer to it is graded."""

import html
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from torch import Tensor

from kltutor.audit import check
from kltutor.audit.calls import Returns
from kltutor.katas.calls import Case, Code, Difference, Outcome, call, difference

READABLE = 40  # numbers in the inputs of a counterexample that is printed in full


@dataclass(frozen=True)
class Misconception:
    """A known wrong answer.

    Attributes:
        name: such as "ratio-inverted".
        says: what went wrong, one or two sentences; {got} and {right} stand for the kata's number.
        code: the wrong answer.
    """

    name: str
    says: str
    code: Code


@dataclass(frozen=True)
class Grade:
    """What became of an answer.

    Attributes:
        right: whether values and gradients agree with the reference in every case.
        misconception: the known wrong answer that it is; None if it is right, or wrong in another way.
        message: what to tell the one who wrote it.
    """

    right: bool
    misconception: str | None
    message: str

    def __str__(self) -> str:
        """Return the message."""
        return self.message

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the message in IPython, where the fields would be a line too long to read."""
        printer.text(self.message if self.right else f"Not yet. {self.message}")

    def _repr_html_(self) -> str:
        """Return the message as a paragraph of a notebook, which wraps, and a counterexample as a block."""
        said, *lines = html.escape(self.message).splitlines()
        first = "Right:" if self.right else "Not yet."
        block = f"<pre>{chr(10).join(line.strip() for line in lines)}</pre>" if lines else ""
        rest = said.removeprefix("Right:").strip()
        return f'<div class="kl-grade"><p><strong>{first}</strong> {rest}</p>{block}</div>'


@dataclass(frozen=True, eq=False)
class Kata:
    """A small function to write.

    Attributes:
        stub: the function to write: its signature, its docstring, and no body.
        level: 1, a few lines; 2, one idea; 3, several at once.
        section: of the book, number and title.
        reference: the right answer, which is the package's own function.
        cases: on what answers are compared with it, the most readable first.
        misconceptions: known wrong answers.
        differentiable: arguments in which gradients are compared too.
        number: from what a function returns on the first case to one number for the sentences.
        audit: arguments and return of a KL estimator, in the words of `kltutor.check`; None for the others.
    """

    stub: Code
    level: int
    section: str
    reference: Code
    cases: tuple[Case, ...]
    misconceptions: tuple[Misconception, ...]
    differentiable: tuple[str, ...] = ()
    number: Callable[..., Tensor] = field(default=lambda *values: values[0].sum())
    audit: tuple[tuple[str, ...], Returns] | None = None

    @property
    def name(self) -> str:
        """Return the name of the function to write."""
        return str(self.stub.__name__)

    @property
    def task(self) -> str:
        """Return what is to be written: the docstring of the stub."""
        return inspect.getdoc(self.stub) or ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the arguments, in order."""
        return tuple(inspect.signature(self.stub).parameters)

    def starter(self) -> str:
        """Return the text of a file to begin with.

        Example:
            >>> from kltutor import katas
            >>> print(katas.get("last_action").starter().splitlines()[-1].strip())
            raise NotImplementedError
        """
        source = inspect.getsource(inspect.unwrap(self.stub))
        shapes = [name for name in ("Bool", "Float", "Int") if f"{name}[" in source]
        imports = f"import torch\nfrom jaxtyping import {', '.join(shapes)}\nfrom torch import Tensor\n\n\n"
        number = self.section.split()[0]
        title = f"Kata {self.name}: level {self.level}, section {number} of the book."
        head = f'"""{title}\n\nCheck it with: kltutor kata check {self.name}.py\n"""\n\n'
        return head + (imports if shapes else "\n") + source

    def grade(self, fn: Code) -> Grade:
        """Return whether a function is right, and if not, what is wrong with it.

        It is called with copies of every case, and its values and gradients are compared with those of the
        package's own function. A wrong one is compared with every known wrong answer, in all cases or, at
        least, in all that are no traps; one that is none of them gets the smallest counterexample.

        Raises:
            jaxtyping.TypeCheckError: fn cannot be called.

        Example:
            >>> from kltutor import katas
            >>> from kltutor.estimators import k3
            >>> katas.get("k3").grade(k3).right, katas.get("k3").grade(lambda p, q: k3(q, p)).right
            (True, False)
            >>> print(katas.get("k3").grade(lambda p, q: (p - q).expm1() - (p - q)))
            r is inverted: this estimates χ²(π‖ref) - KL(π‖ref), 0.968 where KL(π‖ref) is 0.635 nats.
        """
        try:
            inspect.signature(fn).bind(*self.parameters)
        except TypeError as error:
            wanted = ", ".join(self.parameters)
            return Grade(False, None, f"It cannot be called as {self.name}({wanted}): {error}.")
        except ValueError:
            pass  # a builtin without a signature: the call will tell
        outcomes = [call(fn, case, self.differentiable) for case in self.cases]
        missed = {
            i: found
            for i, (got, right) in enumerate(zip(outcomes, self._expected, strict=True))
            if (found := difference(got, right))
        }
        if not missed:
            also = " and gradients" if self.differentiable else ""
            return Grade(True, None, f"Right: values{also} agree in {len(self.cases)} cases.")
        if any(outcome.error == "NotImplementedError" for outcome in outcomes):
            return Grade(False, None, f"{self.name} is not written yet.")
        mistake = self._recognise(outcomes)
        if mistake:
            return Grade(False, mistake.name, self.sentence(mistake))
        smallest = min(missed, key=lambda i: (self.cases[i].edge, self.cases[i].size))
        text = _counterexample(self.cases[smallest], missed[smallest])
        return Grade(False, None, " ".join(filter(None, (self._audited(fn, outcomes), text))))

    def sentence(self, mistake: Misconception) -> str:
        """Return what is said of a known wrong answer, its numbers filled in."""
        if not {"{got}", "{right}"} & set(re.findall(r"{\w+}", mistake.says)):
            return mistake.says
        case = self.cases[0]
        got, right = (
            self.number(*call(code, case, ()).values).item() for code in (mistake.code, self.reference)
        )
        return mistake.says.replace("{got}", f"{got:.3g}").replace("{right}", f"{right:.3g}")

    @cached_property
    def _expected(self) -> tuple[Outcome, ...]:
        return tuple(call(self.reference, case, self.differentiable) for case in self.cases)

    @cached_property
    def _mistaken(self) -> tuple[tuple[Outcome, ...], ...]:
        return tuple(
            tuple(call(wrong.code, case, self.differentiable) for case in self.cases)
            for wrong in self.misconceptions
        )

    def _recognise(self, outcomes: Sequence[Outcome]) -> Misconception | None:
        """Return the misconception that gives the same in all cases, or in all that are no traps."""
        main = [i for i, case in enumerate(self.cases) if not case.edge]
        for chosen in (range(len(self.cases)), main):
            for wrong, known in zip(self.misconceptions, self._mistaken, strict=True):
                shows = any(difference(known[i], self._expected[i]) for i in chosen)
                if shows and not any(difference(outcomes[i], known[i]) for i in chosen):
                    return wrong
        return None

    def _audited(self, fn: Code, outcomes: Sequence[Outcome]) -> str:
        """Return what the auditor says of a KL estimator that is no known wrong answer.

        Nothing where it says the same of the right answer.
        """
        if self.audit is None or any(outcome.error for outcome in outcomes):
            return ""
        found = self._measured(fn)
        if not found or found[0].startswith("none") or found == self._measured(self.reference):
            return ""
        drawn = "the old policy" if "old_logp" in self.parameters else "the policy"
        says = f"its mean is {found[0]}, and its gradient {found[1]}"
        return f"kltutor.check finds that on samples of {drawn} {says}."

    def _measured(self, fn: Code) -> tuple[str, str] | None:
        """Return what the auditor finds in value and gradient, on the samples that the kata is about."""
        if self.audit is None:
            return None
        inputs, returns = self.audit
        try:
            found = check(fn, inputs=inputs, returns=returns)
        except (ValueError, TypeError):
            return None
        if "old_logp" in inputs:
            return found.stale_value, found.stale_gradient
        return found.value, found.gradient


# The modules that hold katas, each of one subject.
SUBJECTS = (
    "batches",
    "clipping",
    "control",
    "credit",
    "distances",
    "draws",
    "groups",
    "optima",
    "preferences",
    "rewards",
    "samples",
    "stale",
)

_registry: dict[str, Kata] = {}


def register(stub: Code, **fields: Any) -> None:
    """Register a kata; arguments as the attributes of `Kata`.

    Raises:
        ValueError: the name is taken, or two misconceptions share one.
    """
    kata = Kata(stub, **fields)
    names = [wrong.name for wrong in kata.misconceptions]
    if kata.name in _registry or len(set(names)) < len(names):
        raise ValueError(f"{kata.name} is taken, or two of its misconceptions are: {', '.join(names)}.")
    _registry[kata.name] = kata


def all_katas() -> tuple[Kata, ...]:
    """Return every kata, the easiest first, then in the order of the book."""
    _load()
    return tuple(sorted(_registry.values(), key=lambda kata: (kata.level, kata.section, kata.name)))


def get(name: str) -> Kata:
    """Return the kata of that name.

    Raises:
        ValueError: there is none.

    Example:
        >>> get("k3").section
        '2.4 k3: a control variate that happens to be non-negative'
    """
    _load()
    if name not in _registry:
        raise ValueError(f"no kata is called {name!r}; expected one of {', '.join(sorted(_registry))}.")
    return _registry[name]


@cache
def _load() -> None:
    """Import the modules that hold katas, when they are first asked for."""
    for subject in SUBJECTS:
        importlib.import_module(f"kltutor.katas.{subject}")


def _counterexample(case: Case, found: Difference) -> str:
    says = f"Wrong ({case.label}): {found.says.rstrip('.')}."
    if case.size > READABLE:
        return says
    lines = [f"{name} = {shown(value)}" for name, value in case.inputs.items()]
    if found.got is not None and found.expected is not None:
        lines += [f"got {shown(found.got)}", f"expected {shown(found.expected)}"]
    return "\n  ".join([says, *lines])


def shown(value: Any) -> str:
    """Return a number or a tensor of a few numbers in one line.

    Example:
        >>> import torch
        >>> shown(torch.tensor([[1.0, 0.25], [1 / 3, torch.nan]]))
        '[[1, 0.25], [0.3333, nan]]'
    """
    if isinstance(value, Tensor):
        return shown(value.tolist())
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
