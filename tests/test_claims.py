"""The ledger keeps its own rules, and every claim in it holds."""

import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

from kltutor import claims

BOOK = Path(__file__).parents[1] / "book"

# Rows of the project's notes on chapters 1 to 8; each must be settled by some claim.
MATH = """W01 W02 W03 W04 W05 W06 W07 W08 W09 W10 W11 W12 W13 W14 W15 W16 W17 W18 W19 W20 I01 I02 I03 I04 I05
    I06 I07 I08 I09 I10 I11 I12 I13 I14 I15 I16 I17 I18 I19 I20 I21 I22 I23 I24 I25 I26 I27 I28 I29
    I30 I31 I32 C01 C02 C03 C04 C05 C06 C07 C08 C09 C10 C11 C12 C13 C14 C15 C16 H01 H02 H03 H04 H05
    H06 H07 H08 H09 H10 H11 H12 H13 H14 H15 H16 H17 H18 H19 H20 H21 H22 H23 H24 H25 H26 R1 R2 R3 R4 R5
    R6 R7 R8 R9 R10"""
FACTS = """W01 W02 W03 W04 W05 W06 W07 W08 W09 W10 W11 W12 W13 W14 W15 W16 W17 W18 W19 W20 W21 W22 W23 W24 W25
    I01 I02 I03 I04 I05 I06 I07 I08 I09 I10 I11 I12 I13 I14 I15 I16 I17 I18 I19 I20 I21 I22 I23 I24 I25
    C01 C02 C03 C04 C05 C06 C07 C08 C09 C10 C11 C12 C13 C14 C15 C16 U04 U05"""

FORM = {"id": "KL-199", "section": "1.1", "says": "Two is two.", "verdict": "holds", "kind": "exact"}


@cache
def run(id):
    (result,) = claims.verify([id])
    return result


@pytest.fixture
def registry(monkeypatch):
    """Let a test register claims that are gone after it."""
    claims.all_claims()
    monkeypatch.setattr(claims, "_registry", dict(claims._registry))


def register(check=lambda: "2 = 2", **changes):
    return claims.claim(**(FORM | changes))(check)


@pytest.mark.again
@pytest.mark.parametrize("id", [claim.id for claim in claims.all_claims()])
def test_claim(id):
    result = run(id)
    assert result.passed, result.evidence


@pytest.mark.parametrize("path", sorted(BOOK.glob("claims_*.ipynb")), ids=lambda path: path.stem)
def test_the_pages_hold_evidence_in_digits_that_last(path):
    cells = nbformat.read(path, as_version=4).cells
    pages = [
        out.data.get("text/html", "") for cell in cells for out in cell.get("outputs", []) if "data" in out
    ]
    found = re.findall(r"<strong>Measured:</strong> (.*?)</p>", "".join(pages))
    assert len(found) == sum(claim.id[3] == path.stem[-1] for claim in claims.all_claims())
    for evidence in found:
        assert re.search(r"\d", evidence), "evidence holds a number"
        assert not re.search(r"\bnan\b|\.\d{8}", evidence)


def test_ids_of_chapters_1_to_8_are_all_there_unique_and_in_order():
    ids = [claim.id for claim in claims.all_claims()]
    assert ids == sorted(set(ids))
    numbers = (
        *range(101, 126),
        *range(201, 228),
        *range(301, 327),
        *range(401, 415),
        *range(501, 528),
        *range(601, 631),
        *range(701, 715),
        *range(801, 819),
    )
    assert {f"KL-{n}" for n in numbers} <= set(ids)


@pytest.mark.parametrize("row", [f"m:{row}" for row in MATH.split()] + [f"f:{row}" for row in FACTS.split()])
def test_every_row_of_the_notes_is_settled(row):
    assert any(row in claim.source_rows for claim in claims.all_claims())


@pytest.mark.again
@pytest.mark.parametrize(
    "id",
    [
        "KL-103",
        "KL-107",
        "KL-120",
        "KL-203",
        "KL-208",
        "KL-216",
        "KL-224",
        "KL-310",
        "KL-322",
        "KL-325",
        "KL-702",
        "KL-714",
        "KL-806",
        "KL-814",
    ],
)
def test_evidence_is_the_same_every_time(id):
    again = claims.get(id).check()
    assert " ".join(again.split()) == run(id).evidence


def test_statements_are_one_line_of_text_that_reads_without_tex():
    for claim in claims.all_claims():
        for text in (claim.says, claim.condition, claim.folklore):
            assert "|" not in text, "would end a cell of a Markdown table; write \\Vert"
            assert text.count("$") % 2 == 0
            assert not re.search(r"[\\$\n{}]", claims.plain(text)), claims.plain(text)
        assert claim.says.endswith(".")
        assert all(re.fullmatch(r"[a-z]+\d{4}\w*", key) for key in claim.sources)


def test_badge_says_how_it_is_known_and_whether_folklore_denies_it():
    assert claims.get("KL-101").badge == "proven"
    assert claims.get("KL-106").badge == "exact · folklore wrong"
    assert claims.get("KL-106").classes == ("claim-exact", "claim-wrong")
    assert claims.get("KL-125").badge == "cited"


def test_plain_text_keeps_the_meaning_of_braces():
    text = r"$\sqrt{1 - e^{-\mathrm{KL}}}$, $\frac{a + b}{2}$, $\pi_{\mathrm{ref}}$, $x^{10}$, $\pi^*$, $H^2$"
    assert claims.plain(text) == "√(1 - e^(-KL)), (a + b)/2, πref, x¹⁰, π*, H²"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "KL-101"}, "'KL-101' is taken"),
        ({"id": "KL-1"}, "id is 'KL-1'"),
        ({"section": "2.1"}, "section is '2.1'"),
        ({"says": " "}, "says of KL-199"),
        ({"verdict": "true"}, "verdict of KL-199 is 'true'"),
        ({"kind": "obvious"}, "kind of KL-199 is 'obvious'"),
        ({"verdict": "holds if"}, "condition of KL-199"),
        ({"verdict": "folklore is wrong"}, "folklore of KL-199"),
        ({"kind": "cited"}, "sources of KL-199"),
    ],
)
def test_a_claim_that_breaks_a_rule_is_refused(registry, changes, message):
    before = claims.all_claims()
    with pytest.raises(ValueError, match=message):
        register(**changes)
    assert claims.all_claims() == before


def test_a_registered_check_is_found_by_its_id(registry):
    check = register()
    assert claims.get("KL-199").check is check
    assert [claim.id for claim in claims.all_claims() if claim.id < "KL-200"][-1] == "KL-199"
    assert claims.verify(["KL-199"])[0].evidence == "2 = 2"


@pytest.mark.parametrize(
    ("error", "words"),
    [(AssertionError("2 is not 3"), "AssertionError: 2 is not 3"), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_failing_check_is_reported_and_the_others_still_run(registry, error, words):
    def check():
        raise error

    register(check)
    failed, passed = claims.verify(["KL-199", "KL-103"])
    assert (failed.passed, failed.evidence) == (False, words)
    assert passed.passed


@pytest.mark.parametrize("nothing", ["", "  ", None])
def test_a_check_without_evidence_does_not_pass(registry, nothing):
    register(lambda: nothing)
    (result,) = claims.verify(["KL-199"])
    assert not result.passed
    assert "no evidence" in result.evidence


def test_an_unknown_id_is_an_error():
    with pytest.raises(ValueError, match="id is 'KL-999'"):
        claims.get("KL-999")
    with pytest.raises(ValueError, match="id is 'KL-999'"):
        claims.verify(["KL-103", "KL-999"])
