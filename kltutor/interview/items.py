"""The questions of a quiz: with a number for an answer, with options, or to answer in words.

Answers are text, as one would type it: a number, the letter of an option, or the points of a rubric that one
has made. Texts of the bank stay as they are written there; see `kltutor.interview.render` for their forms.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import ClassVar, Literal, get_args

import yaml

from kltutor.interview.bank import get, questions
from kltutor.interview.drill import REGISTRY, NumericQuestion, tex
from kltutor.interview.numeric import KINDS, numeric_question

Form = Literal["numeric", "choice", "open"]
FORMS: tuple[Form, ...] = get_args(Form)
LETTERS = "abcdefgh"
TURNS = 1000  # seeds of the numeric questions of one quiz, for each kind


@dataclass(frozen=True)
class Mark:
    """What became of an answer.

    Attributes:
        points: from 0 to 1.
        why: what was wrong with it, where that is known; else empty.
        answer: the right answer, with the way to it.
        late: whether it came after its time, and counts nothing therefore.
    """

    points: float
    why: str
    answer: str
    late: bool = False


@dataclass(frozen=True)
class Item:
    """A question of a quiz.

    Attributes:
        id: of the bank, or kind and seed of a numeric question.
        level: as in the bank.
        topic: as in the bank.
        prompt: what is asked.
        after: the question before a follow-up; else empty.
        hint: a first push; empty if there is none.
        sections: labels of what to reread.
    """

    form: ClassVar[Form]
    id: str
    level: int
    topic: str
    prompt: str
    after: str
    hint: str
    sections: tuple[str, ...]

    def mark(self, given: str) -> Mark:
        """Return what an answer is worth.

        Raises:
            ValueError: it cannot be read, so that it is neither right nor wrong.
        """
        raise NotImplementedError

    def skipped(self) -> Mark:
        """Return the mark of who gives no answer."""
        return Mark(0.0, "", self._answer())

    def _answer(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Numeric(Item):
    """A question with a number for an answer, right within the tolerance of the question.

    Attributes:
        unit: of the answer; empty for a number without one.
        source: the question, as computed.
    """

    form = "numeric"
    unit: str
    source: NumericQuestion

    def mark(self, given: str) -> Mark:
        """Take a number, with or without its unit."""
        text = given.strip().replace("−", "-")
        try:
            number = float(text.removesuffix(self.unit))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{given.strip()!r} is no number; such as 0.25 or -1.5e-3 is expected.")
        if self.source.right(number):
            return Mark(1.0, "", self._answer())
        return Mark(0.0, self.source.misreading(number) or "", self._answer())

    def _answer(self) -> str:
        shown = f"${tex(self.source.answer)}$ {self.unit}".strip()
        return f"The answer is {shown}.\n{self.source.solution}"


@dataclass(frozen=True)
class Option:
    """One of the answers to choose from; `because` refutes it, and is empty for the one that is right."""

    says: str
    because: str


@dataclass(frozen=True)
class Choice(Item):
    """A question with options: a passage of the model answer, and the wrong answers that one really hears."""

    form = "choice"
    options: tuple[Option, ...]

    def mark(self, given: str) -> Mark:
        """Take the letter of an option."""
        letters = LETTERS[: len(self.options)]
        letter = given.strip().lower().rstrip(")")
        if len(letter) != 1 or letter not in letters:
            raise ValueError(f"{given.strip()!r} is none of {', '.join(letters)}.")
        picked = self.options[letters.index(letter)]
        return Mark(float(not picked.because), picked.because, self._answer())

    def _answer(self) -> str:
        right = next(place for place, option in enumerate(self.options) if not option.because)
        return f"{LETTERS[right]}) {self.options[right].says}"


@dataclass(frozen=True)
class Open(Item):
    """A question to answer in words, and to mark by a rubric oneself."""

    form = "open"
    rubric: tuple[str, ...]
    answer: str

    def mark(self, given: str) -> Mark:
        """Take the numbers of the points that were made, counted from 1; none, or all."""
        words = re.split(r"[\s,]+", given.strip().lower())
        if words in ([""], ["none"]):
            words = []
        elif words == ["all"]:
            words = [str(number) for number in range(1, len(self.rubric) + 1)]
        size = len(self.rubric)
        for word in words:
            if not (word.isdecimal() and 1 <= int(word) <= size):
                raise ValueError(f"{word!r} is no point; numbers from 1 to {size}, all or none are expected.")
        return Mark(len({int(word) for word in words}) / size, "", self._answer())

    def _answer(self) -> str:
        return self.answer


def numerics(seed: int, *, level: int | None = None, topic: str | None = None) -> Iterator[Numeric]:
    """Yield questions with a number for an answer, no two with the same words, each kind in its turn."""
    kinds = [kind for kind in KINDS if belongs(kind, level, topic)]
    random.Random(f"numeric:{seed}").shuffle(kinds)
    there = set()
    for turn in range(TURNS):
        for kind in kinds:
            question = numeric_question(kind, TURNS * seed + turn)
            if question.prompt not in there:
                there.add(question.prompt)
                yield Numeric(
                    id=f"{kind}:{question.seed}",
                    level=question.level,
                    topic=question.topic,
                    prompt=question.prompt,
                    after="",
                    hint="",
                    sections=question.sections,
                    unit=question.unit,
                    source=question,
                )


def belongs(kind: str, level: int | None, topic: str | None) -> bool:
    """Return whether a kind of numeric questions is of a level and topic, where these are given."""
    found = REGISTRY[kind]
    return level in (None, found.level) and topic in (None, found.topic)


def choices(seed: int, *, level: int | None = None, topic: str | None = None) -> list[Choice]:
    """Return the questions that have options, these shuffled by the seed."""
    found = []
    for question in questions(level=level, topic=topic):
        if question.id in passages():
            rng = random.Random(f"{question.id}:{seed}")
            right = Option(rng.choice(passages()[question.id]), "")
            options = [right, *(Option(wrong.says, wrong.because) for wrong in question.wrong)]
            rng.shuffle(options)
            found.append(
                Choice(
                    id=question.id,
                    level=question.level,
                    topic=question.topic,
                    prompt=question.question,
                    after="",
                    hint=question.hint,
                    sections=question.sections,
                    options=tuple(options),
                )
            )
    return found


def opens(*, level: int | None = None, topic: str | None = None) -> list[Open]:
    """Return the questions to answer in words, each with its follow-ups behind it."""
    return [
        Open(
            id=entry.id,
            level=question.level,
            topic=question.topic,
            prompt=entry.question,
            after="" if entry is question else question.question,
            hint=entry.hint,
            sections=entry.sections,
            rubric=entry.rubric,
            answer=entry.answer,
        )
        for question in questions(level=level, topic=topic)
        for entry in (question, *question.follow_ups)
    ]


@cache
def passages() -> dict[str, tuple[str, ...]]:
    """Return by question what can be its right option: passages of its answer, as sentences.

    Raises:
        ValueError: a passage is not in the answer.
    """
    found = yaml.safe_load((files(__package__) / "choices.yaml").read_text(encoding="utf-8"))
    return {id: tuple(_passage(id, " ".join(text.split())) for text in texts) for id, texts in found.items()}


def _passage(id: str, text: str) -> str:
    if text not in " ".join(get(id).answer.split()):
        raise ValueError(f"{id}: {text!r} is no passage of its answer.")
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
