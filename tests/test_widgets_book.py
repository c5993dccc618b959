"""The widgets in the built book, from file:// with the network off."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from widget_page import MODULE, close, listen

from kltutor import widgets

pytestmark = pytest.mark.book

BOOK = Path(__file__).parents[1] / "book"
HTML = Path(os.environ.get("KLTUTOR_BOOK", BOOK / "_build" / "html"))
CLASSES = {getattr(widgets, name).module_name: getattr(widgets, name) for name in widgets.__all__}


def places():
    """Which widget stands on which page of the notebooks; test_landing.py has the one of the intro."""
    found = []
    for path in sorted(set(BOOK.glob("*.ipynb")) - {BOOK / "intro.ipynb"}):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                form = output.get("data", {}).get("text/html", "")
                found += [
                    (path.stem, name) for name in re.findall(r'class="kl-widget" data-widget="(\w+)"', form)
                ]
    return found


PLACES = places()


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def visit(request, chromium):
    """Open a page of the book and return it; nothing may leave the disk, and no script may fail."""
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
        page.goto((HTML / name).as_uri())
        page.wait_for_load_state("load")
        page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
        page.evaluate("window.MathJax && MathJax.startup.promise")
        return page

    yield go
    assert [
        words for words in heard if "theme mode" not in words
    ] == []  # the theme's own word about its switch
    context.close()


def test_every_widget_stands_once_in_the_book_alone_in_its_cell_above_its_figure():
    assert sorted(name for _, name in PLACES) == sorted(CLASSES)
    for stem, name in PLACES:
        cells = nbformat.read(BOOK / f"{stem}.ipynb", as_version=4).cells
        (at,) = [
            i
            for i, cell in enumerate(cells)
            if f'data-widget=\\"{name}\\"' in repr(dict(cell)).replace('"', '\\"')
        ]
        assert len(cells[at].outputs) == 1
        (output,) = cells[at].outputs
        assert set(output.data) == {"text/html", "text/plain"}
        assert output.data["text/html"] == CLASSES[name]().to_html()
        assert "widget-figure" in cells[at + 1].metadata.tags
        assert "image/svg+xml" in cells[at + 1].outputs[0].data


@pytest.mark.parametrize(("stem", "name"), PLACES)
def test_it_mounts_when_scrolled_into_view_and_not_before(visit, stem, name):
    page = visit(f"{stem}.html")
    place = page.locator(f'.kl-widget[data-widget="{name}"]')
    assert place.get_attribute("data-mounted") is None
    place.scroll_into_view_if_needed()
    place.locator(".kl-root").wait_for(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    figure = place.locator("xpath=following::*[contains(@class, 'tag_widget-figure')]").first
    assert not figure.is_visible()
    page.emulate_media(media="print")
    assert figure.is_visible()
    assert not place.is_visible()


@pytest.mark.parametrize(("stem", "name"), PLACES)
def test_its_numbers_in_the_page_are_those_of_the_package(visit, stem, name):
    page = visit(f"{stem}.html")
    state = page.locator(f'.kl-widget[data-widget="{name}"]').evaluate("p => JSON.parse(p.dataset.state)")
    theirs = page.evaluate(f"async ([name, state]) => (await ({MODULE})(name)).compute(state)", [name, state])
    assert close(CLASSES[name](**state).numbers, theirs, 1e-4, 1e-6)


@pytest.mark.parametrize("stem", sorted({stem for stem, _ in PLACES}))
def test_a_page_holds_the_sources_it_needs_and_no_kernel_s_state(stem):
    text = (HTML / f"{stem}.html").read_text(encoding="utf-8")
    needed = sorted(name for at, name in PLACES if at == stem)
    assert sorted(re.findall(r'id="kl-source-(\w+)"', text)) == needed
    assert "vnd.jupyter.widget" not in text
