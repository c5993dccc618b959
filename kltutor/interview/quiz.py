"""A quiz over the question bank, apart from any terminal: what is asked, in which order, and the score."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kltutor.interview.items import FORMS, Form, Item, Mark, choices, numerics, opens
from kltutor.interview.sections import SECTIONS

USUAL = 5  # questions of a quiz of no stated size


@dataclass(frozen=True)
class Score:
    """What a quiz came to.

    Attributes:
        points: of all questions that were answered or skipped.
        of: how many these were.
        topics: name, points and number of questions of each topic among them.
        sections: labels of what to reread, those of the questions without full points, in the book's order.
    """

    points: float
    of: int
    topics: tuple[tuple[str, float, int], ...]
    sections: tuple[str, ...]


@dataclass
class Session:
    """A quiz under way. Ask for the question that is due, then answer or skip it.

    Attributes:
        items: what is asked, in this order.
        timed: seconds for each question, after which an answer counts nothing; None for as long as one likes.
        clock: in seconds.
        given: the answers so far, None for each that was skipped.
        marks: of the same questions.

    Example:
        >>> session = Session(draw(seed=0, count=1, form="numeric", topic="over-optimisation", level=2))
        >>> item = session.ask()
        >>> session.answer(str(item.source.answer)).points, session.ask()
        (1.0, None)
    """

    items: Sequence[Item]
    timed: float | None = None
    clock: Callable[[], float] = time.monotonic
    given: list[str | None] = field(default_factory=list, init=False)
    marks: list[Mark] = field(default_factory=list, init=False)
    _began: float | None = field(default=None, init=False)
    _heard: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the time."""
        if self.timed is not None and not 0 < self.timed < math.inf:
            raise ValueError(f"timed is {self.timed:g}; seconds above 0 is expected.")

    def ask(self) -> Item | None:
        """Return the question that is due, or None after the last. Its time runs from the first call."""
        if len(self.marks) == len(self.items):
            return None
        if self._began is None:
            self._began = self.clock()
        return self.items[len(self.marks)]

    def hear(self) -> None:
        """Stop the time of this question: the answer is given, only its mark is not."""
        if self._began is not None and self._heard is None:
            self._heard = self.clock()

    def answer(self, given: str) -> Mark:
        """Mark the answer to the question that is due, and go on to the next.

        Raises:
            ValueError: it cannot be read, and the question is still due; or none is.
        """
        mark = self._due().mark(given)
        if self._late():
            mark = replace(mark, points=0.0, late=True)
        return self._done(given, mark)

    def skip(self) -> Mark:
        """Give no answer, and go on to the next question.

        Raises:
            ValueError: no question is due.
        """
        return self._done(None, self._due().skipped())

    def score(self) -> Score:
        """Return points by topic, in the order of the first question of each, and what to reread."""
        done = list(zip(self.items, self.marks, strict=False))
        topics = []
        for topic in dict.fromkeys(item.topic for item, _ in done):
            points = [mark.points for item, mark in done if item.topic == topic]
            topics.append((topic, math.fsum(points), len(points)))
        missed = {label for item, mark in done if mark.points < 1 for label in item.sections}
        return Score(
            points=math.fsum(mark.points for _, mark in done),
            of=len(done),
            topics=tuple(topics),
            sections=tuple(sorted(missed, key=list(SECTIONS).index)),
        )

    def _due(self) -> Item:
        item = self.ask()
        if item is None:
            raise ValueError("no question is due: all are done.")
        return item

    def _late(self) -> bool:
        self.hear()
        assert self._heard is not None
        assert self._began is not None
        return self.timed is not None and self._heard - self._began > self.timed

    def _done(self, given: str | None, mark: Mark) -> Mark:
        self.given.append(given)
        self.marks.append(mark)
        self._began = self._heard = None
        return mark


def draw(
    seed: int,
    count: int | None = None,
    *,
    form: Form | None = None,
    level: int | None = None,
    topic: str | None = None,
) -> tuple[Item, ...]:
    """Return the questions of a quiz, the same for a seed everywhere, each form as often as the others.

    No question of the bank comes twice, be it with options or without.

    Args:
        seed: of the choice, the order, the options and the numbers.
        count: how many; five if left out, or all that there are.
        form: one of `FORMS`; all if left out.
        level: as in the bank; all if left out.
        topic: as in the bank; all if left out.

    Raises:
        ValueError: there is no such form, level or topic, or there are fewer questions than that, or none.

    Example:
        >>> [item.id for item in draw(seed=1, form="choice", topic="theory")]
        ['Q13', 'Q24', 'Q22']
    """
    if form is not None and form not in FORMS:
        raise ValueError(f"form is {form!r}; one of {', '.join(FORMS)} is expected.")
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; at least 1 is expected.")
    wanted = USUAL if count is None else count
    pools: dict[Form, Iterator[Item]] = {
        "numeric": numerics(seed, level=level, topic=topic),
        "choice": iter(_shuffled(choices(seed, level=level, topic=topic), f"choice:{seed}")),
        "open": iter(_shuffled(opens(level=level, topic=topic), f"open:{seed}")),
    }
    left = list(FORMS if form is None else (form,))
    random.Random(f"forms:{seed}").shuffle(left)
    chosen: dict[str, Item] = {}
    while left and len(chosen) < wanted:
        for name in left[: wanted - len(chosen)]:
            item = next((item for item in pools[name] if item.id not in chosen), None)
            if item is None:
                left.remove(name)
            else:
                chosen[item.id] = item
    if not chosen:
        raise ValueError(f"no {form or 'such'} question has level {level!r} and topic {topic!r}.")
    if count is not None and len(chosen) < count:
        raise ValueError(f"count is {count}; there are only {len(chosen)} such questions.")
    return tuple(_shuffled(list(chosen.values()), f"order:{seed}"))


def _shuffled(items: Sequence[Item], key: str) -> list[Item]:
    """Return them in an order that the key fixes."""
    return random.Random(key).sample(items, len(items))
