"""The question bank as cards for Anki, each with an id of its own, so that a new deck updates an old one."""

import contextlib
import html
import io
import itertools
import sqlite3
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kltutor import checkpoints
from kltutor.interview.bank import questions
from kltutor.interview.drill import NumericQuestion, tex
from kltutor.interview.items import belongs
from kltutor.interview.numeric import KINDS, numeric_question
from kltutor.interview.render import mathjax
from kltutor.interview.schema import FollowUp, Question
from kltutor.interview.sections import SECTIONS

if TYPE_CHECKING:
    import genanki

NAME = "KL regularisation in RLHF"
DECK, MODEL = 1_732_460_125, 1_732_460_126  # Anki knows deck and layout by these: never change them
SEEDS = (1, 2)  # of the numeric questions, of each kind
FIELDS = ("Front", "Hint", "Back", "Reread")
FRONT = "{{Front}}{{hint:Hint}}"  # a link that shows the hint, where there is one
BACK = '{{Front}}<hr id="answer">{{Back}}<div class="reread">{{Reread}}</div>'
STYLE = """
.card { font: 18px/1.5 sans-serif; text-align: left; max-width: 42em; margin: auto; }
.hint, .reread, .after { font-size: 0.85em; opacity: 0.8; }
ul { padding-left: 1.2em; }
li p, .after p { margin: 0; }
"""


@dataclass(frozen=True)
class Card:
    r"""One card. Texts are HTML, with formulas between \( \) or \[ \].

    Attributes:
        id: by which Anki recognises it, whatever becomes of the texts.
        front: what is asked.
        hint: shown when clicked; may be empty.
        back: the answer.
        reread: sections of the book.
        tags: level, topic and kind.
        sections: labels of those to reread.
    """

    id: str
    front: str
    hint: str
    back: str
    reread: str
    tags: tuple[str, ...]
    sections: tuple[str, ...]


def cards(*, level: int | None = None, topic: str | None = None) -> tuple[Card, ...]:
    """Return the cards of a level or topic if given: questions, follow-ups, wrong answers, and numbers.

    Raises:
        ValueError: there is no such level or topic.

    Example:
        >>> [card.id for card in cards(level=3, topic="practice")][:3]
        ['Q25', 'Q25-wrong-1', 'Q25-wrong-2']
    """
    found: list[Card] = []
    for question in questions(level=level, topic=topic):
        tags = (f"level-{question.level}", question.topic)
        entries: tuple[Question | FollowUp, ...] = (question, *question.follow_ups)
        for entry in entries:
            found.append(_entry(entry, "" if entry is question else question.question, tags))
            found += [_wrong(entry, number, tags) for number in range(1, len(entry.wrong) + 1)]
    kinds = [kind for kind in KINDS if belongs(kind, level, topic)]
    found += [_drill(numeric_question(kind, seed)) for kind in kinds for seed in SEEDS]
    return tuple(found)


def save(cards: Sequence[Card], path: Path, *, at: float | None = None) -> None:
    """Write a deck that holds the cards; a file that is there is replaced, all at once.

    Args:
        cards: of which no two have the same id.
        path: in .apkg; its folder exists.
        at: seconds since 1970. Anki takes over the texts of a deck that is newer than what it holds. Now if
            left out.

    Raises:
        ValueError: there is no card, or an id comes twice.
    """
    import genanki

    ids = [card.id for card in cards]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"cards has {len(ids)} cards with {len(set(ids))} ids; one id a card is expected.")
    model = genanki.Model(
        MODEL,
        NAME,
        fields=[{"name": name} for name in FIELDS],
        templates=[{"name": "Card", "qfmt": FRONT, "afmt": BACK}],
        css=STYLE,
    )
    deck = genanki.Deck(DECK, NAME)
    for card in cards:
        fields = [card.front, card.hint, card.back, card.reread]
        guid = genanki.guid_for("kltutor", card.id)
        deck.add_note(genanki.Note(model=model, fields=fields, tags=card.tags, guid=guid))
    checkpoints.write(path, _package(genanki.Package(deck), time.time() if at is None else at))


def _package(package: "genanki.Package", at: float) -> bytes:
    """Return the file. The library's own way to write it leaves a copy in the folder for temporary files."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        package.write_to_db(database.cursor(), at, itertools.count(int(at * 1000)))
        database.commit()
        whole = database.serialize()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # entries with the date of a ZipInfo: the same at any time
        archive.writestr(zipfile.ZipInfo("collection.anki2"), whole, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("media"), "{}")
    return file.getvalue()


def _entry(entry: Question | FollowUp, after: str, tags: tuple[str, ...]) -> Card:
    context = f'<div class="after">A follow-up to: {mathjax(after)}</div>' if after else ""
    return Card(
        id=entry.id,
        front=context + mathjax(entry.question),
        hint=mathjax(entry.hint),
        back=f"{mathjax(entry.answer)}<p>Did you say it?</p>{_items(entry.rubric)}",
        reread=_reread(entry.sections),
        tags=(*tags, "follow-up" if after else "question"),
        sections=entry.sections,
    )


def _wrong(entry: Question | FollowUp, number: int, tags: tuple[str, ...]) -> Card:
    wrong = entry.wrong[number - 1]
    return Card(
        id=f"{entry.id}-wrong-{number}",
        front=(
            f"{mathjax(entry.question)}<p>Somebody answers:</p>"
            f"<blockquote>{mathjax(wrong.says)}</blockquote><p>What refutes it?</p>"
        ),
        hint="",
        back=mathjax(wrong.because),
        reread=_reread(entry.sections),
        tags=(*tags, "wrong-answer"),
        sections=entry.sections,
    )


def _drill(question: NumericQuestion) -> Card:
    answer = f"${tex(question.answer)}$ {question.unit}".strip()
    traps = [f"${tex(trap.value)}$? {trap.says}" for trap in question.traps]
    return Card(
        id=f"{question.kind}-{question.seed}",
        front=mathjax(question.prompt),
        hint="",
        back=f"{mathjax(f'{answer}.')}{mathjax(question.solution)}{_items(traps)}",
        reread=_reread(question.sections),
        tags=(f"level-{question.level}", question.topic, "number"),
        sections=question.sections,
    )


def _items(texts: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{mathjax(text)}</li>' for text in texts)}</ul>"


def _reread(labels: Sequence[str]) -> str:
    return html.escape("Read again: " + "; ".join(SECTIONS[label] for label in labels), quote=False)
