"""The page of errata holds every claim that folklore denies, once, with what the ledger says of it."""

import html
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from docutils.nodes import make_id

from kltutor import claims, ledger

BOOK = Path(__file__).parents[1] / "book"
WRONG = {claim.id: claim for claim in claims.all_claims() if claim.verdict == "folklore is wrong"}


def cells(name):
    return nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells


def prose(name):
    return "\n\n".join(cell.source for cell in cells(name) if cell.cell_type == "markdown")


def output(name):
    return "\n".join(
        output.get("data", {}).get("text/html", "")
        for cell in cells(name)
        for output in cell.get("outputs", [])
    )


def entries(text):
    """Return each entry's HTML by id, and fail on a second one."""
    parts = re.split(r'<div class="ledger-row mathjax_process" id="erratum-(kl-\d+)">', text)
    ids = [id.upper() for id in parts[1::2]]
    assert len(ids) == len(set(ids))
    return dict(zip(ids, parts[2::2], strict=True))


ENTRIES = entries(output("errata"))
MEASURED = {
    id: text
    for path in BOOK.glob("claims_?.ipynb")
    for id, text in ledger.measured(output(path.stem)).items()
}


def shown(text):
    return re.sub(r"\$([^$]+)\$", r"\\(\1\\)", html.escape(text, quote=False))


def test_every_claim_that_folklore_denies_has_one_entry_and_no_other_claim_has():
    assert list(ENTRIES) == sorted(WRONG)
    assert [claim.id for claim in ledger.errata()] == sorted(WRONG)


@pytest.mark.parametrize("claim", WRONG.values(), ids=WRONG)
def test_an_entry_says_the_folklore_the_truth_how_it_is_known_and_the_evidence(claim):
    entry = ENTRIES[claim.id]
    said, true, known, where = re.findall(r"<p.*?</p>", entry)
    assert said == f'<p class="meta"><strong>Often said:</strong> {shown(claim.folklore)}</p>'
    assert true.endswith(f"</a> {shown(claim.says)}</p>")
    assert f'<span class="claim-kind">{html.escape(claim.badge)}</span>' in true
    word = {"symbolic": "Proof", "exact": "Counterexample", "sampled": "Simulation", "cited": "Source"}
    assert known == (
        f'<p class="meta"><strong>{word[claim.kind]}:</strong> {html.escape(MEASURED[claim.id])}</p>'
    )
    assert f">Section {claim.section} " in where


def test_links_lead_to_rows_of_the_ledger_that_exist():
    rows = {
        f"{path.stem}.html#{id}"
        for path in BOOK.glob("claims_?.ipynb")
        for id in re.findall(r'class="ledger-row[^"]*" id="(kl-\d+)"', output(path.stem))
    }
    for id, entry in ENTRIES.items():
        (link,) = re.findall(r'<a class="claim [^"]*" href="([^"]+)">', entry)
        assert link in rows
        assert link.endswith(f"#{id.lower()}")


def headings(name):
    return [line.removeprefix("## ") for line in prose(name).splitlines() if line.startswith("## ")]


def test_links_lead_to_the_sections_of_the_book():
    for claim in WRONG.values():
        name = next(path.stem for path in BOOK.glob(f"0{claim.section[0]}_*.ipynb"))
        title = headings(name)[int(claim.section[2:]) - 1]
        assert ledger.section(claim) == (f"{name}.html#{make_id(title)}", f"{claim.section} {title}")
        address, words = re.findall(r'<a href="([^"]+)">Section (.*?)</a>', ENTRIES[claim.id])[0]
        assert (address, html.unescape(words)) == ledger.section(claim)


def test_the_ledger_knows_the_sections_of_every_chapter():
    for name, titles in ledger.CHAPTERS.items():
        found = [title.strip() for title in titles.strip().splitlines()]
        assert headings(name)[: len(found)] == found
        assert headings(name)[len(found)] == "Exercises"


def test_entries_stand_under_the_heading_of_their_chapter():
    chapter, seen = 0, []
    for cell in cells("errata"):
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if match := re.match(r"## Chapter (\d): (.*)", line):
                    chapter = int(match[1])
                    (path,) = BOOK.glob(f"0{chapter}_*.ipynb")
                    seen.append(chapter)
                    short = prose(path.stem).split("\n# ", 1)[-1].splitlines()[0].removeprefix("# ")
                    assert short.startswith(match[2]), (short, match[2])
        for output_ in cell.get("outputs", []):
            for id in entries(output_.get("data", {}).get("text/html", "")):
                assert int(id[3]) == chapter
    assert seen == list(range(1, 9))


def test_ten_cost_most():
    text = prose("errata").partition("## The ten that cost most")[2].partition("\n## ")[0]
    lines = re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)
    ids = [re.fullmatch(r".*\. \{claim\}`(KL-\d+)`", line)[1] for line in lines]
    assert len(ids) == len(set(ids)) == 10
    assert set(ids) <= set(WRONG)


def test_each_erratum_has_one_theme_that_leads_to_its_entry():
    ids = [f"KL-{number}" for numbers in ledger.THEMES.values() for number in numbers.split()]
    assert sorted(ids) == sorted(WRONG)
    links = re.findall(r'href="#erratum-(kl-\d+)" title="([^"]+)"', output("errata"))
    assert [id.upper() for id, _ in links] == ids
    for id, said in links:
        assert html.unescape(said) == f"Often said: {claims.plain(WRONG[id.upper()].folklore)}"


def test_the_count_is_that_of_the_ledger():
    (text,) = [
        output["text"]
        for cell in cells("errata")
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    assert numbers[:2] == [len(WRONG), len(claims.all_claims())]
    assert sum(numbers[2:]) == len(WRONG)


def test_evidence_is_read_back_from_rows_as_it_was_and_a_failed_check_gives_none():
    first, second = (claims.get(id) for id in ("KL-106", "KL-107"))
    passed = claims.Result(first, True, "1 < 2 & \"3\" 'four'", 0.0)
    failed = claims.Result(second, False, "AssertionError: 5", 0.0)
    for results in ([passed, failed], [failed, passed]):
        assert ledger.measured(ledger.as_html(results)) == {"KL-106": passed.evidence}
    assert set(MEASURED) == {claim.id for claim in claims.all_claims()}


def test_a_claim_without_evidence_is_an_error_and_what_is_written_is_escaped():
    claim = replace(claims.get("KL-106"), folklore="a < b & $x < y$")
    with pytest.raises(KeyError, match="KL-106"):
        ledger.as_errata([claim], {})
    assert r"a &lt; b &amp; \(x &lt; y\)" in ledger.as_errata([claim], {"KL-106": "1 < 2"})
    assert "1 &lt; 2" in ledger.as_errata([claim], {"KL-106": "1 < 2"})
