"""The folded pages: every text of the bank once and in order, escaped, its claims and sections linked."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from kltutor import claims, interview, ledger
from kltutor.interview import bank, pages
from kltutor.interview.render import mathjax
from kltutor.interview.sections import SECTIONS

BOOK = Path(__file__).parents[1] / "book"
QUESTIONS = interview.questions()
ENTRIES = interview.entries()
VOID = {"br", "hr"}


class Tree(HTMLParser):
    """The texts and links of a page, each with the entry and folds around it; wrong nesting raises."""

    def __init__(self, text):
        """Read the text."""
        super().__init__(convert_charrefs=True)
        self.path, self.texts, self.links = [], [], []
        self.feed(text)
        self.close()
        assert self.path == []

    def handle_starttag(self, tag, attributes):
        """Go down."""
        found = dict(attributes)
        if tag in VOID:
            return
        self.path.append((tag, (found.get("class") or "").split(), found.get("id")))
        if tag == "a":
            self.links.append((found["href"], found.get("class", ""), self.owner()))

    def handle_endtag(self, tag):
        """Go up."""
        assert self.path.pop()[0] == tag

    def handle_data(self, data):
        """Note a text with the entry and the folds in which it stands."""
        if data.strip():
            folds = tuple(kind[1] for name, kind, _ in self.path if name == "details")
            self.texts.append((self.owner(), folds, tuple(name for name, *_ in self.path), data))

    def owner(self):
        """Return the id of the question or follow-up that is open."""
        return next((id for name, _, id in reversed(self.path) if name == "section"), None)

    def text(self, owner, *folds):
        """Return all that stands in these folds of an entry, without blanks."""
        return "".join(
            "".join(text.split()) for own, at, _, text in self.texts if (own, at) == (owner, folds)
        )


def squeezed(text):
    """Return a text of the bank as `Tree.text` returns it from a page."""
    return "".join(html.unescape(re.sub(r"<[^>]*>", "", mathjax(text))).split())


def level_page(level):
    return pages.as_html(interview.questions(level=level))


ALL = "\n".join(map(level_page, interview.LEVELS))
TREE = Tree(ALL)


def folds_of(entry):
    """Return the folds in which the parts of an entry stand."""
    return () if isinstance(entry, interview.Question) else ("fold-follow-ups",)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_every_part_of_an_entry_stands_in_its_fold_and_in_the_order_of_an_interview(entry):
    outer, id = folds_of(entry), entry.id.lower()
    text = {kind: TREE.text(id, *outer, f"fold-{kind}") for kind in ("hint", "rubric", "answer", "wrong")}
    assert TREE.text(id, *outer) == entry.id + squeezed(entry.question)
    assert text["hint"] == "Hint" + squeezed(entry.hint)
    heading = f"What a good answer has: {len(entry.rubric)} points".replace(" ", "")
    assert text["rubric"] == heading + "".join(map(squeezed, entry.rubric))
    answer, meta = text["answer"].split("Restson")
    assert answer == "Ananswer" + squeezed(entry.answer)
    badges, reread = meta.split("Readagain:")
    assert re.findall(r"KL-\d{3}", badges) == list(entry.claims)
    assert reread == ";".join("".join(SECTIONS[label].split()) for label in entry.sections)
    said = "".join(squeezed(wrong.says) for wrong in entry.wrong)
    assert re.sub(r"^\w+?commonwronganswers?", "", text["wrong"]) == said
    refuted = TREE.text(id, *outer, "fold-wrong", "fold-because")
    assert refuted == "".join("Whatrefutesit" + squeezed(wrong.because) for wrong in entry.wrong)
    kinds = ["fold-hint", "fold-rubric", "fold-answer", "fold-wrong"][: 3 + bool(entry.wrong)]
    opened = [at[len(outer)] for own, at, *_ in TREE.texts if own == id and len(at) > len(outer)]
    assert list(dict.fromkeys(opened)) == kinds + ["fold-follow-ups"] * (
        isinstance(entry, interview.Question)
    )


def test_every_entry_has_one_place_and_a_wrong_answer_stands_next_to_what_refutes_it():
    for level in interview.LEVELS:
        found = re.findall(r'<section class="[\w -]+" id="(\w+)"', level_page(level))
        expected = [e.id.lower() for q in interview.questions(level=level) for e in (q, *q.follow_ups)]
        assert found == expected
    told = [
        at[-1]
        for _, at, tags, _ in TREE.texts
        if "fold-wrong" in at and ("blockquote" in tags or "fold-because" in at)
    ]
    turns = [kind for kind, before in zip(told, ["", *told], strict=False) if kind != before]
    assert turns == ["fold-wrong", "fold-because"] * sum(len(entry.wrong) for entry in ENTRIES)
    for entry in ENTRIES:
        for wrong in entry.wrong:
            pair = f"<blockquote>{mathjax(wrong.says)}</blockquote>"
            after = ALL[ALL.index(pair) + len(pair) :].split("</details>")[0]
            assert ALL.count(pair) == 1
            assert after.endswith(f"<summary>What refutes it</summary>\n{mathjax(wrong.because)}\n")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_badges_lead_to_the_ledger_and_links_to_the_sections(entry):
    links = [(href, kind) for href, kind, owner in TREE.links if owner == entry.id.lower()]
    badges = [(href, kind) for href, kind in links if kind.startswith("claim")]
    found = [claims.get(id) for id in entry.claims]
    assert badges == [
        (f"{ledger.page(claim)}.html#{claim.id.lower()}", " ".join(("claim", *claim.classes)))
        for claim in found
    ]
    assert [href.split("#")[1] for href, kind in links if not kind] == list(entry.sections)


def test_no_macro_dollar_or_backtick_is_left_and_texts_are_escaped():
    assert not re.search(r"[$`]|\\(KL|E|Var|Cov|pol|refp)(?![A-Za-z])", ALL)
    assert ALL.count(r"\(") == ALL.count(r"\)") > 800
    tricky = QUESTIONS[0].model_copy(update={"question": "Is a < b & c? <script>x</script>"})
    text = pages.as_html([tricky])
    assert "Is a &lt; b &amp; c? &lt;script&gt;x" in text
    assert "<script" not in text
    with pytest.raises(ValueError, match="has several paragraphs; one is expected"):
        pages.as_html([tricky.model_copy(update={"question": "One.\nTwo."})])


def test_the_contents_list_every_question_under_its_level_by_topic():
    tree = Tree(pages.contents())
    hrefs = [href for href, *_ in tree.links]
    order = [
        q
        for level in bank.LEVELS
        for topic in bank.TOPICS
        for q in interview.questions(level=level, topic=topic)
    ]
    assert hrefs == [f"interview_{q.level}.html#{q.id.lower()}" for q in order]
    assert len(set(hrefs)) == len(QUESTIONS)
    for question in QUESTIONS:
        assert (
            f"{mathjax(question.question)[3:-4]}</a></td><td>{question.topic.capitalize()}</td>"
            in pages.contents()
        )
    with pytest.raises(ValueError, match="id is 'Q99'"):
        pages.address("Q99")


def output(path):
    """Return the HTML that a notebook holds."""
    return "\n".join(
        output.get("data", {}).get("text/html", "")
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
    )


@pytest.mark.parametrize("level", interview.LEVELS)
def test_the_notebook_of_a_level_shows_each_of_its_questions_under_its_topic(level):
    path = BOOK / f"interview_{level}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    assert output(path) == "\n".join(
        pages.as_html(interview.questions(level=level, topic=topic)) for topic in pages.topics(level)
    )
    titles = [cell.source.removeprefix("## ") for cell in cells if cell.source.startswith("## ")]
    assert titles == [topic.capitalize() for topic in pages.topics(level)]


def test_the_landing_page_shows_the_contents_and_every_page_names_the_other_forms():
    assert pages.contents() in output(BOOK / "09_interview.ipynb")
    for path in [BOOK / "09_interview.ipynb", *BOOK.glob("interview_?.ipynb"), BOOK / "practice.md"]:
        text = path.read_text(encoding="utf-8")
        assert all(f"`kltutor {command}" in text for command in ("quiz", "anki deck.apkg", "kata")), path.name
