r"""The question bank as pages to fold open: question, hint, rubric, answer, wrong answers, follow-ups.

Native `<details>`, so that a page works without scripts, by keyboard, and in print. Formulas stand between
\( \) or \[ \] for MathJax, without the macros of the book.
"""

import html
import textwrap
from collections.abc import Iterable, Sequence

from kltutor import claims, ledger
from kltutor.interview.bank import LEVELS, TOPICS, questions
from kltutor.interview.render import mathjax
from kltutor.interview.schema import FollowUp, Question, WrongAnswer
from kltutor.interview.sections import SECTIONS

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def as_html(questions: Iterable[Question]) -> str:
    """Return the questions in the order given, each with what belongs to it folded away.

    Example:
        >>> from kltutor import interview
        >>> as_html(interview.questions(level=3, topic="practice"))[:44]
        '<section class="question mathjax_process" id'
    """
    return "\n".join(_question(question) for question in questions)


def topics(level: int) -> tuple[str, ...]:
    """Return the topics that a level has questions on, in the order of the book.

    Raises:
        ValueError: there is no such level.

    Example:
        >>> topics(3)
        ('estimators', 'theory', 'over-optimisation', 'practice')
    """
    found = {question.topic for question in questions(level=level)}
    return tuple(topic for topic in TOPICS if topic in found)


def contents() -> str:
    """Return a table of all questions by level and topic, each a link to its place."""
    return (
        '<table class="interview-contents mathjax_process">'
        '<thead><tr><th scope="col">Question</th><th scope="col">Topic</th></tr></thead>'
        f"{''.join(_level(level) for level in LEVELS)}</table>"
    )


def address(id: str) -> str:
    """Return where a question or follow-up stands in the built book.

    Raises:
        ValueError: there is none of that id.

    Example:
        >>> address("Q13a")
        'interview_2.html#q13a'
    """
    for question in questions():
        if id in (question.id, *(follow_up.id for follow_up in question.follow_ups)):
            return f"interview_{question.level}.html#{id.lower()}"
    raise ValueError(f"id is {id!r}; such as Q01 or Q01a is expected.")


def section(label: str) -> tuple[str, str]:
    """Return the address of a section of the book, by its label, and its title.

    Raises:
        KeyError: no question names that section.

    Example:
        >>> section("ch2-k2")
        ('02_estimators.html#ch2-k2', '2.3 k2: half the square')
    """
    title = SECTIONS[label]
    chapter = int(title.removeprefix("chapter ")[0])
    return f"{list(ledger.CHAPTERS)[chapter - 1]}.html#{label}", title


def _level(level: int) -> str:
    rows = "".join(
        f'<tr><td><a href="{address(question.id)}"><b>{question.id}</b> {_inline(question.question)}</a></td>'
        f"<td>{_name(topic)}</td></tr>"
        for topic in topics(level)
        for question in questions(level=level, topic=topic)
    )
    return f'<tbody><tr><th colspan="2" scope="rowgroup">Level {level}</th></tr>{rows}</tbody>'


def _question(question: Question) -> str:
    id = question.id.lower()
    follow_ups = "\n".join(_follow_up(follow_up) for follow_up in question.follow_ups)
    return (
        f'<section class="question mathjax_process" id="{id}">\n'
        f'<h3><a class="question-id" href="#{id}">{question.id}</a> {_inline(question.question)}</h3>\n'
        f"{_folds(question)}"
        f"{_fold('follow-ups', _counted(question.follow_ups, 'follow-up'), follow_ups)}"
        "</section>"
    )


def _follow_up(entry: FollowUp) -> str:
    id = entry.id.lower()
    return (
        f'<section class="follow-up" id="{id}">\n'
        f'<h4><a class="question-id" href="#{id}">{entry.id}</a> {_inline(entry.question)}</h4>\n'
        f"{_folds(entry)}</section>"
    )


def _folds(entry: Question | FollowUp) -> str:
    """Return what question and follow-up have in common, in the order in which one opens it."""
    answer = (
        f"{mathjax(entry.answer)}\n"
        f'<p class="meta">Rests on {" ".join(map(_badge, entry.claims))}</p>\n'
        f'<p class="meta">Read again: {_links(entry.sections)}</p>'
    )
    rubric = "".join(f"<li>{_inline(point)}</li>" for point in entry.rubric)
    folds = [
        _fold("hint", "Hint", mathjax(entry.hint)),
        _fold("rubric", f"What a good answer has: {len(entry.rubric)} points", f"<ul>{rubric}</ul>"),
        _fold("answer", "An answer", answer),
    ]
    if entry.wrong:
        wrong = "\n".join(_wrong(answer) for answer in entry.wrong)
        folds.append(_fold("wrong", _counted(entry.wrong, "common wrong answer"), wrong))
    return "".join(folds)


def _wrong(wrong: WrongAnswer) -> str:
    return (
        f"<blockquote>{mathjax(wrong.says)}</blockquote>\n"
        f"{_fold('because', 'What refutes it', mathjax(wrong.because))}"
    )


def _fold(kind: str, summary: str, inside: str) -> str:
    return f'<details class="fold fold-{kind}"><summary>{summary}</summary>\n{inside}\n</details>\n'


def _counted(things: Sequence[object], noun: str) -> str:
    return f"{NUMBER_WORDS[len(things)].capitalize()} {noun}{'s' * (len(things) != 1)}"


def _links(labels: Iterable[str]) -> str:
    return "; ".join(
        f'<a href="{address}">{html.escape(title, quote=False)}</a>'
        for address, title in map(section, labels)
    )


def _badge(id: str) -> str:
    """Return the badge that the book's {claim} role makes."""
    claim = claims.get(id)
    return (
        f'<a class="{" ".join(("claim", *claim.classes))}" href="{ledger.page(claim)}.html#{id.lower()}" '
        f'title="{html.escape(claim.plain)}"><span class="claim-id">{id}</span> '
        f'<span class="claim-kind">{html.escape(claim.badge)}</span></a>'
    )


def _inline(text: str) -> str:
    """Return a text of one paragraph without its tags.

    Raises:
        ValueError: it has several.
    """
    page = mathjax(text)
    if page.count("<p>") != 1:
        raise ValueError(f"{textwrap.shorten(text, 40)!r} has several paragraphs; one is expected.")
    return page.removeprefix("<p>").removesuffix("</p>")


def _name(topic: str) -> str:
    return topic.capitalize()
