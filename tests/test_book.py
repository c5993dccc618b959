"""The book as files: committed pages are executed, normal, described in words and backed by claims."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from kltutor import claims, ledger

BOOK = Path(__file__).parents[1] / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[:2].isdigit()]
HIDDEN = {"hide-input", "remove-input", "remove-cell"}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_was_executed_in_order_and_without_error(path):
    cells = [cell for cell in code_cells(path) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert any(cell.outputs for cell in cells)  # nbval passes a stripped notebook without comparing anything


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_normal_so_that_a_second_execution_changes_no_byte(path):
    spec = importlib.util.spec_from_file_location("notebooks", BOOK / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.normalise(read(path)) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_visible_code_is_short_and_figures_are_described(path):
    for cell in code_cells(path):
        if not HIDDEN & set(cell.metadata.get("tags", [])):
            assert len(cell.source.splitlines()) <= 15, cell.source
        if any("image/svg+xml" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.outputs) == 1, "nbval compares no cell that draws, so such a cell may not print"
            assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) > 40, cell.source


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_output_names_a_place_or_a_day(path):
    text = json.dumps([cell.outputs for cell in code_cells(path)])
    assert not re.search(r"/(root|home|tmp|work)/|0x[0-9a-f]{8}|20\d\d-\d\d-\d\d", text)


def test_the_contents_list_every_page_and_nothing_else():
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    pages = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    pages += [section for page in pages for section in page.get("sections", [])]
    listed = {toc["root"], *(page["file"] for page in pages)}
    assert listed == {path.stem for path in [*NOTEBOOKS, *BOOK.glob("*.md")]}


def test_every_claim_is_stated_in_its_chapter_and_every_badge_has_a_claim():
    known = {claim.id for claim in claims.all_claims()}
    cited = {}
    for path in [*NOTEBOOKS, *BOOK.glob("*.md")]:
        cited[path.stem] = set(re.findall(r"\{claim\}`([^`]+)`", prose(path)))
    assert set().union(*cited.values()) <= known
    for path in CHAPTERS:
        chapter = {id for id in known if id[3] == str(int(path.name[:2]))}
        assert chapter <= cited[path.stem], sorted(chapter - cited[path.stem])


def test_every_claim_has_a_row_on_the_page_to_which_its_badge_leads():
    found = {}
    for path in BOOK.glob("claims_*.ipynb"):
        html = "".join(
            output.get("data", {}).get("text/html", "")
            for cell in code_cells(path)
            for output in cell.outputs
        )
        found |= {id.upper(): path.stem for id in re.findall(r'class="ledger-row[^"]*" id="(kl-\d+)"', html)}
    assert found == {claim.id: ledger.page(claim) for claim in claims.all_claims()}


def test_the_list_of_all_claims_leads_to_every_row():
    text = "".join(
        output.get("data", {}).get("text/html", "")
        for cell in code_cells(BOOK / "claims.ipynb")
        for output in cell.outputs
    )
    links = re.findall(r'href="(claims_\d)\.html#(kl-\d+)"', text)
    assert links == [(ledger.page(claim), claim.id.lower()) for claim in claims.all_claims()]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_claim_names_a_section_in_which_the_chapter_states_it(path):
    chapter, section, stated = int(path.name[:2]), 0, {}
    for line in prose(path).splitlines():
        section += line.startswith("## ")
        for id in re.findall(r"\{claim\}`([^`]+)`", line):
            stated.setdefault(id, set()).add(f"{chapter}.{section}")
    wrong = {
        id: sorted(at)
        for id, at in stated.items()
        if int(id[3]) == chapter and claims.get(id).section not in at
    }
    assert not wrong


def test_the_bad_words_of_work_in_progress_are_nowhere():
    for path in [*NOTEBOOKS, *BOOK.glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(TODO|FIXME|TBD|lorem ipsum|coming soon)\b", text, re.IGNORECASE), path.name
