"""Katas in the chapters: each stands once, where its section is; the attempt fails, the solution passes."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import torch

from kltutor import masking
from kltutor.katas import all_katas, get

BOOK = Path(__file__).parents[1] / "book"
CHAPTERS = sorted(BOOK.glob("0[1-8]_*.ipynb"))
KATAS = all_katas()
NAMES = [kata.name for kata in KATAS]
GRADING = re.compile(r'katas\.get\("(\w+)"\)\.grade\((my_\w+)\)\s*')
EXERCISE = re.compile(r"^`{4,}\{exercise\} .*\n:label: (\S+)", re.M)
HIDDEN = {"nbval-ignore-output", "hide-input", "remove-input", "remove-cell"}


@dataclass
class Given:
    """An exercise as it stands in a chapter: the grading cells, and the code before each of them."""

    chapter: int
    label: str
    text: str
    graded: list  # (cell, name of the function, its code), first what is given, then what is shown
    solved: str  # label of the solution in which the second one stands


def chapter_of(path):
    return int(path.name[:2])


def read(path):
    """Return the katas of a chapter by name, found by the cells that grade them."""
    found, exercise, label, solution, previous = {}, "", "", "", None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for each in EXERCISE.finditer(cell.source):
                label, exercise = each.group(1), cell.source[each.start() :]
            for name, wanted in re.findall(r"\{solution-(start|end)\} ?(\S*)", cell.source):
                solution = wanted if name == "start" else ""
            continue
        graded = GRADING.search(cell.source)
        if graded and graded.end() == len(cell.source):  # a bare call: hidden checks go on after it
            kata, function = graded.groups()
            code = cell.source[: graded.start()] or previous.source
            entry = found.setdefault(kata, Given(chapter_of(path), label, exercise, [], solution))
            entry.graded.append((cell, function, code))
            entry.solved = solution
            assert label == entry.label, f"{kata} is graded in two exercises"
        previous = cell
    return found


PAGES = {path: read(path) for path in CHAPTERS}
EXERCISES = {name: given for katas in PAGES.values() for name, given in katas.items()}


def test_each_kata_stands_in_exactly_one_chapter_and_it_is_that_of_its_section():
    places = [(name, path) for path, katas in PAGES.items() for name in katas]
    assert sorted(name for name, _ in places) == sorted(NAMES)
    for name, path in places:
        assert chapter_of(path) == int(get(name).section.split(".")[0]), (name, path.name)


def run(code, function):
    """Return a function of that name, from code that has no more than its chapter imports."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as all chapters do
    try:
        space = {"torch": torch, "math": math, "last_action": masking.last_action}
        exec(code, space)
    finally:
        torch.set_default_dtype(before)
    return space[function]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_given_is_a_known_mistake_and_what_is_shown_is_right(name):
    given = EXERCISES[name]
    assert len(given.graded) == 2, f"{name}: one attempt and one solution"
    (_, function, attempt), (_, again, solution) = given.graded
    assert function == again
    kata = get(name)
    wrong, right = kata.grade(run(attempt, function)), kata.grade(run(solution, function))
    assert not wrong.right
    assert wrong.misconception, f"{name}: the attempt teaches nothing: {wrong}"
    assert right.right, right.message


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_code_and_the_grade_that_it_gets(name):
    given = EXERCISES[name]
    for (cell, function, code), shown in zip(given.graded, ("Not yet. ", ""), strict=True):
        assert not HIDDEN & set(cell.metadata.get("tags", []))
        grade = get(name).grade(run(code, function))
        (output,) = cell.outputs
        assert output.data["text/plain"] == shown + grade.message
        assert output.data["text/html"] == grade._repr_html_()
    assert given.solved == given.label, "the solution stands folded under its own exercise"


@pytest.mark.parametrize("name", NAMES)
def test_no_solution_calls_the_packages_own_function(name):
    for _, _, code in EXERCISES[name].graded:
        assert not re.search(rf"(?<![\w.]){name}\(", code)
        assert "katas" not in code


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_with_katas_says_once_how_to_do_them_in_a_terminal(path):
    text = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
    )
    started = re.findall(r"`kltutor kata start (\w+)`", text)
    checked = re.findall(r"`kltutor kata check (\w+)`", text)
    assert started == checked
    assert len(started) == bool(PAGES[path])
    assert set(started) <= set(PAGES[path])
    assert len(EXERCISE.findall(text)) <= 8
