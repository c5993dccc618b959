"""The landing page: a picture that moves at once, links that lead somewhere, and times that are counted."""

import importlib.util
import math
import os
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from typer.testing import CliRunner
from widget_page import MODULE, close, listen

from kltutor import cli, interview, katas
from kltutor.interview import deck
from kltutor.widgets import BetaSweep

BOOK = Path(__file__).parents[1] / "book"
HTML = Path(os.environ.get("KLTUTOR_BOOK", BOOK / "_build" / "html"))
CELLS = nbformat.read(BOOK / "intro.ipynb", as_version=4).cells
PROSE = "\n\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown").replace("&nbsp;", " ")


def card(title):
    """Return the title and the text of one of the three paths, as written."""
    return re.search(rf"grid-item-card\}} ({title}.*?)\n(.*?)\n:::", PROSE, re.DOTALL).groups()


# ---- The picture


def test_the_picture_stands_alone_in_its_first_state_above_its_figure():
    (at,) = [i for i, cell in enumerate(CELLS) if "landing-widget" in cell.metadata.get("tags", [])]
    (output,) = CELLS[at].outputs
    assert output.data["text/html"] == BetaSweep().to_html()
    assert set(output.data) == {"text/html", "text/plain"}
    assert "widget-figure" in CELLS[at + 1].metadata.tags
    assert "image/svg+xml" in CELLS[at + 1].outputs[0].data
    assert at <= 1  # nothing but the opening comes before it


def test_the_sentences_above_it_have_its_numbers():
    finding = re.sub(r"k_3|KL-\d+", "", PROSE.partition("**One $\\beta$")[2].partition("\n\n")[0])
    first, pulled = BetaSweep(), BetaSweep(beta=0.05)
    percent = [f"{100 * w[-1]:.0f}" for w in (first.star, first.tilt, pulled.star, pulled.tilt)]
    assert [str(first.beta), *percent[:2], "0.05", *percent[2:]] == [
        number for number in re.findall(r"\d+(?:\.\d+)?", finding) if number not in ("3", "100")
    ]
    assert f"in {100 * first.ref[-1]:.0f} of 100 answers" in finding
    assert f"*{first.answers[-1]}*" in finding
    assert max(first.reward) == first.reward[-1] == 1


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def landing(request, chromium):
    """Open the page as a reader does, from the file that opens the book."""
    width, height, scheme = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": height}, offline=True, color_scheme=scheme
    )
    page = context.new_page()
    heard = listen(page)
    page.goto((HTML / "index.html").as_uri())
    page.wait_for_url("**/intro.html")
    page.locator(".kl-root").wait_for(timeout=20_000)
    yield page
    assert [words for words in heard if "theme mode" not in words] == []
    context.close()


@pytest.mark.book
def test_it_can_be_moved_on_the_first_screen_and_its_numbers_are_those_of_the_package(landing):
    landing.evaluate("() => MathJax.startup.promise.then(() => null)")
    beta = landing.get_by_role("slider", name=re.compile("β, the price"))
    box, height = beta.bounding_box(), landing.viewport_size["height"]
    assert 0 < box["y"] < height - 100
    beta.focus()
    for _ in range(12):
        landing.keyboard.press("ArrowLeft")
    moved = landing.evaluate("document.querySelector('.kl-widget').model.get('beta')")
    assert moved < 0.19
    state = BetaSweep().state | {"beta": moved}
    theirs = landing.evaluate(f"async state => (await ({MODULE})('beta_sweep')).compute(state)", state)
    assert close(BetaSweep(**state).numbers, theirs, 1e-4, 1e-6)
    shown = landing.locator(".kl-widget [data-number='kl']").first.inner_text()
    assert float(shown) == pytest.approx(BetaSweep(**state).kl, abs=6e-4)
    assert landing.locator(".kl-try").count() == 1  # in the page, but chapter 6 has room for it
    assert not landing.locator(".kl-try").is_visible()


@pytest.mark.book
def test_on_paper_and_without_scripts_there_is_the_figure(landing, chromium):
    figure = landing.locator(".tag_widget-figure img")
    assert not figure.is_visible()
    landing.emulate_media(media="print")
    assert figure.is_visible()
    context = chromium.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((HTML / "intro.html").as_uri())
    assert page.locator(".tag_widget-figure img").is_visible()
    assert page.locator(".kl-fallback").is_visible()
    context.close()


# ---- The links


@pytest.fixture(scope="module")
def article():
    return BeautifulSoup((HTML / "intro.html").read_text(encoding="utf-8"), "html.parser").select_one(
        "article"
    )


def links(part):
    return [link["href"] for link in part.select("a[href]") if "headerlink" not in link.get("class", [])]


@pytest.mark.book
def test_every_link_leads_to_a_place_that_is_there(article):
    found = links(article)
    assert len(found) > 50
    for target in found:
        file, _, label = target.partition("#")
        assert (HTML / file).is_file(), target
        text = (HTML / file).read_text(encoding="utf-8") if label else ""
        assert not label or f'id="{label}"' in text, target


@pytest.mark.book
def test_each_question_leads_to_a_section_of_its_own(article):
    section = article.select_one("section[id='what-you-will-be-able-to-answer']")
    items = section.select("li")
    targets = [links(item) for item in items]
    assert 8 <= len(items) <= 10
    assert all(len(target) == 1 and "#" in target[0] for target in targets)
    assert len({target[0] for target in targets}) == len(items)


def test_every_chapter_has_a_card():
    cards = re.findall(r"^:::\{grid-item-card\} (\d) · ", PROSE, re.MULTILINE)
    assert cards == [str(int(path.name[:2])) for path in sorted(BOOK.glob("0[1-9]_*.ipynb"))]


# ---- The times


@pytest.fixture(scope="module")
def reading():
    spec = importlib.util.spec_from_file_location("reading", BOOK / "reading.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """<article><section id="all"><span id="label"></span><h2>Two words<a class="headerlink">#</a></h2>
<p>Four words and <span class="math">x</span> one formula.</p><div class="math">y</div>
<img src="_images/z.svg">
<div class="cell_input"><div class="highlight"><pre>a = 1\n\nb = 2</pre></div></div>
<details><summary>Show</summary><p>folded words</p></details><div class="solution dropdown">hidden</div>
<script>let not = read;</script></section><p>outside of it</p></article>"""


def test_what_a_minute_is_made_of(reading, tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    section = 2 * 0.5 + 5 * 0.5 + 3 + 2 * 30 + 2 * 5  # words, formula, formula and figure, lines
    assert reading.minutes("page.html#label", tmp_path) == pytest.approx(section / 60)
    assert reading.minutes("page.html#all", tmp_path) == pytest.approx(section / 60)
    assert reading.minutes("page.html", tmp_path) == pytest.approx((section + 3 * 0.5) / 60)
    with pytest.raises(ValueError, match="no section 'elsewhere'"):
        reading.minutes("page.html#elsewhere", tmp_path)


def test_the_page_says_how_its_minutes_are_counted(reading):
    rule = " ".join(PROSE.partition("The minutes of pages")[2].partition("\n\n")[0].split())
    assert (reading.WORD, reading.INLINE, reading.CODE_LINE, reading.DISPLAYED) == (1 / 2, 3, 5, 30)
    for words in (
        "two words a second",
        "three seconds for a formula in a line",
        "five for a line of code",
        "half a minute for a displayed formula or a figure",
    ):
        assert words in rule


@pytest.mark.book
def test_the_minutes_of_each_page_are_counted(article, reading):
    section = article.select_one("section[id='three-paths']")
    text = re.sub(r'<a [^>]*href="([^"]+)"[^>]*>.*?</a>', r"[\1]", section.decode(formatter=None))
    stated = re.findall(r"\[([^]]+)\], (\d+)\s+min", text)
    assert len(stated) >= 16
    for target, minutes in stated:
        counted = reading.minutes(target, HTML)
        assert int(minutes) % 5 == 0, target
        assert abs(int(minutes) - counted) <= 2.5 + 0.05 * counted, f"{target}: {counted:.1f} min"


@pytest.mark.parametrize("path", ["An evening", "A weekend", "Before the interview"])
def test_the_hours_of_a_path_are_the_sum_of_its_minutes(path):
    title, text = card(path)
    steps = "\n".join(line for line in text.splitlines() if re.match(r"\d\. ", line))
    total = sum(int(minutes) for minutes in re.findall(r"(\d+) min\b", steps))
    assert abs(total - 60 * int(re.search(r"about (\d+) hours", title)[1])) <= 15, total


def test_what_the_interview_path_counts_is_there():
    _, text = card("Before the interview")
    level = [question.level for question in interview.questions()]
    assert f"the {level.count(1) + level.count(2)} questions of levels 1 and 2" in text
    assert f"two minutes each, {2 * (level.count(1) + level.count(2))} min" in text
    first = [kata for kata in katas.all_katas() if kata.level == 1]
    assert f"the {len(first)} functions of level 1, ten minutes each, {10 * len(first)} min" in text
    cards = sum(1 for _ in deck.cards())
    assert f"20 new ones a day it takes {math.ceil(cards / 20)} days" in text
    easy = sum("level-1" in card.tags for card in deck.cards())
    assert f"add `--level 1`, which takes {math.ceil(easy / 20)}." in text
    mock = re.search(r"--timed (\d+)", (BOOK / "practice.md").read_text(encoding="utf-8"))
    assert f"a mock interview of 5 questions, {5 * int(mock[1]) // 60} min" in text
    count, seconds, minutes = re.search(r"--count (\d+) --timed (\d+)`: .*?(\d+) min", text).groups()
    assert int(count) * int(seconds) == 60 * int(minutes)


def test_the_commands_of_the_page_exist():
    commands = re.findall(r"`kltutor ([^`]+)`", PROSE)
    assert len(commands) >= 5
    for command in commands:
        name, *rest = command.split()
        options = [word for word in rest if word.startswith("--")]
        told = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"})
        assert told.exit_code == 0, command
        assert [option for option in options if option not in told.output] == [], command
