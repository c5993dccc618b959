"""The built book in a browser with the network off: nothing leaves the disk, every formula is set."""

import os
import re
import xml.etree.ElementTree
from pathlib import Path

import pytest
from widget_page import listen, violations

pytestmark = pytest.mark.book

HTML = Path(os.environ.get("KLTUTOR_BOOK", Path(__file__).parents[1] / "book" / "_build" / "html"))
PAGES = sorted(HTML.glob("*.html"))
BOOK = Path(__file__).parents[1] / "book"
CHAPTERS = [f"{path.stem}.html" for path in sorted(BOOK.glob("0[0-8]_*.ipynb"))]
INTERVIEW = [f"{path.stem}.html" for path in sorted(BOOK.glob("interview_*.ipynb"))]  # text alone, no figures
LEDGER = [f"{path.stem}.html" for path in sorted(BOOK.glob("claims_*.ipynb"))]
# The words of a page but for what stands in some elements.
WORDS = """without => {
  const copy = document.querySelector("article, main, body").cloneNode(true);
  copy.querySelectorAll(without).forEach(element => element.remove());
  document.body.append(copy);
  const words = copy.innerText;
  copy.remove();
  return words;
}"""
# Where a page loads something from, as opposed to where a link leads.
LOADS = re.compile(r"""<(?:(?:script|img|iframe|source)[^>]+src|link[^>]+href)=["'](?:https?:)?//""")


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def visit(request, chromium):
    """Open pages of the book, and fail on any request that leaves the disk or any script error."""
    width, height, scheme = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        offline=True,
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    page = context.new_page()
    heard = listen(page)

    def go(name):
        file, _, query = name.partition("?")
        page.goto((HTML / file).as_uri() + (query and f"?{query}"))
        if file == "index.html":  # sends the reader on to the first page, at a moment of its own
            page.wait_for_url("**/intro.html")
        page.wait_for_load_state("load")
        page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
        page.evaluate("window.MathJax && MathJax.startup.promise")
        return page

    yield go
    own = "theme mode"  # in the theme's word about its switch
    assert [words for words in heard if own not in words] == []
    context.close()


def test_the_book_is_there():
    assert {"index.html", "intro.html", "claims.html", "api.html", *CHAPTERS, *INTERVIEW} <= {
        p.name for p in PAGES
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_names_a_place_to_load_from(path):
    text = path.read_text(encoding="utf-8")
    assert not LOADS.search(text)
    assert not re.search(r"unpkg\.com|jsdelivr|cdnjs|require\.js|THEBE_JS_URL", text)


@pytest.mark.parametrize("name", [path.name for path in PAGES])
def test_formulas_are_set_nothing_is_wider_than_the_screen_and_axe_finds_nothing_serious(visit, name):
    page = visit(name)
    for place in page.locator(".kl-widget").all():
        place.scroll_into_view_if_needed()
        place.locator(".kl-root").wait_for(timeout=20_000)
    assert page.evaluate("document.querySelectorAll('mjx-merror, [data-mjx-error]').length") == 0
    examples = "pre, code" if name == "api.html" else "script"  # those of the package show TeX
    text = page.evaluate(WORDS, examples)
    assert not re.search(r"\\[()\[\]]|\\(frac|text|operatorname|mathrm|pol|refp|KL)\b", text)
    formulas = page.locator(".math")
    assert formulas.count() == page.locator(".math:has(mjx-container)").count()
    if name in (*CHAPTERS, *LEDGER, *INTERVIEW, "claims.html"):
        assert page.evaluate("document.querySelectorAll('mjx-container').length") > 20
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    if name != "index.html":
        assert violations(page) == []


def test_search_finds_a_word_of_a_chapter(visit):
    page = visit("search.html?q=variance")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    found = page.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    assert any("02_estimators.html" in link for link in found)


def test_every_badge_leads_to_its_row_of_the_ledger():
    links = {href for name in ("intro.html", *CHAPTERS) for href in attributes(name, "a", "claim", "href")}
    rows = {f"{name}#{id}" for name in LEDGER for id in attributes(name, r"\w+", "ledger-row", "id")}
    assert len(links) > 40
    assert links <= rows
    assert set(attributes("claims.html", "a", "claim", "href")) == rows


def attributes(name, tag, kind, attribute):
    """Return one attribute of all tags of a class in a page."""
    text = (HTML / name).read_text(encoding="utf-8")
    tags = re.findall(rf'<{tag} [^>]*?class="(?:[^"]* )?{kind}(?: [^"]*)?"[^>]*>', text)
    return [re.search(rf'\b{attribute}="([^"]*)"', found)[1] for found in tags]


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_has_a_description_and_loads(name):
    figures = re.findall(r"<img [^>]*_images/[^>]*>", (HTML / name).read_text(encoding="utf-8"))
    assert figures
    for figure in figures:
        alt, picture = (re.search(rf'\b{key}="([^"]*)"', figure)[1] for key in ("alt", "src"))
        assert len(alt) > 40
        xml.etree.ElementTree.parse(HTML / picture)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_with_its_pictures_weighs_less_than_two_megabytes(path):
    pictures = set(re.findall(r'<img[^>]+src="(?!data:)([^"]+)"', path.read_text(encoding="utf-8")))
    assert path.stat().st_size + sum((HTML / picture).stat().st_size for picture in pictures) < 2_000_000
