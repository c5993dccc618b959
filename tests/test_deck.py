"""The deck, opened by Anki's own library: what is on the cards, and what a second import does."""

import html
import re
import sqlite3
import zipfile
from dataclasses import replace
from html.parser import HTMLParser

import genanki
import pytest
from anki.collection import Collection, ImportAnkiPackageOptions, ImportAnkiPackageRequest
from typer.testing import CliRunner

from kltutor import checkpoints, cli, interview
from kltutor.interview import deck, render

CARDS = deck.cards()
TEXTS = [(card.id, text) for card in CARDS for text in (card.front, card.hint, card.back, card.reread)]
THEN = 1_700_000_000.0
FORMULA = re.compile(r"\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


@pytest.fixture
def collection(tmp_path):
    opened = Collection(str(tmp_path / "collection.anki2"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("deck") / "kl.apkg"
    deck.save(CARDS, path, at=THEN)
    return path


def load(collection, path):
    """Import a package as Anki does, and return how many notes were new, changed and left as they were."""
    request = ImportAnkiPackageRequest(package_path=str(path), options=ImportAnkiPackageOptions())
    log = collection.import_anki_package(request).log
    assert not [*log.conflicting, *log.missing_notetype, *log.missing_deck, *log.empty_first_field]
    return len(log.new), len(log.updated), len(log.duplicate)


def fields(collection):
    """Return the fields of every note by its guid."""
    notes = [collection.get_note(id) for id in collection.find_notes("")]
    return {note.guid: tuple(note.fields) for note in notes}


def own(card):
    return genanki.guid_for("kltutor", card.id)


# What is on the cards


def test_every_question_wrong_answer_and_kind_of_number_has_its_cards():
    ids = [card.id for card in CARDS]
    assert len(set(ids)) == len(ids) >= 50
    entries = interview.entries()
    wrong = [f"{entry.id}-wrong-{n}" for entry in entries for n in range(1, len(entry.wrong) + 1)]
    numbers = [f"{kind}-{seed}" for kind in interview.KINDS for seed in (1, 2)]
    assert sorted(ids) == sorted([*(entry.id for entry in entries), *wrong, *numbers])


def test_levels_and_topics_part_the_deck():
    for name, values in (("level", interview.LEVELS), ("topic", interview.TOPICS)):
        parts = [deck.cards(**{name: value}) for value in values]
        assert sorted(card.id for part in parts for card in part) == sorted(card.id for card in CARDS)
        for value, part in zip(values, parts, strict=True):
            tag = f"level-{value}" if name == "level" else value
            assert part
            assert all(tag in card.tags for card in part)
    for card in CARDS:
        assert len(card.tags) == 3
        assert not any(" " in tag for tag in card.tags)


def squeezed(text):
    """Return a card's text without tags and blanks."""
    return "".join(re.sub(r"<[^>]*>", "", text).split())


def test_the_back_has_the_answer_and_the_front_does_not():
    by_id = {card.id: card for card in CARDS}
    for entry in interview.entries():
        card = by_id[entry.id]
        for text in (entry.answer, *entry.rubric):
            assert squeezed(render.mathjax(text)) in squeezed(card.back)
        assert squeezed(render.mathjax(entry.question)) in squeezed(card.front)
        assert squeezed(render.mathjax(entry.answer)) not in squeezed(card.front + card.hint)
        assert squeezed(render.mathjax(entry.hint)) == squeezed(card.hint)
        for number, wrong in enumerate(entry.wrong, start=1):
            card = by_id[f"{entry.id}-wrong-{number}"]
            assert squeezed(render.mathjax(wrong.says)) in squeezed(card.front)
            assert squeezed(render.mathjax(wrong.because)) == squeezed(card.back)
    for kind in interview.KINDS:
        for seed in (1, 2):
            question, card = interview.numeric_question(kind, seed), by_id[f"{kind}-{seed}"]
            shown = re.match(r"<p>\\\((\S+?)(?: \\cdot 10\^\{(\S+)\})?\\\)", card.back)
            assert question.right(float(f"{shown[1]}e{shown[2] or 0}"))
            assert question.unit in card.back
            assert all(squeezed(render.mathjax(trap.says)) in squeezed(card.back) for trap in question.traps)


class Tags(HTMLParser):
    """Collects what is wrong with the nesting of tags."""

    def __init__(self, text):
        """Read the text."""
        super().__init__()
        self.open, self.wrong = [], []
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        """Note a tag that opens."""
        if tag == "p" and "p" in self.open:
            self.wrong.append("p in p")
        self.open.append(tag)

    def handle_endtag(self, tag):
        """Note one that closes."""
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def broken(text):
    """Return what is wrong with the formulas and the HTML of a field."""
    rest = FORMULA.sub("", text)
    problems = ["dollar"] * ("$" in text) + ["delimiter"] * bool(re.search(r"\\[()\[\]]", rest))
    problems += ["latex outside"] * bool(re.search(r"[\\{}`]", rest)) + Tags(text).wrong
    for inline, display in FORMULA.findall(text):
        tex = html.unescape(inline or display)
        problems += ["delimiter inside"] * bool(re.search(r"\\[()\[\]]", tex))
        problems += ["tag inside"] * bool(re.search(r"[<>]", inline or display))
        problems += ["braces"] * (tex.count("{") != tex.count("}"))
        problems += ["macro"] * bool(re.search(r"\\(KL|E|Var|Cov|pol|refp)(?![A-Za-z])", tex))
        problems += ["cloze or field"] * bool(re.search(r"\{\{c\d+::|\{\{[A-Z]\w+\}\}", tex))
    return problems


def test_no_field_has_a_dollar_a_broken_formula_or_broken_html():
    assert [(id, broken(text)) for id, text in TEXTS if broken(text)] == []
    assert sum(len(FORMULA.findall(text)) for _, text in TEXTS) > 800
    for bad in (
        "$x$",
        r"\(x",
        r"x\)",
        r"\(\frac{1}{\)",
        r"\(\KL{p}{q}\)",
        r"<p>\(p < q\)</p>",
        "<p>a",
        "a</p>",
        "<p><ul></p></ul>",
        r"\(a \(b\)\)",
        r"\pi",
        "`x`",
        r"\[x\)",
        r"\(\E\)",
    ):
        assert broken(bad), bad


def test_mathjax_without_macros_can_set_every_formula(chromium, tmp_path):
    from test_interview import rendered

    formulas = {html.unescape(a or b) for _, text in TEXTS for a, b in FORMULA.findall(text)}
    assert rendered(chromium, formulas | {r"\frac{1}{"}, {}, tmp_path).keys() == {r"\frac{1}{"}


# Anki


def test_anki_opens_the_deck_and_a_second_import_adds_nothing(collection, package):
    size = len(CARDS)
    assert load(collection, package) == (size, 0, 0)
    assert load(collection, package) == (0, 0, size)
    assert (collection.note_count(), collection.card_count()) == (size, size)
    expected = {own(card): (card.front, card.hint, card.back, card.reread) for card in CARDS}
    assert fields(collection) == expected
    names = [each.name for each in collection.decks.all_names_and_ids()]
    assert names.count(deck.NAME) == 1
    assert len(collection.find_notes("tag:level-1 tag:question")) == 10
    assert collection.find_cards(f'deck:"{deck.NAME}"') == collection.find_cards("")


def test_the_cards_show_front_hint_answer_and_sections(collection, package):
    load(collection, package)
    by_guid = {own(card): card for card in CARDS}
    for id in collection.find_cards(""):
        shown = collection.get_card(id)
        card = by_guid[shown.note().guid]
        question, answer = shown.question(), shown.answer()
        assert card.front in question
        if card.hint:
            shut, hint = question.split(card.front)[1].split("display: none", 1)
            assert ">\nHint</a>" in shut
            assert card.hint in hint
        else:
            assert question.endswith(card.front)
        assert card.back not in question
        assert card.front in answer
        assert card.back in answer
        assert card.reread in answer


def test_a_new_deck_changes_the_texts_and_keeps_what_was_learnt(collection, package, tmp_path):
    load(collection, package)
    (note,) = (n for n in map(collection.get_note, collection.find_notes("")) if n.guid == own(CARDS[0]))
    learnt = note.cards()[0]
    learnt.type, learnt.queue, learnt.ivl, learnt.reps = 2, 2, 30, 7
    collection.update_card(learnt)
    changed = (replace(CARDS[0], back="<p>A better answer.</p>"), *CARDS[1:])
    deck.save(changed, tmp_path / "new.apkg", at=THEN + 86400)
    assert load(collection, tmp_path / "new.apkg") == (0, len(CARDS), 0)
    assert collection.note_count() == collection.card_count() == len(CARDS)
    note.load()
    learnt.load()
    assert note["Back"] == "<p>A better answer.</p>"
    assert (learnt.type, learnt.ivl, learnt.reps) == (2, 30, 7)
    load(collection, package)
    note.load()
    assert note["Back"] == "<p>A better answer.</p>", "an older deck takes nothing back"


def test_parts_and_the_whole_are_one_deck(collection, tmp_path):
    for chosen in ({"level": 1}, {"topic": "beta"}, {}):
        deck.save(deck.cards(**chosen), tmp_path / "kl.apkg", at=THEN)
        load(collection, tmp_path / "kl.apkg")
    assert collection.note_count() == len(CARDS)
    assert [each.name for each in collection.models.all_names_and_ids()].count(deck.NAME) == 1


def test_the_ids_by_which_anki_knows_deck_layout_and_cards_never_change(package, tmp_path):
    assert (deck.DECK, deck.MODEL) == (1732460125, 1732460126)
    assert deck.FIELDS == ("Front", "Hint", "Back", "Reread")
    with zipfile.ZipFile(package) as archive:
        archive.extract("collection.anki2", tmp_path)
    database = sqlite3.connect(tmp_path / "collection.anki2")
    guids = [guid for (guid,) in database.execute("select guid from notes order by id")]
    models = {mid for (mid,) in database.execute("select mid from notes")}
    decks = {did for (did,) in database.execute("select did from cards")}
    modified = {mod for (mod,) in database.execute("select mod from notes")}
    database.close()
    assert (models, decks, modified) == ({deck.MODEL}, {deck.DECK}, {int(THEN)})
    by_id = dict(zip((card.id for card in CARDS), guids, strict=True))
    assert {id: by_id[id] for id in KNOWN} == KNOWN
    assert len(set(guids)) == len(CARDS)


KNOWN = {"Q01": "zQ?RAb`:_a", "Q13b": "OJJj]N[I;R", "Q04-wrong-2": "qpTy9OXr)0", "kl-1": "hq:6O[n{cy"}


# The file


def anki(*arguments):
    return CliRunner().invoke(cli.app, ["anki", *map(str, arguments)])


def test_the_command_writes_the_deck_and_says_how_many_cards(collection, tmp_path):
    path = tmp_path / "kl.apkg"
    result = anki(path, "--level", "2", "--topic", "preference")
    size = len(deck.cards(level=2, topic="preference"))
    assert (result.exit_code, result.output) == (0, f"{size} cards are in {path}. In Anki: File, Import.\n")
    assert load(collection, path) == (size, 0, 0)
    assert [each.name for each in tmp_path.glob("*.apkg*")] == ["kl.apkg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kl.zip",), "OUT is kl.zip; a name in .apkg is expected"),
        (("no/folder/kl.apkg",), "no/folder/kl.apkg lies in a folder that does not exist"),
        ((".",), ". is a folder"),
        (("kl.apkg", "--topic", "cooking"), "topic is 'cooking'"),
        (("kl.apkg", "--level", "0"), "--level"),
        ((), "OUT.apkg"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = anki(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "kl.apkg"
    path.write_bytes(b"old")

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", full)
        assert "No space left on device" in anki(path, "--level", "3").stderr
    with monkeypatch.context() as patch:
        patch.setattr(genanki.Package, "write_to_db", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            deck.save(CARDS, path)
    assert path.read_bytes() == b"old"


def test_the_same_cards_at_the_same_time_are_the_same_bytes_and_leave_no_other_file(
    package, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    deck.save(CARDS, tmp_path / "again.apkg", at=THEN)
    assert (tmp_path / "again.apkg").read_bytes() == package.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.apkg"]


def test_two_cards_of_one_id_are_refused(tmp_path):
    for cards in ((), (CARDS[0], CARDS[0])):
        with pytest.raises(ValueError, match="one id a card is expected"):
            deck.save(cards, tmp_path / "kl.apkg")
    assert list(tmp_path.iterdir()) == []
