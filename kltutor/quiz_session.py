"""The commands `kltutor quiz` and `kltutor anki`: the question bank at a terminal, and as cards."""

import json
import os
import secrets
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kltutor.flags import plain_errors

if TYPE_CHECKING:
    from kltutor.interview.items import Item, Mark
    from kltutor.interview.quiz import Session

WIDTH = 92
Level = Annotated[int | None, typer.Option(min=1, max=3, help="1, 2 or 3; all if left out.")]
Topic = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="basics, estimators, placement, beta, preference, theory, over-optimisation or practice; all if "
        "left out.",
    ),
]


class _Enough(Exception):
    """No more answers will come: end of the input, or `q`."""


def quiz(
    level: Level = None,
    topic: Topic = None,
    kind: Annotated[
        Literal["numeric", "choice", "open", "all"],
        typer.Option(help="A number, options, or an answer in words that you mark by a rubric."),
    ] = "all",
    count: Annotated[
        int | None, typer.Option(min=1, help="How many questions; 5 if left out.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same questions in the same order; a new one if left out.")
    ] = None,
    timed: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For each question; a later answer counts nothing."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write answers and score there too.")
    ] = None,
) -> None:
    """Ask questions of an interview, mark the answers, and say what to reread.

    Answers may come from a pipe, a line each. Exit status 0: the quiz ended, or its input did; 2: there are
    no such questions; 130: stopped by Ctrl-C, with the score so far.
    """
    with plain_errors():
        from kltutor.interview.quiz import Session, draw

        if json_file is not None:
            _check_folder(json_file)
        drawn_from = secrets.randbelow(10**6) if seed is None else seed
        items = draw(drawn_from, count, form=None if kind == "all" else kind, level=level, topic=topic)
        session = Session(items, timed=timed)
    status = 0
    try:
        _run(session)
    except _Enough:
        pass
    except KeyboardInterrupt:
        typer.echo()
        status = 130
    _show_score(session)
    if seed is None:
        typer.echo(f"The same questions again: --seed {drawn_from}, with the other options as they were.")
    if json_file is not None:
        with plain_errors():
            from kltutor.checkpoints import write

            text = json.dumps(_record(session, drawn_from), ensure_ascii=False, indent=1)
            write(json_file, (text + "\n").encode())
    raise typer.Exit(status)


def anki(
    out: Annotated[Path, typer.Argument(metavar="OUT.apkg", help="The file to write.")],
    level: Level = None,
    topic: Topic = None,
) -> None:
    """Write the question bank as cards for Anki. Imported again, it updates them and keeps your progress."""
    with plain_errors():
        from kltutor.interview import deck

        _check_folder(out)
        if out.suffix != ".apkg":
            raise ValueError(f"OUT is {out}; a name in .apkg is expected.")
        cards = deck.cards(level=level, topic=topic)
        deck.save(cards, out)
    typer.echo(f"{len(cards)} cards are in {out}. In Anki: File, Import.")


def _check_folder(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise ValueError(f"{path} {reason}. Choose another file.")


def _run(session: "Session") -> None:
    """Ask until all questions are done."""
    if session.timed is not None:
        _say(f"{session.timed:g} seconds for each question.")
    _say("h hint · s skip · q stop")
    while True:
        number = len(session.marks) + 1
        item = session.ask()
        if item is None:
            return
        kind = {"numeric": "a number", "choice": "choose", "open": "in your own words"}[item.form]
        typer.echo()
        head = f"{number} of {len(session.items)} · {item.topic}, level {item.level} · {kind}"
        _styled(head, bold=True)
        if item.after:
            _say(f"A follow-up to: {item.after}")
        _say(item.prompt)
        mark = _answered(session, item)
        _show_mark(item, mark, skipped=session.given[-1] is None)


def _answered(session: "Session", item: "Item") -> "Mark":
    """Return the mark of an answer from the input."""
    from kltutor.interview.items import LETTERS, Choice, Numeric, Open

    if isinstance(item, Choice):
        _say("Which of these would you defend?")
        for letter, option in zip(LETTERS, item.options, strict=False):
            _say(option.says, f"{letter}) ")
    prompt = "> "
    if isinstance(item, Numeric):
        _say("Three significant digits will do.")
        prompt = f"{item.unit} > " if item.unit else prompt
    if isinstance(item, Open):
        _say("Say it aloud or write it down. Enter shows what it should hold.")
        if _line(item, prompt) is None:
            return session.skip()
        session.hear()
        for number, point in enumerate(item.rubric, start=1):
            _say(point, f"{number}. ")
        prompt = "Which did you make? Such as 1 3, all or none > "
    while True:
        given = _line(item, prompt)
        if given is None:
            return session.skip()
        try:
            return session.answer(given)
        except ValueError as error:
            typer.echo(str(error))


def _line(item: "Item", prompt: str) -> str | None:
    """Return a line of the input that is no command, or None to skip the question."""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            typer.echo()
            raise _Enough from None
        if not sys.stdin.isatty():
            typer.echo(line)  # so that the output reads as at a terminal
        word = line.lower()
        if word in ("h", "hint"):
            _say(item.hint or "There is no hint to this one.")
        elif word in ("q", "quit", "stop"):
            raise _Enough
        elif not line and item.form != "open":  # to an open question Enter is an answer
            typer.echo("An answer is expected, or h, s or q.")
        else:
            return None if word in ("s", "skip") else line


def _show_mark(item: "Item", mark: "Mark", skipped: bool) -> None:
    """Say what became of an answer, what was wrong with it, and what would have been right."""
    from kltutor.interview.items import Choice, Open

    if skipped:
        typer.echo("Skipped.")
    elif mark.late:
        _styled("Too late: this counts nothing.", fg="red")
    elif isinstance(item, Open):
        typer.echo(f"{round(mark.points * len(item.rubric))} of {len(item.rubric)}.")
    elif mark.points == 1:
        _styled("Right.", fg="green")
    else:
        _styled("No.", fg="red")
    if mark.why:
        _say(mark.why)
    if isinstance(item, Choice) and mark.points < 1:
        typer.echo("Right is")
    elif isinstance(item, Open):
        typer.echo("A model answer:")
    _say(mark.answer)


def _show_score(session: "Session") -> None:
    from kltutor.interview.sections import SECTIONS

    score = session.score()
    typer.echo()
    if not score.of:
        typer.echo("No question was answered.")
        return
    left = len(session.items) - score.of
    rest = f" {left} not reached." if left else ""
    _styled(f"Score: {score.points:.3g} of {score.of}.{rest}", bold=True)
    for topic, points, of in score.topics:
        typer.echo(f"  {topic:18} {points:.3g} of {of}")
    if score.sections:
        typer.echo("Reread")
        for label in score.sections:
            typer.echo(f"  {SECTIONS[label]}")


def _record(session: "Session", seed: int) -> dict[str, Any]:
    score = session.score()
    done = zip(session.items, session.given, session.marks, strict=False)
    return {
        "seed": seed,
        "points": round(score.points, 6),
        "of": score.of,
        "asked": len(session.items),
        "topics": [{"topic": name, "points": round(x, 6), "of": of} for name, x, of in score.topics],
        "reread": list(score.sections),
        "answers": [
            {
                "id": item.id,
                "form": item.form,
                "topic": item.topic,
                "level": item.level,
                "given": given,
                "points": round(mark.points, 6),
                "late": mark.late,
            }
            for item, given, mark in done
        ],
    }


def _styled(text: str, fg: str | None = None, bold: bool | None = None) -> None:
    """Print a line in colour or bold, or plain where NO_COLOR is set, which typer does not ask."""
    typer.secho(text, fg=fg, bold=bold, color=False if os.environ.get("NO_COLOR") else None)


def _say(text: str, mark: str = "") -> None:
    """Print a text of the bank, wrapped; formulas that stand alone keep their line."""
    from kltutor.interview.render import terminal

    width = min(WIDTH, shutil.get_terminal_size().columns - 1)
    for line in terminal(text).split("\n"):
        if line.startswith("    "):
            typer.echo(line)
        else:
            typer.echo(textwrap.fill(line, width, initial_indent=mark, subsequent_indent=" " * len(mark)))
        mark = " " * len(mark)
