"""What a numeric question is, and how a kind of them draws its numbers from a seed."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOLERANCE = 0.01  # of the answer; rounding to three significant digits moves it by at most half of that
TRIES = 500


@dataclass(frozen=True)
class Trap:
    """A number that a known misconception gives, and what went wrong."""

    value: float
    says: str


@dataclass(frozen=True)
class NumericQuestion:
    """A question with a computed answer. Texts are written as in the question bank, formulas between $.

    Attributes:
        kind: of question, one of `kltutor.interview.numeric.KINDS`.
        seed: what the numbers were drawn from; kind and seed give the same question everywhere.
        level: as in the bank.
        topic: as in the bank.
        prompt: the question; three significant digits are wanted.
        inputs: the numbers given in the prompt, by name.
        answer: in `unit`.
        unit: "nats", or "" for a number without one.
        tolerance: the largest difference from the answer that counts as right.
        solution: worked, ending in the answer.
        traps: wrong answers of known cause.
        claims: ids of the ledger.
        sections: labels of what to reread.
    """

    kind: str
    seed: int
    level: int
    topic: str
    prompt: str
    inputs: tuple[tuple[str, Any], ...]
    answer: float
    unit: str
    tolerance: float
    solution: str
    traps: tuple[Trap, ...]
    claims: tuple[str, ...]
    sections: tuple[str, ...]

    def right(self, given: float) -> bool:
        """Return whether a given number is within the tolerance of the answer; never for nan."""
        return abs(given - self.answer) <= self.tolerance

    def misreading(self, given: float) -> str | None:
        """Return what went wrong if the number is that of a known misconception, else None."""
        for trap in self.traps:
            if not self.right(given) and abs(given - trap.value) <= TOLERANCE * abs(trap.value):
                return trap.says
        return None


@dataclass(frozen=True)
class Made:
    """What a kind makes of its draws; attributes as `NumericQuestion`."""

    prompt: str
    inputs: dict[str, Any]
    answer: float
    unit: str
    solution: str
    traps: tuple[Trap, ...]


class Draw(random.Random):
    """Draws the round numbers of a question."""

    def step(self, low: float, high: float, step: float) -> float:
        """Return low, low + step, … or high, each as likely."""
        return round(low + step * self.randint(0, round((high - low) / step)), 10)

    def distribution(self, size: int, floor: int = 1) -> tuple[float, ...]:
        """Return probabilities in twentieths, none below floor twentieths."""
        cuts = sorted(self.sample(range(1, 20 - size * (floor - 1)), size - 1))
        parts = [b - a + floor - 1 for a, b in zip([0, *cuts], [*cuts, 20 - size * (floor - 1)], strict=True)]
        return tuple(part / 20 for part in parts)


@dataclass(frozen=True)
class Kind:
    """A kind of question: where it belongs, and the function that makes one."""

    name: str
    level: int
    topic: str
    claims: tuple[str, ...]
    sections: tuple[str, ...]
    make: Callable[[Draw], Made]

    def question(self, seed: int) -> NumericQuestion:
        """Return the question of a seed, with numbers at which no trap lies close to the answer."""
        draw = Draw(f"{self.name}:{seed}")
        for _ in range(TRIES):
            made = self.make(draw)
            tolerance = TOLERANCE * abs(made.answer)
            values = [made.answer, *(trap.value for trap in made.traps)]
            if abs(made.answer) > 1e-6 and _apart(values):
                break
        else:
            raise RuntimeError(f"{self.name} found no numbers whose traps lie apart from the answer.")
        return NumericQuestion(
            kind=self.name,
            seed=seed,
            level=self.level,
            topic=self.topic,
            prompt=made.prompt,
            inputs=tuple(made.inputs.items()),
            answer=made.answer,
            unit=made.unit,
            tolerance=tolerance,
            solution=made.solution,
            traps=made.traps,
            claims=self.claims,
            sections=self.sections,
        )


def _apart(values: list[float]) -> bool:
    """Return whether no number could be taken for another within three tolerances."""
    return all(abs(a - b) > 3 * TOLERANCE * max(abs(a), abs(b)) for a, b in itertools.combinations(values, 2))


REGISTRY: dict[str, Kind] = {}


def kind(
    name: str, *, level: int, topic: str, claims: tuple[str, ...], sections: tuple[str, ...]
) -> Callable[[Callable[[Draw], Made]], Callable[[Draw], Made]]:
    """Register the decorated function as a kind of question."""

    def register(make: Callable[[Draw], Made]) -> Callable[[Draw], Made]:
        if name in REGISTRY:
            raise ValueError(f"name {name!r} is taken; every kind has its own.")
        REGISTRY[name] = Kind(name, level, topic, claims, sections, make)
        return make

    return register


def tex(value: float) -> str:
    r"""Return a number for a formula, with four significant digits.

    Example:
        >>> tex(0.5), tex(0.123456), tex(-0.00001234)
        ('0.5', '0.1235', '-1.234 \\cdot 10^{-5}')
    """
    text = f"{value:.4g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}"


def factor(value: float) -> str:
    """Return a number as it stands behind another in a formula: between brackets if it is negative.

    Example:
        >>> factor(0.5), factor(-0.5)
        ('0.5', '(-0.5)')
    """
    return f"({tex(value)})" if value < 0 else tex(value)


def row(values: tuple[float, ...]) -> str:
    """Return numbers between brackets, as in (0.5, 0.3, 0.2)."""
    return f"({', '.join(f'{value:g}' for value in values)})"
