"""The cheat sheet: its numbers are computed, and Chromium prints it on one page of A4 that one can read."""

import importlib.util
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from pypdf import PdfReader
from widget_page import launch

BOOK = Path(__file__).parents[1] / "book"
HTML = Path(os.environ.get("KLTUTOR_BOOK", BOOK / "_build" / "html"))
NOTEBOOK = BOOK / "00_cheat_sheet.ipynb"
PAGE, PDF = "00_cheat_sheet.html", "cheat_sheet.pdf"


def prose():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def blocks():
    return dict(
        block.split("\n", 1) for block in re.split(r"^## ", prose(), flags=re.MULTILINE)[1:] if block.strip()
    )


def test_every_number_of_the_sheet_was_computed_by_one_of_its_cells_and_is_shown():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    printed = [out.text for cell in cells for out in cell.get("outputs", []) if out.output_type == "stream"]
    links = r"\{ref\}`[^`]*`"
    written = re.findall(r"\d+\.\d+", re.sub(links, "", prose()))
    assert len(set(written)) >= 15
    assert set(written) == set(" ".join(printed).split())


def test_every_block_has_claims_and_leads_to_its_section():
    assert len(blocks()) == 12
    for title, block in blocks().items():
        assert len(re.findall(r"\{claim\}`KL-\d+`", block)) >= 3, title
        assert re.search(r"\{(ref|doc)\}`§", block), title


SUBJECTS = r"DPO IPO KTO SimPO ORPO GRPO Ziegler best-of- pi_{\mathrm{old}} pi^\star symptom detached expm1"


def test_nothing_that_the_sheet_is_for_is_missing():
    assert [subject for subject in SUBJECTS.split() if subject not in prose()] == []


# ---- What is printed


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cheatsheet", BOOK / "cheatsheet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser():
    """Say whether there is one, as for the widgets: where CI is true, there has to be."""
    yield from launch()


def copy(to, change=lambda text: text):
    """Put the built page and what it loads into a folder of its own."""
    to.mkdir()
    for folder in ("_static", "_images", "_sphinx_design_static"):
        if (HTML / folder).is_dir():
            (to / folder).symlink_to(HTML.resolve() / folder)
    text = (HTML / PAGE).read_text(encoding="utf-8")
    text = re.sub(r'<p class="sheet-pdf">.*?</p>\n', "", text)  # if the book's own has been printed
    (to / PAGE).write_text(change(text), encoding="utf-8")
    return to


def run(script, html):
    """Print as the command does, in another thread: a browser of playwright runs in this one already."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(script.print_sheet, html).result()


@pytest.fixture(scope="module")
def printed(script, browser, tmp_path_factory):
    html = copy(tmp_path_factory.mktemp("sheet") / "html")
    assert run(script, html) == []
    return html


@pytest.mark.book
def test_the_pdf_is_one_page_of_a4(printed):
    (page,) = PdfReader(printed / PDF).pages
    assert float(page.mediabox.width) == pytest.approx(210 / 25.4 * 72, abs=1)
    assert float(page.mediabox.height) == pytest.approx(297 / 25.4 * 72, abs=1)


def fonts(resources):
    """Yield each font of a page, with those of the forms that it draws."""
    for font in resources.get("/Font", {}).values():
        yield font.get_object()
    for form in resources.get("/XObject", {}).values():
        yield from fonts(form.get_object().get("/Resources", {}))


@pytest.mark.book
def test_all_fonts_of_the_pdf_are_in_it(printed):
    names = set()
    for font in fonts(PdfReader(printed / PDF).pages[0]["/Resources"]):
        if font["/Subtype"] == "/Type3":  # its letters are drawings in the file
            continue
        face = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
        descriptor = face["/FontDescriptor"].get_object()
        assert {"/FontFile", "/FontFile2", "/FontFile3"} & set(descriptor), font["/BaseFont"]
        names.add(str(font["/BaseFont"]).partition("+")[2])
    assert {"SheetSans-Regular", "SheetSans-Semibold"} <= names


@pytest.mark.book
def test_the_pdf_has_the_words_and_no_site_around_them(printed):
    text = " ".join(PdfReader(printed / PDF).pages[0].extract_text().split())
    for word in ("Cheat sheet", *(title for title in blocks() if "$" not in title)):
        assert word.replace("'", "’") in text, word
    for word in ("0.1328", "1.2564", "0.636", "SimPO", "KL > 0 at step 0", "score with what drew"):
        assert word in text, word
    for word in ("Search", "Contents", "Previous", "Copyright", "Show the code", "as a PDF"):
        assert word not in text, word


@pytest.mark.book
def test_links_of_the_pdf_lead_to_pages_beside_it_and_name_no_place(printed):
    notes = [note.get_object() for note in PdfReader(printed / PDF).pages[0]["/Annots"]]
    targets = [str(note["/A"]["/URI"]) for note in notes if "/URI" in note.get("/A", {})]
    assert len(targets) > 60
    for target in targets:
        assert re.fullmatch(r"[\w.]+\.html(#[\w-]+)?", target), target
        assert (HTML / target.partition("#")[0]).exists(), target
    assert str(printed).encode() not in (printed / PDF).read_bytes()


@pytest.mark.book
def test_the_link_is_there_with_the_file_and_only_with_it(script, printed):
    assert f'href="{PDF}"' not in copy(printed.parent / "unprinted").joinpath(PAGE).read_text()
    once = (printed / PAGE).read_text(encoding="utf-8")
    assert once.count(f'href="{PDF}"') == 1
    assert (printed / PDF).exists()
    assert run(script, printed) == []
    assert (printed / PAGE).read_text(encoding="utf-8") == once
    assert (f'href="{PDF}"' in (HTML / PAGE).read_text()) <= (HTML / PDF).exists()


TOO_MUCH = {
    "a second page": (
        r'(<section id="beta">)',
        r"\1" + "<p>One line more than there is room for.</p>" * 30,
        "takes 2 pages",
    ),
    "a word as wide as two blocks": (
        r'(<section id="the-optimum">)',
        r"\1<p>" + "KL" * 120 + "</p>",
        "runs out of its block",
    ),
    "letters for a magnifying glass": (
        r'(<section id="two-directions">)',
        r'\1<p style="font-size: 7pt">small print</p>',
        r"is set in 7\.00 pt",
    ),
}


@pytest.mark.book
@pytest.mark.parametrize("case", TOO_MUCH)
def test_a_sheet_that_one_cannot_print_or_read_is_refused(script, browser, tmp_path, case):
    found, better, complaint = TOO_MUCH[case]
    html = copy(tmp_path / "html", lambda text: re.sub(found, better, text, count=1))
    (html / PDF).write_bytes(b"of a day before")
    complaints = run(script, html)
    assert any(re.search(complaint, words) for words in complaints), complaints
    assert not (html / PDF).exists()
    assert PDF not in (html / PAGE).read_text(encoding="utf-8")
    assert sorted(path.name for path in html.iterdir() if path.is_file()) == [PAGE]


@pytest.mark.book
@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1)])
def test_on_a_screen_blocks_stand_in_columns_and_on_a_phone_in_one(browser, width, columns):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((HTML / PAGE).as_uri())
    page.evaluate("() => document.fonts.ready.then(() => null)")
    lefts = page.evaluate(
        "() => [...document.querySelectorAll('#cheat-sheet > section')]"
        ".map(block => Math.round(block.getBoundingClientRect().left))"
    )
    size = page.evaluate(
        "() => parseFloat(getComputedStyle(document.querySelector('#cheat-sheet')).fontSize)"
    )
    page.close()
    assert len(lefts) == 12
    assert len(set(lefts)) == columns
    assert size >= 15


@pytest.mark.book
def test_without_a_browser_the_command_says_so_and_leaves_the_page_alone(script, tmp_path, monkeypatch):
    html = copy(tmp_path / "html")
    before = (html / PAGE).read_bytes()
    monkeypatch.setattr("sys.argv", ["cheatsheet.py", str(html)])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="Install chromium"):
        script.main()
    monkeypatch.setattr("sys.argv", ["cheatsheet.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="make book"):
        script.main()
    assert (html / PAGE).read_bytes() == before
