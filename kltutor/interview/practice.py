"""What the practice page needs of the bank: the cards of the deck, and the questions for a mock interview."""

import json
from collections.abc import Sequence
from typing import Any

from kltutor.interview import pages
from kltutor.interview.bank import questions
from kltutor.interview.deck import Card, cards
from kltutor.interview.render import mathjax
from kltutor.interview.schema import Question


def data() -> dict[str, list[dict[str, Any]]]:
    r"""Return the cards of the deck, and the questions with what is ticked after an answer.

    Texts are HTML with formulas between \( \) or \[ \]; "reread" pairs addresses in the book with titles.

    Example:
        >>> card = data()["cards"][0]
        >>> card["id"], card["level"], card["topic"], card["kind"]
        ('Q01', 1, 'basics', 'question')
    """
    return {"cards": [_card(card) for card in cards()], "questions": [_question(q) for q in questions()]}


def as_json() -> str:
    """Return the data as text that can stand in a script element of a page."""
    return json.dumps(data(), ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")


def _card(card: Card) -> dict[str, Any]:
    level, topic, kind = card.tags
    return {
        "id": card.id,
        "level": int(level.removeprefix("level-")),
        "topic": topic,
        "kind": kind,
        "front": card.front,
        "hint": card.hint,
        "back": card.back,
        "reread": _reread(card.sections),
    }


def _question(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "level": question.level,
        "topic": question.topic,
        "front": mathjax(question.question),
        "back": mathjax(question.answer),
        "rubric": [mathjax(point).removeprefix("<p>").removesuffix("</p>") for point in question.rubric],
        "reread": _reread(question.sections),
        "href": pages.address(question.id),
    }


def _reread(labels: Sequence[str]) -> list[tuple[str, str]]:
    return [pages.section(label) for label in labels]
