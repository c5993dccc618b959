"""No page, docstring or printed output says what the notes know to be wrong, unless it is listed as quoted.

Three kinds of words are quotations. What a claim of the ledger calls folklore and what the question bank
gives as a wrong answer are fields of their own, which the pages print under that name. Every other one
stands in `refuted.yaml`; only its exact words are taken out, so the text around it stays searched.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import known_wrong
import pytest
from known_wrong import WRONG, Refuted, plainly

from kltutor import claims, interview
from kltutor.interview import mathjax

ROOT = Path(__file__).parents[1]
BREAKS = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.)\s)|^:::+.*$|^```+.*$", re.MULTILINE)
HIDDEN = re.compile(r"<(style|script|pre|svg)\b.*?</\1>", re.DOTALL)
BOXES = re.compile(r"</?(?:p|div|li|ul|ol|td|th|tr|table|h\d|details|summary|section|br|dt|dd)\b[^>]*>")
REFUTED = known_wrong.read("refuted.yaml", Refuted)


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs, list items and table rows of a text in Markdown."""
    for part in BREAKS.split(text):
        if part and len(part.split()) > 1:
            yield re.sub(r"^\s*> ?", "", part, flags=re.MULTILINE) if part.lstrip().startswith(">") else part


def literals(source: str) -> Iterator[str]:
    """Yield the paragraphs of the strings of a program, docstrings among them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from paragraphs(node.value)


def notebook(path: Path) -> Iterator[str]:
    """Yield what a notebook says: its text, the strings of its code, and what the code printed."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        yield from paragraphs(source) if cell["cell_type"] == "markdown" else literals(source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            yield from paragraphs("".join(output.get("text", "")))
            for kind in ("text/plain", "text/markdown"):
                yield from paragraphs("".join(data.get(kind, "")))
            for box in BOXES.split(HIDDEN.sub("", "".join(data.get("text/html", "")))):
                yield from paragraphs(box)


@cache
def sayings() -> tuple[tuple[str, str], ...]:
    """Return file and plain text of everything that is said, each text once a file."""
    found: dict[tuple[str, str], None] = {}
    for path in (*ROOT.glob("book/*.ipynb"), *ROOT.glob("book/*.md"), *ROOT.glob("*.md")):
        read = notebook(path) if path.suffix == ".ipynb" else paragraphs(path.read_text(encoding="utf-8"))
        found |= {(path.name, plainly(text)): None for text in read}
    for path in ROOT.glob("kltutor/**/*.py"):
        name = path.relative_to(ROOT).as_posix()
        found |= {(name, plainly(t)): None for t in literals(path.read_text(encoding="utf-8"))}
    return tuple(found)


@cache
def quotations() -> tuple[str, ...]:
    """Return the folklore of the ledger and the wrong answers of the bank, as plain text, longest first."""
    folklore = [claim.folklore for claim in claims.all_claims() if claim.folklore]
    answers = [wrong.says for entry in interview.entries() for wrong in entry.wrong]
    return tuple(sorted({plainly(text) for text in (*folklore, *answers)}, key=len, reverse=True))


def own_words(page: str, line: str) -> str:
    """Return a text without the quotations in it."""
    for words in (*quotations(), *(plainly(quote.words) for quote in REFUTED if quote.page == page)):
        line = line.replace(words, "…")
    return line


def test_nothing_known_to_be_wrong_is_said_anywhere():
    complaints = [
        f"{page}: {rows}: {line}"
        for page, line in sayings()
        if known_wrong.found(line) and (rows := known_wrong.found(own_words(page, line)))
    ]
    assert complaints == [], (
        f"\n{chr(10).join(complaints)}\nReword it; or, if it is a quotation that the page refutes at once, "
        "list it in tests/refuted.yaml with the reason."
    )


# The search finds what it should, wherever it stands


@pytest.mark.parametrize("entry", WRONG, ids=[entry.rows for entry in WRONG])
def test_each_pattern_finds_its_wrong_sentences_and_lets_true_ones_pass(entry):
    assert len(entry.wrong) >= 2
    assert entry.right
    for sentence in entry.wrong:
        assert entry.rows in known_wrong.says(sentence), plainly(sentence)
        assert entry.rows in known_wrong.says(f"So *that* is settled. {sentence} And **then** some.")
    for sentence in entry.right:
        assert known_wrong.says(sentence) == [], plainly(sentence)


def test_every_wrong_row_of_the_notes_has_a_pattern():
    rows = {row for entry in WRONG for row in entry.rows.split()}
    assert {f"m:W{n:02}" for n in range(1, 21)} | {f"f:W{n:02}" for n in range(1, 26)} <= rows
    assert {row for row in rows if row.startswith("KL")} <= {claim.id for claim in claims.all_claims()}


@pytest.mark.parametrize("claim", claims.all_claims(), ids=lambda claim: claim.id)
def test_the_ledger_states_nothing_wrong_and_all_its_folklore_is_found(claim):
    assert known_wrong.says(claim.says) == []
    assert bool(claim.folklore) == (claim.verdict == "folklore is wrong")
    if claim.folklore:
        assert known_wrong.says(claim.folklore)


def cell(kind, source="", **output):
    outputs = [{"data": output}] if output and "text" not in output else [output]
    return {"cell_type": kind, "source": source} | ({"outputs": outputs} if output else {})


PLACES = {  # where a sentence of Markdown could hide in a notebook
    "text": lambda s: cell("markdown", f"(a-label)=\n## A title\n\nFirst this.\n{s}\nThen that."),
    "item": lambda s: cell("markdown", f"Two things:\n- one;\n- **{s.rstrip('.')}.**\n"),
    "quotation": lambda s: cell("markdown", "> " + textwrap.fill(s, 40).replace("\n", "\n> ")),
    "table": lambda s: cell("markdown", f"| a | b |\n|---|---|\n| 1 | {s.replace('|', '/')} |\n"),
    "admonition": lambda s: cell("markdown", f"```{{admonition}} Note\n:class: tip\n\n{s}\n```\n"),
    "wrapped": lambda s: cell("markdown", textwrap.fill(s, 24, break_on_hyphens=False)),
    "title": lambda s: cell("code", f"figures.finish(ax, title={s!r}, xlabel='x')"),
    "docstring": lambda s: cell("code", f"def f():\n    {'It is so. ' + s!r}\n    return 1\n"),
    "printed": lambda s: cell("code", "1", text=f"KL 0.1\n{s}\n"),
    "shown": lambda s: cell("code", "1", **{"text/markdown": f"A table.\n\n{s}\n"}),
    "html": lambda s: cell(
        "code", "1", **{"text/html": f"<div><p class='a'>{mathjax(s)}</p><p>So.</p></div>"}
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_sentence_is_found_wherever_it_stands(place, tmp_path):
    page = tmp_path / "page.ipynb"
    for entry in WRONG:
        page.write_text(json.dumps({"cells": [PLACES[place](entry.wrong[0])]}), encoding="utf-8")
        said = {rows for text in notebook(page) for rows in known_wrong.says(text)}
        assert entry.rows in said, list(notebook(page))


def test_every_kind_of_text_is_searched():
    pages = {page for page, _ in sayings()}
    assert {path.name for path in ROOT.glob("book/*.ipynb")} <= pages
    assert {"README.md", "notation.md", "kltutor/estimators.py", "kltutor/claims/dpo.py"} <= pages
    assert len(sayings()) > 10_000
    quoted = [line for page, line in sayings() if page == "errata.ipynb" and known_wrong.found(line)]
    assert len(quoted) > 60, "the errata page quotes folklore, and the search is to see it"


@pytest.mark.parametrize("quote", REFUTED, ids=lambda quote: f"{quote.page}: {quote.words[:40]}")
def test_each_listed_quotation_stands_on_its_page_and_needs_to_be_listed(quote):
    words = plainly(quote.words)
    assert known_wrong.found(words), f"no pattern finds {quote.words!r}: take it off the list"
    assert any(page == quote.page and words in line for page, line in sayings()), "no longer on its page"
    assert quote.because


def test_a_new_wrong_sentence_beside_a_listed_one_is_found():
    for quote in REFUTED:
        for entry in WRONG:
            line = f"{plainly(quote.words)} {plainly(entry.wrong[0])}"
            if plainly(entry.wrong[0]) not in quotations():
                assert entry.rows in known_wrong.found(own_words(quote.page, line)), (quote, entry.rows)
