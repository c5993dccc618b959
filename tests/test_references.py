"""The references: well formed, each with an identifier and a note, and no number cited that was not read."""

import importlib.util
import os
import re
import unicodedata
from pathlib import Path

import nbformat
import pybtex.errors
import pytest
from pybtex.database import parse_string

from kltutor import claims

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
BIB = (BOOK / "references.bib").read_text(encoding="utf-8")
ENTRIES = dict(parse_string(BIB, "bibtex").entries)
each = pytest.mark.parametrize("key", ENTRIES)
WITHOUT_IDENTIFIER = {"csiszar1967"}  # and its record says so
GROUPS = {"recipes", "preferences", "estimators", "overoptimisation", "background"}

NUMBER = r"(?:[A-Z](?:\.\d+)*|\d+(?:\.\d+)*)\b"
PARTS = rf"(?:eq\.|equations?|sections?|appendix|appendices) {NUMBER}(?:(?:, | and | to ){NUMBER})*"
# An equation or an appendix that the text names without a citation just before it.
APART = {
    "section 4 of the PPO paper": "schulman2017ppo",
    "section 2.2 of the paper on fine-tuning": "ziegler2019",
    "appendix B of the paper, SimPO's README": "rafailov2023dpo",
    "DeepSeek-V3.2, eq. 7": "deepseek2025v32",
    "each token (its eq. 4)": "shao2024grpo",
}


def prose(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


PAGES = {path: prose(path) for path in (*sorted(BOOK.glob("*.ipynb")), *sorted(BOOK.glob("*.md")))}
PACKAGE = {  # with the strings that Python joins as one
    path: re.sub(r"\"\n\s*f?\"", "", path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "kltutor").rglob("*"))
    if path.suffix in {".py", ".yaml"}
}


def plain(text):
    """Return letters and digits only, without accents."""
    letters = unicodedata.normalize("NFKD", re.sub(r"\\.", "", text))
    return re.sub(r"[^a-z0-9]", "", letters.encode("ascii", "ignore").decode().lower())


def surname(person):
    return re.sub(r"\\['\"`^]|[{}]", "", " ".join((*person.prelast_names, *person.last_names)))


def labels(entry):
    """Return how a text may name the authors."""
    names = [surname(person) for person in entry.persons["author"]]
    if len(names) == 1:
        return {names[0]}
    listed = {f"{', '.join(names[:-1])} and {names[-1]}"} if len(names) < 4 else set()
    return listed | ({f"{names[0]} et al."} if len(names) > 2 else set())


NAMED = {}
for name, item in ENTRIES.items():
    for label in labels(item):
        NAMED.setdefault((label, item.fields["year"]), set()).add(name)
AUTHORS = r"[A-Z][\w-]+(?: et al\.|(?:, [A-Z][\w-]+)* and [A-Z][\w-]+)?"
BY_NAME = re.compile(rf"(?<![\w'])({AUTHORS}) \(((?:19|20)\d\d)\)")
BY_KEY = re.compile(r"\{cite[^}]*\}`([^`]+)`")


def by_name(text):
    """Yield each work that a text cites by name and year, and where the citation ends."""
    for match in BY_NAME.finditer(text):
        yield match[1], match[2], match.end()


def numbers(text):
    """Return the (kind, number) pairs in a list of parts such as "equations 1 and 4 to 6, appendix B"."""
    found = set()
    for parts in re.finditer(PARTS, text):
        kind, rest = parts[0].split(" ", 1)
        kind = {"eq.": "equation", "appendices": "appendix"}.get(kind, kind.removesuffix("s"))
        for first, last in re.findall(rf"({NUMBER})(?: to ({NUMBER}))?", rest):
            last = last or first
            found |= (
                {(kind, str(i)) for i in range(int(first), int(last) + 1)}
                if last != first
                else {(kind, first)}
            )
    return found


def cited_parts():
    """Yield (where, keys, parts) for each citation that a number of an equation or section follows."""
    after = rf"(?: \(|, )(?:{PARTS})(?:, (?:{PARTS}))*"
    for path, text in PACKAGE.items():
        for author, year, end in by_name(text):
            if match := re.match(after, text[end:].replace("\n", " ")):
                yield path, NAMED.get((author, year), set()), numbers(match[0])
    for path, text in PAGES.items():
        for cite in BY_KEY.finditer(text):
            if match := re.match(after, text[cite.end() :]):
                yield path, {cite[1]}, numbers(match[0])
    for path, text in (PACKAGE | PAGES).items():
        for words, key in APART.items():
            if words in text:
                yield path, {key}, numbers(words)


def test_the_file_parses_strictly():
    with pybtex.errors.capture() as problems:
        parse_string(BIB, "bibtex")
    assert not problems
    keys = re.findall(r"^@\w+\{([^,]+),", BIB, re.MULTILINE)
    assert keys == sorted(set(keys))
    for text in re.split(r"^@", BIB, flags=re.MULTILINE)[1:]:  # the parser takes the first of two fields
        fields = re.findall(r"^  (\w+) = \{.*\},$|^  (month) = \w+,$", text, re.MULTILINE)
        assert len(fields) == len(set(fields)) == text.count("\n  ")


@pytest.mark.parametrize("field", ["title", "eprint", "doi", "isbn", "url"])
def test_no_work_is_listed_twice(field):
    values = [item.fields[field] for item in ENTRIES.values() if field in item.fields]
    values = [re.sub(r"v\d+$", "", value) if field == "eprint" else plain(value) for value in values]
    assert len(values) == len(set(values))


@each
def test_an_entry_has_an_identifier_of_the_right_form(key):
    fields = ENTRIES[key].fields
    forms = {
        "eprint": r"\d\d(0[1-9]|1[0-2])\.\d{4,5}(v[1-9]\d?)?",
        "doi": r"10\.\d{4,5}/[^\s{}]+",
        "isbn": r"97[89](-\d+){4}",
        "url": r"https://[^\s?#{}]+",
    }
    present = [name for name in forms if name in fields]
    for name in present:
        assert re.fullmatch(forms[name], fields[name]), name
    if key in WITHOUT_IDENTIFIER:
        assert not present
        assert "no DOI" in fields["record"]
        assert {"journal", "volume", "pages"} <= set(fields)
    else:
        assert present
    assert fields.get("archivePrefix", "") == ("arXiv" if "eprint" in fields else "")
    if "isbn" in fields:
        digits = [int(digit) for digit in fields["isbn"] if digit.isdigit()]
        assert len(digits) == 13
        assert sum(d * (1, 3)[i % 2] for i, d in enumerate(digits)) % 10 == 0
    if ENTRIES[key].type == "book":
        assert "isbn" in fields


@each
def test_year_and_key_agree_with_identifier_and_authors(key):
    entry = ENTRIES[key]
    year = int(entry.fields["year"])
    prefix, in_key = re.match(r"([a-z]+)(\d{4})", key).groups()
    assert plain(surname(entry.persons["author"][0])).startswith(prefix)
    posted = 2000 + int(entry.fields["eprint"][:2]) if "eprint" in entry.fields else year
    assert int(in_key) in (year, posted)
    if "eprint" in entry.fields:
        later = year - posted
        venue = {"journal", "booktitle"} & set(entry.fields)
        assert later == 0 or (venue and later == 1), "a preprint of another year needs its venue"


@each
def test_authors_are_given_surname_first(key):
    text = re.search(rf"\{{{key},\n  author = \{{(.*)\}},\n", BIB)[1]
    authors = text.split(" and ")
    assert "others" not in authors[:-1]
    for author in authors:
        assert author in ("others", "DeepSeek-AI") or re.fullmatch(r"[^,]+, [^,]+", author), author


@each
def test_the_note_is_of_a_known_kind(key):
    fields = ENTRIES[key].fields
    assert fields["keywords"] in GROUPS
    assert re.fullmatch(r"(text|code|not read): \S.*|abstract(; \S.*)?", fields["read"])
    assert fields["read"].startswith("text") or not numbers(fields["read"])
    assert re.search(r"\b(cop(y|ies)|lists?|arXiv (record|records|abstract)|source)\b", fields["record"])
    assert not re.search(r"[.;,:]$", fields["read"] + "|" + fields["record"])


def test_every_number_of_an_equation_or_a_section_was_read_in_the_text():
    found = list(cited_parts())
    assert len(found) >= 30
    for where, keys, parts in found:
        assert parts, where
        assert any(parts <= numbers(ENTRIES[key].fields["read"]) for key in keys), (where, keys, parts)


def test_no_equation_or_appendix_is_named_without_its_work():
    """Or the test above would not see it: as many are attached to a citation as there are."""
    every = list(cited_parts())
    for path, text in (PACKAGE | PAGES).items():
        named = re.findall(rf"\b(?:eq\.|equations?|appendix|appendices) {NUMBER}", text.replace("\n", " "))
        attached = [parts for where, _, parts in every if where == path]
        counted = sum(len({kind for kind, _ in parts} - {"section"}) for parts in attached)
        assert len(named) == counted, (path.name, named, attached)


def test_every_citation_has_an_entry_and_every_entry_is_cited():
    text = "\n".join(PAGES.values())
    cited = {key.strip() for group in BY_KEY.findall(text) for key in group.split(",")}
    used = cited | {key for claim in claims.all_claims() for key in claim.sources}
    unknown = []
    for path, source in PACKAGE.items():
        for author, year, _ in by_name(source):
            found = NAMED.get((author, year), set())
            used |= found
            if not found:
                unknown.append((path.name, author, year))
    assert not unknown
    assert used == set(ENTRIES), sorted(used ^ set(ENTRIES))


LINKED = [
    path
    for pattern in ("README.md", "C*.md", "CITATION.cff", "pyproject.toml", "book/*.md", "book/*.ipynb")
    for path in sorted(ROOT.glob(pattern))
] + list(PACKAGE)
# Names of namespaces, which no reader follows.
NAMESPACES = re.compile(r"http://(www\.w3\.org|purl\.org|creativecommons\.org/ns)\b")
MOVED = re.compile(
    r"github\.com/(volcengine/verl|lvwerra/trl|inclusionAI/AReaL|NVIDIA/NeMo-RL)\b|arxiv\.org/pdf"
)


def test_links_are_secure_and_carry_no_tracking():
    for path in [*LINKED, BOOK / "references.bib"]:
        for url in re.findall(r"https?://[^\s\"'<>\\)\]}]+", path.read_text(encoding="utf-8")):
            if NAMESPACES.match(url):
                continue
            assert url.startswith("https://"), (path.name, url)
            assert not re.search(r"[?&](utm_|ref=|source=|fbclid|gclid)", url), (path.name, url)
            assert not MOVED.search(url), (path.name, url)


def test_a_note_reads_as_a_sentence():
    spec = importlib.util.spec_from_file_location("references_page", BOOK / "_ext" / "references.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.reading("text: section 2, equation 3") == "Read in the text: section 2, equation 3."
    assert module.reading("abstract; its code") == "Read: the abstract; its code."
    assert module.reading("not read: a name") == "Not read: a name."
    with pytest.raises(StopIteration):
        module.reading("skimmed")


@pytest.mark.book
def test_the_page_shows_every_entry_its_note_and_where_it_is_cited():
    html = Path(os.environ.get("KLTUTOR_BOOK", BOOK / "_build" / "html"))
    page = (html / "references.html").read_text(encoding="utf-8")
    found = re.findall(r'<div class="citation" id="(\w+)"[^>]*>(.*?id="ref-(\w+)".*?)</div>', page, re.DOTALL)
    boxes = {key: box for _, box, key in found}
    assert set(boxes) == set(ENTRIES)
    ids = {}
    for key, box in boxes.items():
        fields = ENTRIES[key].fields
        assert all(f"https://arxiv.org/abs/{fields[name]}" in box for name in ("eprint",) if name in fields)
        assert all(f"https://doi.org/{fields[name]}" in box for name in ("doi",) if name in fields)
        assert box.count('class="verification"') == 2
        assert "Record: " in box
        assert "Cited in " in box
        targets = re.findall(r'class="reference internal" href="([^"#]+)(?:#([^"]+))?"', box)
        assert targets, key
        for name, anchor in targets:
            if name not in ids:
                text = (html / name).read_text(encoding="utf-8")
                ids[name] = set(re.findall(r'id="([^"]+)"', text))
            assert not anchor or anchor in ids[name], (key, name, anchor)
    for path in html.glob("0[1-8]_*.html"):
        links = re.findall(r'href="references\.html#([^"]+)"', path.read_text(encoding="utf-8"))
        assert links
        assert set(links) <= {id for id, _, _ in found}, path.name
