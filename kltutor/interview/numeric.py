"""Questions with a number for an answer, made from a kind and a seed, and computed by the package."""

import random
from collections.abc import Iterator
from itertools import count, islice

from kltutor.interview import drills_estimators, drills_optimum, drills_preference, drills_trainer
from kltutor.interview.drill import REGISTRY, NumericQuestion, Trap

__all__ = ["KINDS", "NumericQuestion", "Trap", "numeric_question", "numeric_questions"]

KINDS: tuple[str, ...] = tuple(REGISTRY)
MODULES = (
    drills_estimators,
    drills_optimum,
    drills_preference,
    drills_trainer,
)  # imported for the kinds they register


def numeric_question(kind: str, seed: int) -> NumericQuestion:
    r"""Return the question of this kind and seed, the same everywhere.

    Raises:
        ValueError: there is no such kind.

    Example:
        >>> question = numeric_question("best-of-n", seed=0)
        >>> question.right(question.answer), question.misreading(question.traps[0].value)
        (True, '$\\log n$ is an upper bound; subtract $(n - 1)/n$.')
    """
    if kind not in REGISTRY:
        raise ValueError(f"kind is {kind!r}; one of {', '.join(KINDS)} is expected.")
    return REGISTRY[kind].question(seed)


def numeric_questions(
    seed: int, size: int, *, level: int | None = None, topic: str | None = None
) -> tuple[NumericQuestion, ...]:
    """Return that many questions of a level or topic if given, each kind as often as the others.

    Raises:
        ValueError: no kind has this level and topic, or size is below 1.

    Example:
        >>> [question.kind for question in numeric_questions(0, 2, topic="preference", level=1)]
        ['implicit-margin', 'implicit-margin']
    """
    if size < 1:
        raise ValueError(f"size is {size}; at least 1 is expected.")
    kinds = [
        kind for kind in REGISTRY.values() if level in (None, kind.level) and topic in (None, kind.topic)
    ]
    if not kinds:
        raise ValueError(f"no kind of question has level {level!r} and topic {topic!r}.")
    random.Random(seed).shuffle(kinds)

    def all_of_them() -> Iterator[NumericQuestion]:
        for turn in count():
            for kind in kinds:
                yield kind.question(1000 * seed + turn)

    return tuple(islice(all_of_them(), size))
