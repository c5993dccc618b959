"""The question bank: read once, checked, and handed out as frozen records."""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from kltutor.interview.schema import FollowUp, Level, Question, Topic

LEVELS: tuple[int, ...] = get_args(Level)
TOPICS: tuple[str, ...] = get_args(Topic)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of C, where PyYAML was built with it


class _UniqueKeys(_Loader):  # type: ignore[misc]
    """Refuses a mapping that names a key twice, of which YAML would keep the last in silence."""


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"line {node.start_mark.line + 1} begins a mapping that names {twice[0]!r} twice.")
    return {
        key: loader.construct_object(value, deep=True)
        for key, (_, value) in zip(keys, node.value, strict=True)
    }


_UniqueKeys.add_constructor("tag:yaml.org,2002:map", _mapping)


def read(text: str, level: int) -> tuple[Question, ...]:
    """Return the questions of one level from YAML.

    Raises:
        ValueError: an entry is not as `kltutor.interview.schema` wants it; it is named, with the field.

    Example:
        >>> read("- {id: Q01, topic: basics}", level=1)
        Traceback (most recent call last):
        ValueError: Q01: question: Field required.
    """
    entries = yaml.load(text, _UniqueKeys)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"level {level}: a list of questions is expected.")
    return tuple(_question(entry, level) for entry in entries)


def questions(*, level: int | None = None, topic: str | None = None) -> tuple[Question, ...]:
    """Return the questions, of one level or topic if given, in the order of their ids.

    Raises:
        ValueError: there is no such level or topic.

    Example:
        >>> [question.id for question in questions(level=3, topic="theory")]
        ['Q22', 'Q24']
    """
    if level is not None and level not in LEVELS:
        raise ValueError(f"level is {level!r}; one of {', '.join(map(str, LEVELS))} is expected.")
    if topic is not None and topic not in TOPICS:
        raise ValueError(f"topic is {topic!r}; one of {', '.join(TOPICS)} is expected.")
    return tuple(
        question for question in _all() if level in (None, question.level) and topic in (None, question.topic)
    )


def get(id: str) -> Question | FollowUp:
    """Return the question or follow-up of that id.

    Raises:
        ValueError: there is none.

    Example:
        >>> get("Q01a").question[:12]
        'What happens'
    """
    for entry in entries():
        if entry.id == id:
            return entry
    raise ValueError(f"id is {id!r}; such as Q01 or Q01a is expected.")


def entries() -> tuple[Question | FollowUp, ...]:
    """Return every question, each with its follow-ups behind it."""
    found: list[Question | FollowUp] = []
    for question in _all():
        found += [question, *question.follow_ups]
    return tuple(found)


@cache
def _all() -> tuple[Question, ...]:
    folder = files(__package__)
    found = [
        question
        for level in LEVELS
        for question in read((folder / f"questions_{level}.yaml").read_text(encoding="utf-8"), level)
    ]
    _check_order(found)
    return tuple(found)


def _check_order(found: Iterable[Question]) -> None:
    for number, question in enumerate(found, start=1):
        if question.id != f"Q{number:02}":
            raise ValueError(f"{question.id} stands where Q{number:02} is expected.")


def _question(entry: dict[str, Any], level: int) -> Question:
    try:
        return Question.model_validate({**entry, "level": level})
    except ValidationError as error:
        first = error.errors()[0]
        name, where = str(entry.get("id", "an entry without an id")), list(first["loc"])
        if len(where) > 1 and where[0] == "follow_ups":
            name, where = str(entry["follow_ups"][where[1]].get("id", name)), where[2:]
        field = "".join(f"{part}: " for part in where)
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise ValueError(f"{name}: {field}{message}.") from None
