"""The quiz: what it asks, how it marks, and what it says at a terminal or in a pipe."""

import json
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path

import known_wrong
import pytest
from typer.testing import CliRunner

from kltutor import checkpoints, cli, interview
from kltutor.interview import items, quiz, terminal
from kltutor.interview.sections import SECTIONS

BOOK = Path(__file__).parents[1] / "book"
QUESTIONS = interview.questions()
SEEDS = range(20)


def items_of(form, **chosen):
    """Return every question of a form."""
    found = {"choice": items.choices(0, **chosen), "open": items.opens(**chosen)}
    return found[form]


# What is asked


def test_a_seed_fixes_the_questions_their_order_and_their_options():
    assert quiz.draw(3, 20) == quiz.draw(3, 20)
    assert len({tuple(item.id for item in quiz.draw(seed)) for seed in SEEDS}) == len(SEEDS)


def test_each_form_comes_as_often_as_the_others_and_no_question_twice():
    for seed in (0, 1, 2):
        drawn = quiz.draw(seed, 30)
        assert Counter(item.form for item in drawn) == {"numeric": 10, "choice": 10, "open": 10}
        assert len({item.id for item in drawn}) == len({item.prompt for item in drawn}) == 30
    usual = [quiz.draw(seed) for seed in SEEDS]
    assert all(max(Counter(item.form for item in drawn).values()) == 2 for drawn in usual)
    assert len({drawn[0].form for drawn in usual}) == 3, "a form never comes first"


@pytest.mark.parametrize("form", quiz.FORMS)
def test_a_form_a_level_and_a_topic_are_kept(form):
    for level in interview.LEVELS:
        drawn = quiz.draw(3, 5, form=form, level=level)
        assert {(item.form, item.level) for item in drawn} == {(form, level)}
    assert {item.topic for item in quiz.draw(3, form=form, topic="theory")} == {"theory"}


def test_there_are_as_many_questions_as_the_bank_has():
    assert [item.id for item in items_of("open")] == [entry.id for entry in interview.entries()]
    assert [item.id for item in items_of("choice")] == [question.id for question in QUESTIONS]
    assert len(quiz.draw(0, 25, form="choice")) == 25
    assert len(quiz.draw(0, 66, form="open")) == 66
    assert len(quiz.draw(0, 200, form="numeric")) == 200
    assert {item.id for item in quiz.draw(0, topic="practice")} == {"Q25", "Q25a", "Q25b"}
    with pytest.raises(ValueError, match="count is 26; there are only 25"):
        quiz.draw(0, 26, form="choice")
    with pytest.raises(ValueError, match="no such question has level 3 and topic 'basics'"):
        quiz.draw(0, level=3, topic="basics")
    with pytest.raises(ValueError, match="no numeric question has level None and topic 'practice'"):
        quiz.draw(0, form="numeric", topic="practice")
    for wrong in ({"level": 4}, {"topic": "cooking"}, {"count": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is"):
            quiz.draw(0, **wrong)


def test_a_follow_up_says_what_it_follows():
    for item in items_of("open"):
        assert item.after == ("" if len(item.id) == 3 else interview.get(item.id[:3]).question)


# Options


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_the_right_option_is_a_passage_of_the_answer_and_the_others_are_the_wrong_answers(question):
    answer = " ".join(question.answer.split()).lower()
    for seed in SEEDS:
        (item,) = (item for item in items.choices(seed) if item.id == question.id)
        right = [option for option in item.options if not option.because]
        wrong = {(option.says, option.because) for option in item.options if option.because}
        assert wrong == {(wrong.says, wrong.because) for wrong in question.wrong}
        assert len(right) == 1
        assert right[0].says.lower().rstrip(".") in answer
        assert known_wrong.says(right[0].says) == []
    for says in items.passages()[question.id]:
        assert re.fullmatch(r"[A-Z0-9$].*\.", says), says
        assert says.count("$") % 2 == 0, "a formula is cut"


def test_the_right_option_stands_at_every_place_equally_often():
    places = Counter()
    for seed in range(200):
        for item in items.choices(seed)[::6]:
            if len(item.options) == 4:
                places[[option.because for option in item.options].index("")] += 1
    each, size = sum(places.values()) / 4, sum(places.values())
    # chi-squared with 3 degrees of freedom is above 27.7 with probability 4e-6; the seeds are fixed
    assert sum((places[place] - each) ** 2 / each for place in range(4)) < 27.7, (places, size)


def test_every_passage_is_asked_under_some_seed():
    for id, texts in items.passages().items():
        asked = {
            option.says
            for seed in SEEDS
            for item in items.choices(seed)
            if item.id == id
            for option in item.options
            if not option.because
        }
        assert asked == set(texts), id


def test_a_passage_that_its_answer_no_longer_holds_is_refused():
    assert items._passage("Q02", "It does not repair the reward.") == "It does not repair the reward."
    with pytest.raises(ValueError, match=r"Q02: 'It does repair the reward.' is no passage of its answer"):
        items._passage("Q02", "It does repair the reward.")


# Marks


def test_the_letter_of_the_right_option_is_right_and_the_others_are_refuted():
    for item in items.choices(5):
        for letter, option in zip("abcdefgh", item.options, strict=False):
            for given in (letter, f" {letter.upper()}) "):
                mark = item.mark(given)
                assert (mark.points, mark.why) == (float(not option.because), option.because)
                assert item.options["abcdefgh".index(mark.answer[0])].because == ""
        for given in ("", "z", "ab", "1", "abcd"[: len(item.options)]):
            with pytest.raises(ValueError, match="is none of a, b, c"):
                item.mark(given)


@pytest.mark.parametrize("kind", interview.KINDS)
def test_a_number_is_marked_with_its_tolerance_and_a_misreading_is_named(kind):
    for seed in (1, 2, 3):
        source = interview.numeric_question(kind, seed)
        item = items.Numeric("x", 1, "basics", source.prompt, "", "", source.sections, source.unit, source)
        for given in (f"{source.answer:.3g}", f" {source.answer:.4e} {source.unit}"):
            assert (item.mark(given).points, item.mark(given).why) == (1.0, "")
        edge = source.answer + 1.01 * source.tolerance
        assert item.mark(repr(edge)).points == 0
        assert item.mark(f"{source.answer:.12g}".replace("-", "−")).points == 1
        for trap in source.traps:
            mark = item.mark(f"{trap.value:.4g}")
            assert (mark.points, mark.why) == (0.0, trap.says)
        assert item.mark("123456.789").why == ""
        assert source.solution in item.skipped().answer


def test_what_is_no_number_is_neither_right_nor_wrong():
    (item,) = quiz.draw(0, 1, form="numeric", topic="over-optimisation", level=2)
    assert item.unit == "nats"
    for given in ("", "two", "nan", "inf", "1e999", "0,5", "1/2", "0.5 bits", "nats"):
        with pytest.raises(ValueError, match="is no number"):
            item.mark(given)


def test_the_points_of_a_rubric_are_counted_once_each():
    (item,) = (item for item in items.opens() if item.id == "Q04")
    size = len(item.rubric)
    assert size == 5
    for given, made in (("1 3", 2), ("3,1", 2), ("2 2 2", 1), ("all", 5), ("none", 0), ("", 0), ("5, 4", 2)):
        assert item.mark(given).points == made / 5
    assert item.mark("1").answer == interview.get("Q04").answer
    for given in ("0", "6", "1 six", "-1", "1.5", "²"):
        with pytest.raises(ValueError, match=r"is no point; numbers from 1 to 5"):
            item.mark(given)


# A session


class Clock:
    """A clock that stands still until it is told."""

    now = 100.0

    def __call__(self):
        """Return the time."""
        return self.now


def right(item):
    """Return the answer that earns full points, found without the code that marks it."""
    if item.form == "numeric":
        return f"{item.source.answer:.4g}"
    if item.form == "open":
        return "all"
    return "abcdefgh"[[option.because for option in item.options].index("")]


def wrong(item):
    """Return an answer that earns nothing."""
    if item.form == "numeric":
        return "987654321"
    if item.form == "open":
        return "none"
    return next("abcdefgh"[i] for i, option in enumerate(item.options) if option.because)


def test_right_answers_earn_everything_and_wrong_ones_nothing():
    for answer, points in ((right, 12.0), (wrong, 0.0)):
        session = quiz.Session(quiz.draw(4, 12))
        while (item := session.ask()) is not None:
            session.answer(answer(item))
        score = session.score()
        assert (score.points, score.of) == (points, 12)
        assert bool(score.sections) == (points == 0)
        with pytest.raises(ValueError, match="no question is due"):
            session.answer("1")
        with pytest.raises(ValueError, match="no question is due"):
            session.skip()


def test_an_answer_that_cannot_be_read_leaves_the_question_due():
    session = quiz.Session(quiz.draw(0, 2, form="numeric"))
    item = session.ask()
    with pytest.raises(ValueError, match="is no number"):
        session.answer("what?")
    assert session.ask() is item
    assert session.marks == session.given == []
    assert session.answer(right(item)).points == 1


def test_the_score_is_by_topic_and_names_what_to_reread_in_the_book_s_order():
    drawn = quiz.draw(11, 12)
    session = quiz.Session(drawn)
    for place, item in enumerate(drawn[:9]):
        if place % 3 == 0:
            session.skip()
        else:
            session.answer((right if place % 3 == 1 else wrong)(item))
    score = session.score()
    assert (score.points, score.of) == (3.0, 9)
    for topic, points, of in score.topics:
        places = [place for place in range(9) if drawn[place].topic == topic]
        assert (points, of) == (sum(place % 3 == 1 for place in places), len(places))
    assert sum(of for _, _, of in score.topics) == 9
    missed = {label for place in range(9) if place % 3 != 1 for label in drawn[place].sections}
    assert list(score.sections) == [label for label in SECTIONS if label in missed]
    assert session.given == [None if n % 3 == 0 else session.given[n] for n in range(9)]


def test_a_late_answer_counts_nothing_and_time_stops_when_it_is_heard():
    clock = Clock()
    session = quiz.Session(quiz.draw(0, 5, form="open"), timed=60, clock=clock)

    def answered(wait, think):
        session.ask()
        clock.now += wait
        session.hear()
        clock.now += think
        session.hear()
        session.ask()
        return session.answer("all")

    assert [answered(60, 0).points, answered(61, 0).points, answered(59, 500).points] == [1, 0, 1]
    assert [mark.late for mark in session.marks] == [False, True, False]
    assert set(session.score().sections) == set(session.items[1].sections)
    session.hear()  # before the question is asked: there is nothing to hear
    clock.now += 500
    assert not answered(1, 0).late
    clock.now += 500
    session.ask()
    clock.now += 61
    assert not session.skip().late
    assert quiz.Session(quiz.draw(0, 1), clock=clock).timed is None


@pytest.mark.parametrize("timed", [0.0, -1.0, math.inf, math.nan])
def test_a_time_is_above_zero(timed):
    with pytest.raises(ValueError, match="timed is"):
        quiz.Session(quiz.draw(0), timed=timed)


# What to reread


def headings():
    """Return number and title of every labelled heading of the chapters."""
    found = {}
    for path in sorted(BOOK.glob("0[1-9]*.ipynb")):
        chapter, section, label = int(path.name[:2]), 0, None
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else []
            for line in filter(str.strip, lines):
                if found_label := re.fullmatch(r"\(([\w-]+)\)=", line):
                    label = found_label[1]
                    continue
                if heading := re.fullmatch(r"(#{1,3}) (.*)", line):
                    depth, title = len(heading[1]), heading[2]
                    section += depth == 2
                    number = {1: f"chapter {chapter},", 2: f"{chapter}.{section}", 3: f"{chapter}.{section},"}
                    found[label] = f"{number[depth]} {title}"
                label = None
    return found


def test_sections_have_the_numbers_and_titles_of_the_book_in_its_order():
    book = headings()
    assert {label: book.get(label) for label in SECTIONS} == SECTIONS
    assert list(SECTIONS) == [label for label in book if label in SECTIONS]
    used = {label for entry in interview.entries() for label in entry.sections}
    used |= {label for kind in interview.KINDS for label in interview.numeric_question(kind, 0).sections}
    assert set(SECTIONS) == used


# The terminal


def run(*arguments, lines=()):
    text = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(cli.app, ["quiz", *arguments], input=text)


def script(drawn, answer):
    """Return the lines that answer these questions."""
    return [
        line for item in drawn for line in (["", answer(item)] if item.form == "open" else [answer(item)])
    ]


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_session_in_a_pipe(seed, tmp_path):
    drawn = quiz.draw(seed, 9)
    file = tmp_path / "quiz.json"
    result = run("--seed", str(seed), "--count", "9", "--json", str(file), lines=script(drawn, right))
    assert result.exit_code == 0, result.output
    assert "Score: 9 of 9." in result.output
    assert "Reread" not in result.output
    assert "No." not in result.output.splitlines()
    for place, item in enumerate(drawn, start=1):
        assert f"{place} of 9 · {item.topic}, level {item.level}" in result.output
        assert words(terminal(item.prompt)) in words(result.output)
        if item.form == "numeric" and item.unit:
            assert f"{item.unit} > " in result.output
    assert not re.search(r"[$\\{}]", result.output), "formulas are in plain text"
    record = json.loads(file.read_text())
    assert (record["points"], record["of"], record["asked"], record["seed"]) == (9, 9, 9, seed)
    assert [answer["id"] for answer in record["answers"]] == [item.id for item in drawn]
    assert [answer["given"] for answer in record["answers"]] == [right(item) for item in drawn]
    assert record["reread"] == []
    assert sum(topic["points"] for topic in record["topics"]) == 9
    again = run("--seed", str(seed), "--count", "9", lines=script(drawn, right))
    assert again.output == result.output


def test_wrong_answers_are_refuted_at_once_and_the_sections_named(tmp_path):
    drawn = quiz.draw(7, 4, form="choice")
    file = tmp_path / "quiz.json"
    options = ("--seed", "7", "--count", "4", "--kind", "choice", "--json", str(file))
    result = run(*options, lines=script(drawn, wrong))
    assert "Score: 0 of 4." in result.output
    for item in drawn:
        picked = item.options["abcdefgh".index(wrong(item))]
        true = next(option for option in item.options if not option.because)
        assert words(terminal(picked.because)) in words(result.output)
        assert f"Right is {right(item)}) {words(terminal(true.says))}" in words(result.output)
        for label in item.sections:
            assert f"  {SECTIONS[label]}\n" in result.output
    assert set(json.loads(file.read_text())["reread"]) == {label for item in drawn for label in item.sections}


def test_a_misreading_is_named():
    (item,) = drawn = quiz.draw(3, 1, form="numeric", topic="over-optimisation", level=2)
    trap = item.source.traps[0]
    options = ("--seed", "3", "--count", "1", "--kind", "numeric", "--topic", item.topic, "--level", "2")
    result = run(*options, lines=[f"{trap.value:.4g}"])
    assert f"No. {words(terminal(trap.says))} The answer is" in words(result.output)
    assert f"{item.source.answer:.4g} nats" in result.output
    assert drawn[0].topic in result.output


def test_hint_skip_and_an_answer_that_cannot_be_read():
    drawn = quiz.draw(5, 3, form="open")
    result = run("--seed", "5", "--count", "3", "--kind", "open", lines=["h", "s", "", "h", "9", "1", "q"])
    for item in drawn[:2]:
        assert words(terminal(item.hint)) in words(result.output)
    first, second = result.output.split("2 of 3 ·")
    assert "Skipped. A model answer:" in words(first)
    assert words(terminal(drawn[0].answer)) in words(first)
    assert words(terminal(drawn[0].rubric[0])) not in words(first), "the rubric comes after the answer"
    size = len(drawn[1].rubric)
    assert f"'9' is no point; numbers from 1 to {size}" in words(second)
    assert f"1 of {size}. A model answer:" in words(second)
    assert f"Score: {1 / size:.3g} of 2. 1 not reached." in result.output
    for label in drawn[1].sections:  # a part of the points is not all of them
        assert f"  {SECTIONS[label]}\n" in result.output
    assert result.exit_code == 0


def test_the_keys_may_be_words_and_an_empty_line_answers_open_questions_only():
    for form in ("numeric", "choice"):
        result = run("--seed", "5", "--count", "2", "--kind", form, lines=["", "HINT", "Skip", "quit"])
        assert words(result.output).count("An answer is expected, or h, s or q.") == 1
        assert "is no number" not in result.output
        assert "is none of" not in result.output
        assert "Score: 0 of 1. 1 not reached." in result.output
    result = run("--seed", "5", "--count", "1", "--kind", "open", lines=["", ""])
    assert "An answer is expected" not in result.output
    assert "Score: 0 of 1." in result.output


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_prints_plain_text_at_a_terminal(no_color):
    environment = {"NO_COLOR": no_color}
    arguments = ["quiz", "--seed", "5", "--count", "1", "--kind", "numeric"]
    result = CliRunner().invoke(cli.app, arguments, input="987654321\n", color=True, env=environment)
    assert "No." in result.output
    assert ("\x1b[" in result.output) == (not no_color)


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_the_end_of_the_input_ends_the_quiz_with_the_score_so_far(answered):
    drawn = quiz.draw(2, 3, form="numeric")
    lines = script(drawn, right)[:answered]
    for extra in ([], ["q", "1"]):
        result = run("--seed", "2", "--count", "3", "--kind", "numeric", lines=lines + extra)
        assert result.exit_code == 0
        assert "Traceback" not in result.output
        end = f"Score: {answered} of {answered}. {3 - answered} not reached."
        assert (end if answered else "No question was answered.") in result.output


def test_ctrl_c_ends_with_the_score_so_far_and_status_130(monkeypatch, tmp_path):
    drawn = quiz.draw(2, 3, form="numeric")
    lines = iter([right(drawn[0])])

    def pressed(prompt=""):
        for line in lines:
            return line
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", pressed)
    file = tmp_path / "quiz.json"
    result = run("--seed", "2", "--count", "3", "--kind", "numeric", "--json", str(file))
    assert result.exit_code == 130
    assert "Score: 1 of 1. 2 not reached." in result.output
    assert json.loads(file.read_text())["of"] == 1


def test_a_late_answer_is_said_to_be_late(monkeypatch):
    clock = Clock()
    drawn = quiz.draw(2, 2, form="numeric")
    lines = iter([(1, right(drawn[0])), (10, "what?"), (1, right(drawn[1]))])

    def slow(prompt=""):
        wait, line = next(lines)
        clock.now += wait
        return line

    monkeypatch.setattr("builtins.input", slow)
    monkeypatch.setattr(quiz, "Session", partial(quiz.Session, clock=clock))
    result = run("--seed", "2", "--count", "2", "--kind", "numeric", "--timed", "10")
    assert "10 seconds for each question." in result.output
    assert result.output.count("Too late: this counts nothing.") == 1
    assert "Score: 1 of 2." in result.output


def test_the_time_to_mark_oneself_does_not_count(monkeypatch):
    clock = Clock()
    lines = iter([(9, ""), (100, "all")])

    def slow(prompt=""):
        wait, line = next(lines)
        clock.now += wait
        return line

    monkeypatch.setattr("builtins.input", slow)
    monkeypatch.setattr(quiz, "Session", partial(quiz.Session, clock=clock))
    result = run("--seed", "2", "--count", "1", "--kind", "open", "--timed", "10")
    assert "Score: 1 of 1." in result.output


def test_a_new_seed_is_drawn_and_said():
    result = run("--count", "2", "--kind", "choice", lines=["s", "s"])
    seed = int(re.search(r"--seed (\d+)", result.output)[1])
    for item in quiz.draw(seed, 2, form="choice"):
        assert words(terminal(item.prompt)) in words(result.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--level", "4"), "--level"),
        (("--kind", "essay"), "--kind"),
        (("--count", "0"), "--count"),
        (("--topic", "cooking"), "topic is 'cooking'; one of basics, "),
        (("--kind", "choice", "--count", "26"), "count is 26; there are only 25"),
        (("--timed", "0"), "timed is 0"),
        (("--json", "no/such/folder/quiz.json"), "no/such/folder/quiz.json lies in a folder that does not"),
        (("--json", "."), ". is a folder"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line_before_any_question(arguments, message):
    result = run(*arguments, lines=["s"] * 9)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert result.stdout == ""


def test_a_record_that_cannot_be_written_leaves_the_old_one(monkeypatch, tmp_path):
    file = tmp_path / "quiz.json"
    file.write_text("old")

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(checkpoints.os, "replace", full)
    result = run("--count", "1", "--kind", "choice", "--json", str(file), lines=["s"])
    assert result.exit_code == 2
    assert "Score: 0 of 1." in result.stdout, "the score is shown all the same"
    assert "No space left on device" in result.stderr
    assert file.read_text() == "old"
