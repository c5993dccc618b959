"""The practice page in a browser, offline from file://: cards, schedule, files, keys, mock interview."""

import functools
import hashlib
import itertools
import json
import os
import random
import re
import unicodedata
from collections import Counter
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import fsrs
import pytest
from widget_page import listen, violations

from kltutor import interview
from kltutor.interview import deck, pages, practice

pytestmark = pytest.mark.book

BOOK = Path(__file__).parents[1] / "book"
HTML = Path(os.environ.get("KLTUTOR_BOOK", BOOK / "_build" / "html"))
SOURCE = BOOK / "_ext" / "static" / "practice"
CARDS = {card.id: card for card in deck.cards()}
NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)
SEED = "2027-3-1"
MINUTE, DAY = 60_000, 86_400_000
FORMULA = re.compile(r"\\\(|\\\[")
DARK = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}


def stamp(moment):
    return round(moment.timestamp() * 1000)


class Desk:
    """A reader's browser, with its own storage and clock, at the practice page."""

    def __init__(self, chromium, script="", at=NOON, **options):
        """Open the page."""
        self.context = chromium.new_context(
            offline=True, timezone_id="UTC", reduced_motion="reduce", **options
        )
        if script:
            self.context.add_init_script(script)
        self.page = self.context.new_page()
        self.heard = listen(self.page)
        self.page.clock.install(time=at)
        self.open()

    def open(self):
        """Go to the page, or come back to it."""
        self.page.goto((HTML / "practice.html").as_uri())
        self.page.wait_for_selector("#practice-cards .practice-card p")
        self.cards, self.mock = self.page.locator("#practice-cards"), self.page.locator("#practice-mock")

    def close(self):
        """Nothing may have left the disk, and no script may have failed."""
        assert [words for words in self.heard if "theme mode" not in words] == []
        self.context.close()

    def press(self, *keys):
        """Press keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def button(self, name, place=None):
        """Return the button that says so."""
        return (place or self.cards).get_by_role("button", name=name)

    def choose(self, **wanted):
        """Set the menus: level, topic, kind."""
        for name, value in wanted.items():
            self.page.select_option(f"#practice-{name}", value)

    def reviews(self):
        """Return what the browser keeps."""
        text = self.page.evaluate("localStorage.getItem('kltutor-practice')")
        return json.loads(text)["reviews"] if text else {}

    def shown(self):
        """Return the front of the card that is shown."""
        return self.cards.locator(".practice-front").evaluate("front => front.textContent")

    def grade(self, number):
        """Reveal and grade the card that is shown, by keys."""
        self.cards.locator(".practice-card").focus()
        self.press("Space", str(number))

    def counts(self):
        """Return how many cards are in each state, as the page says."""
        text = self.cards.locator(".practice-counts").inner_text()
        return {name: int(number) for number, name in re.findall(r"(\d+) (due|new|learning|learnt)", text)}

    def says(self, place=None):
        """Return what a screen reader heard last."""
        return (place or self.cards).locator(".practice-message").inner_text()

    def load(self, name, text):
        """Give the page a file of progress."""
        file = {"name": name, "mimeType": "application/json", "buffer": text.encode()}
        self.page.set_input_files("#practice-cards input[type=file]", file)
        self.page.wait_for_function(
            "name => /Loaded|was not loaded/.test(document.querySelector('.practice-message').textContent)",
            arg=name,
        )

    def save(self):
        """Return the name and the text of the file that the page saves."""
        with self.page.expect_download() as download:
            self.button("Save progress").click()
        return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")

    def core(self, call, *arguments):
        """Return what a function of core.js returns."""
        return self.page.evaluate(f"a => PracticeCore.{call}(...a)", list(arguments))


@pytest.fixture
def desk(chromium):
    desks = []

    def opened(**options):
        desks.append(Desk(chromium, **options))
        return desks[-1]

    yield opened
    for one in desks:
        one.close()


@pytest.fixture(scope="module")
def still(chromium):
    """One page for what the functions of core.js compute."""
    one = Desk(chromium)
    yield one
    one.close()


# What the page holds


def held():
    text = (HTML / "practice.html").read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="practice-data">(.*?)</script>', text)[1]
    )


def test_the_library_is_the_file_of_the_npm_package_and_its_licence_is_there():
    code = (SOURCE / "ts-fsrs.umd.js").read_bytes()
    readme = (SOURCE / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(code).hexdigest() in readme
    assert "ts-fsrs 5.4.2" in readme
    assert "MIT License" in (SOURCE / "ts-fsrs.LICENSE").read_text(encoding="utf-8")
    assert (HTML / "_static" / "practice" / "ts-fsrs.umd.js").read_bytes() == code


def test_only_this_page_has_scripts_and_cards_and_they_are_those_of_the_deck():
    for path in HTML.glob("*.html"):
        assert ("_static/practice/" in path.read_text(encoding="utf-8")) == (path.name == "practice.html")
    found = held()
    assert found == json.loads(json.dumps(practice.data()))
    assert [card["id"] for card in found["cards"]] == list(CARDS)
    for card in found["cards"]:
        theirs = CARDS[card["id"]]
        assert (card["front"], card["hint"], card["back"]) == (theirs.front, theirs.hint, theirs.back)
        assert (f"level-{card['level']}", card["topic"], card["kind"]) == theirs.tags
    for card, question in zip(found["questions"], interview.questions(), strict=True):
        assert (card["id"], card["level"], card["topic"]) == (question.id, question.level, question.topic)
        assert len(card["rubric"]) == len(question.rubric)
        assert card["href"] == pages.address(question.id)


def test_every_link_leads_to_a_place_in_the_book():
    @functools.cache
    def ids(name):
        return set(re.findall(r'\bid="([^"]+)"', (HTML / name).read_text(encoding="utf-8")))

    found = held()
    links = {href for card in found["cards"] for href, _ in card["reread"]}
    links |= {question["href"] for question in found["questions"]}
    assert len(links) > 60
    assert [link for link in links if link.split("#")[1] not in ids(link.split("#")[0])] == []
    for name in ["09_interview.html", *(f"interview_{level}.html" for level in interview.LEVELS)]:
        text = (HTML / name).read_text(encoding="utf-8")
        places = re.findall(r'<a (?:class="claim [^"]*" )?href="(\w+\.html)#([\w-]+)"', text)
        assert len(places) > 20
        assert [(page, id) for page, id in places if id not in ids(page)] == []


def test_every_formula_of_every_card_is_set(still):
    texts = [text for card in CARDS.values() for text in (card.front, card.hint, card.back)]
    texts += [part for q in held()["questions"] for part in (q["front"], q["back"], *q["rubric"])]
    set_, errors = still.page.evaluate(
        """async texts => {
            await MathJax.startup.promise;
            const place = document.createElement("div");
            place.className = "mathjax_process";
            place.innerHTML = texts.join("\\n");
            await MathJax.typesetPromise([place]);
            return [place.querySelectorAll("mjx-container").length,
                place.querySelectorAll("mjx-merror, [data-mjx-error]").length]; }""",
        texts,
    )
    assert errors == 0
    assert set_ == sum(len(FORMULA.findall(text)) for text in texts) > 900


# Order and schedule


def hashed(text):
    """FNV-1a with the finaliser of MurmurHash3, once more."""
    bits = 0x811C9DC5
    for byte in text.encode():
        bits = (bits ^ byte) * 0x01000193 % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * factor % 2**32
    return bits ^ (bits >> 16)


def shuffled(ids, seed):
    return sorted(ids, key=lambda id: (hashed(f"{seed}:{id}"), id))


def test_new_cards_come_in_the_order_of_day_and_id_and_due_ones_before_them(still):
    cards = [{"id": id} for id in CARDS]
    for seed in (SEED, "2027-3-2"):
        assert [card["id"] for card in still.core("deal", cards, {}, 0, seed)] == shuffled(CARDS, seed)
    assert shuffled(CARDS, SEED) != shuffled(CARDS, "2027-3-2")
    now = stamp(NOON)
    reviews = {
        "Q01": [[now - 60 * DAY, 3]],
        "Q02": [[now - 90 * DAY, 3]],
        "Q03": [[now - 5, 3]],
        "Q04": [[now - 5, 4]],
    }
    dealt = [card["id"] for card in still.core("deal", cards, reviews, now, SEED)]
    assert dealt == ["Q02", "Q01", *(id for id in shuffled(CARDS, SEED) if id not in reviews)]
    counts = still.core("counts", cards, reviews, now)
    assert counts == {"due": 2, "new": len(CARDS) - 4, "learning": 1, "learnt": 1}
    assert still.core("nextDue", cards, reviews, now) == now - 5 + 10 * MINUTE
    assert still.core("nextDue", cards, {}, now) is None
    back = now - 5 + 10 * MINUTE
    assert still.core("counts", cards, reviews, back - 1)["due"] == 2
    assert still.core("counts", cards, reviews, back)["due"] == 3
    assert still.core("nextDue", cards, reviews, back) > back


def histories(count, seed=1):
    """Reviews at moments that fall on the same day for who counts calendar days and who counts 24 hours."""
    rng = random.Random(seed)
    for _ in range(count):
        day, history = 0, []
        for minute in range(10):
            at = NOON + timedelta(days=day, minutes=7 * minute)
            history.append([stamp(at), rng.choice([1, 2, 3, 3, 4])])
            day += rng.choice([0, 0, 1, 2, 5, 11, 30, 90])
        yield history


def test_the_schedule_is_that_of_another_implementation_of_fsrs_6(still):
    """py-fsrs has the same parameters. It differs in two rules, which are applied to it here.

    Between days ts-fsrs keeps the four grades apart: Hard at most Good, Good and Easy each a day more at
    least. Within the first steps Hard waits 6 minutes, not 5.5 or 10; those are not compared.
    """
    scheduler = fsrs.Scheduler(enable_fuzzing=False)
    assert still.page.evaluate("FSRS.fsrs().parameters.w") == list(scheduler.parameters)
    assert still.page.evaluate("FSRS.fsrs().parameters.enable_fuzz") is False
    found = list(histories(60))
    theirs = still.page.evaluate(
        """found => found.map(history => history.map((_, i) => {
            const card = PracticeCore.scheduled(history.slice(0, i + 1));
            return [card.stability, card.difficulty, card.state, card.due.getTime()]; }))""",
        found,
    )
    compared = 0
    for history, states in zip(found, theirs, strict=True):
        card = fsrs.Card()
        for (at, grade), (stability, difficulty, state, due) in zip(history, states, strict=True):
            moment = datetime.fromtimestamp(at / 1000, UTC)
            four = {i: scheduler.review_card(card, fsrs.Rating(i), moment)[0] for i in (1, 2, 3, 4)}
            before, card = card, four[grade]
            assert card.stability == pytest.approx(stability, rel=1e-6)
            assert card.difficulty == pytest.approx(difficulty, abs=1e-6)
            assert card.state.value == state
            if before.state is fsrs.State.Review:
                again, hard, good, easy = ((four[i].due - moment) / timedelta(days=1) for i in (1, 2, 3, 4))
                good_ = max(good, min(hard, good) + 1)
                wait = {1: again, 2: min(hard, good), 3: good_, 4: max(easy, good_ + 1)}[grade]
                assert (due - at) / DAY == pytest.approx(wait)
                compared += 1
    assert compared > 150


def test_the_waiting_times_on_the_buttons_are_those_that_follow(still):
    now = stamp(NOON)
    for history in [[], *(history[: 2 + i % 8] for i, history in enumerate(histories(20, seed=2)))]:
        later = max(now, history[-1][0] + DAY) if history else now
        waits = still.core("preview", history, later)
        for grade, wait in enumerate(waits, start=1):
            then = still.page.evaluate(
                "h => PracticeCore.scheduled(h).due.getTime()", [*history, [later, grade]]
            )
            assert then - later == wait
        assert waits == sorted(waits)
    spans = [0, MINUTE, 10 * MINUTE, 90 * MINUTE, DAY, 8 * DAY, 100 * DAY, 800 * DAY]
    said = [still.core("span", span) for span in spans]
    assert said == ["1 min", "1 min", "10 min", "2 h", "1 day", "8 days", "3 months", "2 years"]


def test_a_clock_that_goes_back_does_not_break_the_order_of_reviews(still):
    now = stamp(NOON)
    reviews = still.core("graded", {"Q01": [[now, 3]]}, "Q01", 4, now - DAY)
    assert reviews == {"Q01": [[now, 3], [now + 1, 4]]}
    assert still.core("read", still.core("write", reviews), now) == reviews


# A reader at the cards


def test_a_card_is_answered_graded_and_kept_over_a_reload(desk):
    one = desk()
    first, second, third = shuffled(CARDS, SEED)[:3]
    assert one.counts() == {"due": 0, "new": len(CARDS), "learning": 0, "learnt": 0}
    assert same(one.shown(), CARDS[first].front)
    assert one.cards.locator(".practice-back").count() == 0  # an answer is not in the page before its time
    one.button("Show the answer").click()
    assert same(
        one.cards.locator(".practice-back").evaluate("b => b.firstElementChild.textContent"),
        re.match(r"<p>.*?</p>", CARDS[first].back)[0],
    )
    one.button("Good").click()
    assert same(one.shown(), CARDS[second].front)
    assert "Good: that card comes back in 10 min." in one.says()
    one.grade(4)
    kept = one.reviews()
    assert {id: [grade for _, grade in history] for id, history in kept.items()} == {first: [3], second: [4]}
    one.open()
    assert one.reviews() == kept
    assert one.counts() == {"due": 0, "new": len(CARDS) - 2, "learning": 1, "learnt": 1}
    assert "next back in 10 min" in one.cards.locator(".practice-counts").inner_text()
    assert same(one.shown(), CARDS[third].front)
    one.page.clock.fast_forward(11 * MINUTE)
    one.grade(1)  # the card that was on the screen, although another has become due
    assert same(one.shown(), CARDS[first].front)
    assert one.reviews()[third][0][1] == 1


def same(shown, text):
    """Whether a text of the page is that of a card, formulas aside, which may be set or not yet."""

    def words(html):
        plain = re.sub(r"\\\(.*?\\\)|\\\[.*?\\\]|<[^>]*>", " ", html, flags=re.DOTALL)
        return re.findall(r"[A-Za-z]{4,}", plain.replace("&lt;", "").replace("&gt;", "").replace("&amp;", ""))

    return [word for word in words(text) if word not in words(shown)] == []


@pytest.mark.parametrize("by", ["key", "button"])
def test_each_grade_is_the_one_its_key_and_its_button_say(desk, by):
    one = desk()
    for number, word in enumerate(["Again", "Hard", "Good", "Easy"], start=1):
        id = shuffled(CARDS, SEED)[number - 1]
        one.button("Show the answer").click()
        labels = one.cards.locator(".practice-grades button").all_inner_texts()
        assert [label.split()[:2] for label in labels] == [
            ["1", "Again"],
            ["2", "Hard"],
            ["3", "Good"],
            ["4", "Easy"],
        ]
        if by == "key":
            one.press(str(number))
        else:
            one.button(word).click()
        assert [grade for _, grade in one.reviews()[id]] == [number]


def test_by_keys_alone_and_no_key_is_taken_from_what_needs_it(desk):
    one = desk()
    one.page.focus("#practice-level")
    one.press("1", "Space", "Escape", "h")
    assert one.page.evaluate("document.querySelectorAll('.practice-back, .practice-hint-text').length") == 0
    one.choose(level="", kind="question")
    one.page.focus("#practice-kind")
    one.press("Tab")
    assert one.page.evaluate("document.activeElement.textContent").startswith("Hint")
    one.press("3", "4")  # nothing to grade yet
    assert one.reviews() == {}
    one.press("h")
    hint = one.cards.locator(".practice-hint-text")
    assert same(hint.inner_text(), CARDS[shuffled([i for i in CARDS if len(i) == 3], SEED)[0]].hint)
    assert one.page.evaluate("document.activeElement.className") == "practice-hint-text"
    one.press("h", "Enter")
    assert one.page.evaluate("document.activeElement.className") == "practice-back"
    one.press("Control+3", "Alt+3", "x")
    assert one.reviews() == {}
    one.page.focus("#practice-topic")
    one.press("3")  # in a menu a digit is the menu's
    assert one.reviews() == {}
    one.cards.locator(".practice-back").focus()
    one.press("3")
    assert len(one.reviews()) == 1
    assert one.page.evaluate("document.activeElement.className") == "practice-card"
    one.press("Tab", "Enter")  # on the button for the hint, Enter is the button's
    assert one.cards.locator(".practice-hint-text").count() == 1
    assert one.cards.locator(".practice-back").count() == 0


def test_filters_choose_and_count_and_an_empty_choice_says_so(desk):
    one = desk()
    combinations = [
        ("", "", ""),
        ("3", "", ""),
        ("", "beta", ""),
        ("", "", "number"),
        ("1", "basics", "wrong-answer"),
    ]
    for level, topic, kind in combinations:
        one.choose(level=level, topic=topic, kind=kind)
        wanted = {f"level-{level}" if level else "", topic, kind} - {""}
        ids = [id for id, card in CARDS.items() if wanted <= set(card.tags)]
        assert ids
        assert one.counts()["new"] == len(ids)
        assert same(one.shown(), CARDS[shuffled(ids, SEED)[0]].front)
    one.choose(level="1", topic="practice", kind="question")
    assert not [card for card in CARDS.values() if {"level-1", "practice", "question"} <= set(card.tags)]
    assert "No card is of this level" in one.cards.locator(".practice-nothing").inner_text()
    one.press("Space", "3")
    assert one.reviews() == {}


def test_when_all_are_done_it_says_when_the_next_comes_and_then_shows_it(desk):
    one = desk()
    one.choose(level="3", topic="practice", kind="question")
    one.grade(1)
    nothing = one.cards.locator(".practice-nothing")
    assert "in 1 min, at 12:01" in nothing.inner_text()
    assert one.counts() == {"due": 0, "new": 0, "learning": 1, "learnt": 0}
    one.page.clock.fast_forward(66_000)
    assert nothing.count() == 0
    assert one.counts()["due"] == 1
    one.grade(4)
    assert re.search(r"in \d+ days?, on \d+ March 2027", nothing.inner_text())
    assert one.counts()["learnt"] == 1


def test_two_windows_lose_no_review(desk):
    one = desk()
    other = one.context.new_page()
    heard = listen(other)
    other.clock.install(time=NOON)
    other.goto((HTML / "practice.html").as_uri())
    other.get_by_role("button", name="Show the answer").first.click()
    other.get_by_role("button", name="Easy").click()
    one.page.wait_for_function("/1 learnt/.test(document.querySelector('.practice-counts').textContent)")
    one.choose(kind="number")
    one.grade(2)
    assert sorted(grade for history in one.reviews().values() for _, grade in history) == [2, 4]
    unheard = {**one.reviews(), "Q01": [[stamp(NOON), 1]]}  # written, but the page has not been told yet
    one.page.evaluate("text => localStorage.setItem('kltutor-practice', text)", progress(unheard))
    one.grade(3)
    assert sorted(grade for history in one.reviews().values() for _, grade in history) == [1, 2, 3, 4]
    assert [words for words in heard if "theme mode" not in words] == []


# Files


def progress(reviews, **changed):
    return json.dumps({"format": "kltutor practice", "version": 1, "reviews": reviews} | changed)


def test_progress_goes_by_file_to_another_browser_and_joins_what_is_there(desk):
    one, other = desk(), desk()
    for grade in (3, 4, 1):
        one.grade(grade)
    name, text = one.save()
    assert name == "kltutor-practice.json"
    assert json.loads(text)["reviews"] == one.reviews()
    other.load(name, text)
    assert other.reviews() == one.reviews()
    assert other.counts() == one.counts()
    assert "Loaded 3 reviews" in other.says()
    other.load(name, text)  # once more changes nothing
    assert "Loaded 0 reviews" in other.says()
    assert other.reviews() == one.reviews()
    first = next(iter(one.reviews()))
    other.page.clock.fast_forward(DAY)
    mine = dict(other.reviews())
    late, early = stamp(NOON) + 3 * MINUTE, stamp(NOON) - DAY
    other.load("more.json", progress({first: [[early, 2], [late, 4]], "Q99": [[early, 1]]}))
    joined = {**mine, first: sorted([*mine[first], [early, 2], [late, 4]]), "Q99": [[early, 1]]}
    assert other.reviews() == joined
    assert "Loaded 3 reviews" in other.says()
    assert "not in this book: 1" in other.says()
    other.open()
    assert other.reviews() == joined


NOW = stamp(NOON)
BAD = {
    "no JSON": ("{", "it is not JSON"),
    "a foreign file": ('{"cards": []}', "it was not written by this page"),
    "a list": ("[1, 2]", "it was not written by this page"),
    "a number": ("3", "it was not written by this page"),
    "null": ("null", "it was not written by this page"),
    "a later version": (progress({}, version=2), "it has version 2; this page reads version 1"),
    "no reviews": (progress([]), "it holds no reviews"),
    "no card's name": (progress({"<b>": [[NOW, 1]]}), "<b>: this is no card's name"),
    "a prototype": (
        progress({}).replace("{}", '{"__proto__": [[1, 1]]}'),
        "__proto__: this is no card's name",
    ),
    "no list": (progress({"Q01": 3}), "Q01: a list of reviews is expected"),
    "an empty list": (progress({"Q01": []}), "Q01: a list of reviews is expected"),
    "no pair": (progress({"Q01": [[NOW]]}), "Q01: a review is a time and a grade"),
    "grade 5": (progress({"Q01": [[NOW, 5]]}), "Q01: a grade is 1, 2, 3 or 4"),
    "a grade in words": (progress({"Q01": [[NOW, "3"]]}), "Q01: a grade is 1, 2, 3 or 4"),
    "a fraction of a millisecond": (progress({"Q01": [[NOW - 0.5, 3]]}), "Q01: times in milliseconds"),
    "out of order": (progress({"Q01": [[NOW, 3], [NOW - 1, 3]]}), "Q01: times in milliseconds"),
    "the future": (progress({"Q01": [[NOW + 2 * DAY, 3]]}), "Q01: a review lies in the future"),
    "one good, one bad": (progress({"Q02": [[NOW, 3]], "Q01": [[NOW, 0]]}), "Q01: a grade is 1, 2, 3 or 4"),
}


def test_a_bad_or_foreign_file_is_refused_and_changes_nothing(desk):
    one = desk()
    one.grade(3)
    before = one.page.evaluate("localStorage.getItem('kltutor-practice')")
    counts = one.counts()
    ((id, [(at, _)]),) = one.reviews().items()
    other_grade = (progress({id: [[at, 1]]}), f"{id}: it has another grade for a review made here")
    for text, why in [*BAD.values(), other_grade]:
        one.load("bad.json", text)
        assert one.says().startswith(f"bad.json was not loaded: {why}"), text
        assert one.says().endswith("Nothing has changed.")
        assert one.page.evaluate("localStorage.getItem('kltutor-practice')") == before
        assert one.counts() == counts
        one.page.evaluate("document.querySelector('.practice-message').textContent = ''")


def test_forgetting_asks_first(desk):
    one = desk()
    one.grade(3)
    asked = []
    one.page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    one.button("Forget all").click()
    assert asked == ["Forget 1 review? Only a file that you have saved brings them back."]
    assert len(one.reviews()) == 1
    one.page.once("dialog", lambda dialog: dialog.accept())
    one.button("Forget all").click()
    assert one.reviews() == {}
    assert one.counts()["new"] == len(CARDS)
    one.open()
    assert one.counts()["new"] == len(CARDS)


DENIED = """Object.defineProperty(Storage.prototype, 'setItem', {value(key) {
    if (key.startsWith('kltutor')) throw new DOMException('denied', 'SecurityError') }})"""


def test_without_storage_it_says_so_and_goes_on(desk):
    one = desk(script=DENIED)
    assert "keeps nothing for this page" in one.says()
    one.grade(4)
    assert one.counts()["learnt"] == 1
    assert "keeps nothing for this page" in one.says()
    assert len(json.loads(one.save()[1])["reviews"]) == 1
    one.grade(3)
    assert one.counts() == {"due": 0, "new": len(CARDS) - 2, "learning": 1, "learnt": 1}
    one.open()
    assert one.counts()["new"] == len(CARDS)


def test_what_cannot_be_read_is_set_aside_and_not_lost(desk):
    one = desk()
    one.page.evaluate("localStorage.setItem('kltutor-practice', '{broken')")
    one.open()
    assert "set aside, for it is not JSON" in one.says()
    assert one.page.evaluate("localStorage.getItem('kltutor-practice-unreadable')") == "{broken"
    one.grade(3)
    assert len(one.reviews()) == 1


# The mock interview


QUESTIONS = interview.questions()


def drawn(seed):
    """Return the ids of the first five, in shuffled order, on as many topics as five can be on."""
    one, two, three = (
        [interview.get(id) for id in shuffled([q.id for q in QUESTIONS if q.level == level], seed)]
        for level in (1, 2, 3)
    )
    fives = (
        (*a, *b, c)
        for a in itertools.combinations(one, 2)
        for b in itertools.combinations(two, 2)
        for c in three
    )
    return [q.id for q in next(five for five in fives if len({q.topic for q in five}) == 5)]


def test_a_draw_has_two_two_and_one_on_five_topics_and_in_time_every_question(still):
    questions = [{"id": q.id, "level": q.level, "topic": q.topic} for q in QUESTIONS]
    seen = Counter()
    for seed in range(150):
        five = [question["id"] for question in still.core("draw", questions, seed)]
        assert five == drawn(seed)
        assert [interview.get(id).level for id in five] == [1, 1, 2, 2, 3]
        seen.update(five)
    assert set(seen) == {q.id for q in QUESTIONS}
    few = [q for q in questions if q["topic"] in ("estimators", "basics")]  # five topics cannot be had
    assert all(len({q["topic"] for q in still.core("draw", few, seed)}) == 2 for seed in range(30))


def test_a_mock_interview_by_keys_ends_with_its_points_and_what_to_reread(desk):
    one = desk()
    one.page.clock.pause_at(NOON + timedelta(minutes=1))
    one.button("Draw five", one.mock).click()
    five = [interview.get(id) for id in drawn(stamp(NOON + timedelta(minutes=1)))]
    made = [[1], [1, 2, 3], [], "all", [2]]
    for number, (question, points) in enumerate(zip(five, made, strict=True), start=1):
        box = one.mock.locator(".practice-card")
        assert f"Question {number} of 5 · Level {question.level}" in box.inner_text()
        assert same(box.locator(".practice-front").evaluate("f => f.textContent"), question.question)
        assert one.mock.locator(".mock-clock").inner_text() == "4:00"
        assert one.mock.locator("input").count() == 0
        one.press("n")  # not before the answer
        one.press("Space")
        assert one.mock.locator(".mock-points input").count() == len(question.rubric)
        for point in range(1, len(question.rubric) + 1) if points == "all" else points:
            one.press(str(point))
        if number == 2:  # twice is not at all
            one.press("3", "3")
        one.press("n")
    sizes = [len(question.rubric) for question in five]
    got = [1, 3, 0, sizes[3], 1]
    assert one.mock.locator(".mock-score").inner_text() == f"{sum(got)} of {sum(sizes)} points"
    rows = one.mock.locator(".mock-result tbody tr")
    for i, question in enumerate(five):
        row = rows.nth(i)
        assert row.locator("td").nth(2).inner_text().replace("\u2011", "-") == question.topic.capitalize()
        assert row.locator("td").nth(3).inner_text() == f"{got[i]} of {sizes[i]}"
        assert row.locator("a").first.get_attribute("href") == pages.address(question.id)
    links = one.mock.locator(".mock-reread a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    missed = [q for q, points, size in zip(five, got, sizes, strict=True) if points < size]
    assert sorted(links) == sorted({pages.section(label)[0] for q in missed for label in q.sections})
    assert one.reviews() == {}
    one.button("Draw again", one.mock).click()
    assert "Question 1 of 5" in one.mock.locator(".practice-card").inner_text()


def test_the_clock_warns_runs_out_and_says_so_in_the_result(desk):
    one = desk()
    one.page.clock.pause_at(NOON + timedelta(minutes=1))
    minutes = one.page.locator("#mock-minutes")
    for bad in ("0", "31", "1.5", ""):
        minutes.fill(bad)
        one.button("Draw five", one.mock).click()
        assert one.mock.locator(".mock-clock").count() == 0
    minutes.fill("2")
    one.button("Draw five", one.mock).click()
    clock = one.mock.locator(".mock-clock")
    assert clock.inner_text() == "2:00"
    one.page.clock.run_for(59_000)
    assert (clock.inner_text(), one.says(one.mock)) == ("1:01", "")
    one.page.clock.run_for(2_000)
    assert (clock.inner_text(), one.says(one.mock)) == ("0:59", "One minute left.")
    one.page.clock.run_for(58_750)
    assert (clock.inner_text(), one.mock.locator(".practice-back").count()) == ("0:01", 0)
    one.page.clock.run_for(250)
    assert (clock.inner_text(), one.mock.locator(".practice-back").count()) == ("0:00", 1)
    assert one.says(one.mock) == "Time is up. Here is the answer."
    assert one.page.evaluate("document.activeElement.className") == "practice-back"
    one.press("n")
    one.page.clock.run_for(30_000)
    assert clock.inner_text() == "1:30"
    one.press("Space")
    one.page.clock.run_for(600_000)
    assert clock.inner_text() == "1:30"  # the answer stops it
    for keys in (["n", "Space"], ["n", "Space"], ["n", "Space"], ["n"]):
        one.press(*keys)
    points = one.mock.locator(".mock-result td:nth-child(4)").all_inner_texts()
    assert [text.endswith(", time ran out") for text in points] == [True, False, False, False, False]
    one.button("Change the time", one.mock).click()
    assert minutes.input_value() == "2"
    one.button("Draw five", one.mock).click()
    one.button("Stop", one.mock).click()
    assert one.says(one.mock) == "Stopped; nothing was counted."


# How it looks, without scripts, on paper


@pytest.mark.parametrize(
    "options",
    [{"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}, DARK],
    ids=["desktop", "phone"],
)
def test_axe_finds_nothing_and_nothing_is_too_wide_in_any_state(desk, options):
    one = desk(**options)
    one.page.evaluate("MathJax.startup.promise.then(() => null)")

    def fine(state):
        one.page.evaluate("MathJax.startup.promise.then(() => null)")
        assert one.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, state
        assert violations(one.page) == [], state

    fine("a new card")
    one.choose(kind="question")
    one.button("Hint").click()
    one.button("Show the answer").click()
    one.button("Draw five", one.mock).click()
    fine("an answer, and a question")
    one.grade(3)
    one.choose(level="1", topic="practice")
    one.button("Show the answer", one.mock).click()
    fine("nothing to show, and an answer")
    for _ in range(4):
        one.press("n", "Space")
    one.press("n")
    one.mock.locator(".mock-score").wait_for()
    fine("a result")


def test_without_scripts_the_folded_pages_open_and_the_practice_page_says_where_they_are(chromium):
    context = chromium.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto((HTML / "practice.html").as_uri())
    assert "kltutor quiz" in page.locator("#practice-cards").inner_text()
    page.goto((HTML / "interview_1.html").as_uri())
    answer = page.locator("#q02 > .fold-answer")
    words = answer.locator("p").first
    assert not words.is_visible()
    answer.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert words.is_visible()
    context.close()


def test_a_link_to_a_follow_up_opens_the_fold_around_it_and_print_opens_all(chromium):
    from pypdf import PdfReader

    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto((HTML / "interview_3.html").as_uri() + "#q25a")
    page.wait_for_function("MathJax.startup?.promise")
    page.evaluate("MathJax.startup.promise.then(() => null)")
    assert page.locator("#q25a h4").is_visible()
    printed = PdfReader(BytesIO(page.pdf()))
    text = "".join(sheet.extract_text() for sheet in printed.pages)
    text = "".join(unicodedata.normalize("NFKC", text).split())  # without ligatures
    for question in interview.questions(level=3):
        for entry in (question, *question.follow_ups):
            assert "".join(entry.hint.split()) in text or "$" in entry.hint or "`" in entry.hint, entry.id
            assert "".join(re.split(r"[$`]", entry.answer)[0].split()) in text, entry.id
    context.close()
