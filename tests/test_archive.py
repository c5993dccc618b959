"""The book as one archive: the same bytes each time, complete, and at home anywhere with the network off."""

import importlib.util
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from widget_page import listen

pytestmark = pytest.mark.book

BOOK = Path(__file__).parents[1] / "book"
HTML = Path(os.environ.get("KLTUTOR_BOOK", BOOK / "_build" / "html"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("archive", BOOK / "archive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy(script, to):
    """Put the built book into another folder, without the archive that it may have."""
    shutil.copytree(HTML, to, ignore=shutil.ignore_patterns(script.NAME))
    script.clean(to)
    return to


@pytest.fixture(scope="module")
def packed(script, tmp_path_factory):
    html = copy(script, tmp_path_factory.mktemp("pack") / "html")
    assert script.pack(html) == []
    return html


@pytest.fixture(scope="module")
def archive(script, packed):
    with zipfile.ZipFile(packed / script.NAME) as opened:
        assert opened.testzip() is None
        yield opened


@pytest.fixture(scope="module")
def unpacked(archive, tmp_path_factory):
    """Unpack to a place with a space and letters that are not ASCII."""
    place = tmp_path_factory.mktemp("un") / "Mein Büchlein 书"
    archive.extractall(place)
    (folder,) = place.iterdir()
    return folder


def test_the_same_book_gives_the_same_bytes_wherever_and_whenever_it_is_packed(script, packed, tmp_path):
    first = (packed / script.NAME).read_bytes()
    linked = (packed / script.PAGE).read_bytes()
    assert script.pack(packed) == []  # the page has a link now, which its copy in the archive has not
    assert (packed / script.NAME).read_bytes() == first
    assert (packed / script.PAGE).read_bytes() == linked
    other = copy(script, tmp_path / "elsewhere")
    os.utime(other / "searchindex.js", (0, 10**9))
    assert script.pack(other) == []
    assert (other / script.NAME).read_bytes() == first


def test_it_has_one_folder_with_the_book_its_licence_and_what_to_do_with_it(archive):
    names = archive.namelist()
    (folder,) = {name.partition("/")[0] for name in names}
    assert re.fullmatch(r"kl-in-rlhf-\d+\.\d+\.\d+", folder)
    book = [name for name in names if "/book/" in name]
    assert book == sorted(book)  # not in the order in which a disk lists them
    top = {name.split("/")[1] for name in names}
    assert top == {"index.html", "README.txt", "LICENSE", "book"}
    readme = archive.read(f"{folder}/README.txt").decode().splitlines()
    assert len(readme) == 3
    assert folder.rpartition("-")[2] in readme[0]
    assert archive.read(f"{folder}/LICENSE") == (BOOK.parent / "LICENSE").read_bytes()
    assert len({info.date_time for info in archive.infolist()}) == 1
    assert {info.external_attr >> 16 for info in archive.infolist()} == {0o100644}


def test_all_pages_and_downloads_are_in_it_and_nothing_that_no_page_needs(script, archive):
    inside = {name.split("/book/")[1] for name in archive.namelist() if "/book/" in name}
    pages = {path.name for path in HTML.glob("*.html")}
    assert pages <= inside
    assert {f"_sources/{path.name}" for path in BOOK.glob("*.ipynb")} <= inside
    spare = [
        name for name in inside if re.search(r"\.(zip|map|doctree|pickle)$|objects\.inv|buildinfo", name)
    ]
    assert spare == []
    assert Path(archive.filename).stat().st_size < 12_000_000


def test_no_file_names_the_machine_that_built_it(unpacked):
    place = re.compile(rb"(?<![\w.])/(root|home|tmp|work|Users|private|build)/[\w.]|[A-Z]:\\\\?Users")
    for path in unpacked.rglob("*"):
        name = path.relative_to(unpacked).as_posix()
        if path.is_file() and not name.startswith("book/_static/mathjax/"):  # one names its maker's machine
            found = place.search(path.read_bytes())
            assert not found, f"{name}: {found and found[0]}"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def test_it_opens_by_double_click_and_everything_works(unpacked, chromium, width, scheme):
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme
    )
    page = context.new_page()
    heard = listen(page)
    page.on("requestfailed", lambda request: heard.append(f"not loaded: {request.url}"))
    page.goto((unpacked / "index.html").as_uri())
    page.wait_for_url("**/book/intro.html")

    page.locator(".kl-root").wait_for(timeout=20_000)
    slider = page.get_by_role("slider", name=re.compile("β, the price"))
    before = page.locator(".kl-widget [data-number='kl']").first.inner_text()
    slider.focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".kl-widget [data-number='kl']").first.inner_text() != before
    assert page.locator("article p.archive").count() == 0  # an archive does not hold itself

    page.locator("article").get_by_role("link", name="Why is my KL negative?").click()
    page.wait_for_url("**/02_estimators.html#ch2-clinic")
    page.evaluate("() => MathJax.startup.promise.then(() => null)")
    assert page.locator("mjx-container").count() > 100
    assert page.locator(".math:not(:has(mjx-container))").count() == 0
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate(
        "() => [...document.querySelectorAll('article img')].every(i => i.complete && i.naturalWidth > 0)"
    )

    page.goto((unpacked / "book" / "search.html").as_uri() + "?q=variance")
    page.locator("#search-results li a").first.wait_for(timeout=10_000)
    assert page.locator("#search-results a[href*='02_estimators']").count() > 0

    page.goto((unpacked / "book" / "practice.html").as_uri())
    page.wait_for_load_state("load")
    assert page.get_by_role("heading", level=1).inner_text().endswith("Cards and a mock interview")
    assert [words for words in heard if "theme mode" not in words] == []
    context.close()


def test_alone_the_first_page_says_that_the_archive_must_be_unpacked(unpacked, chromium, tmp_path):
    shutil.copy(unpacked / "index.html", tmp_path)
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.get_by_text("Unpack the whole archive").wait_for(timeout=10_000)
    assert page.url.endswith("index.html")
    context.close()
    context = chromium.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto((unpacked / "index.html").as_uri())
    page.wait_for_url("**/book/intro.html")
    context.close()


def test_the_link_is_there_with_the_archive_and_only_with_it(script, packed):
    text = (packed / script.PAGE).read_text(encoding="utf-8")
    megabytes = (packed / script.NAME).stat().st_size / 1e6
    (link,) = re.findall(r'<p class="archive">.*?</p>', text)
    assert f'href="{script.NAME}"' in link
    assert f"{megabytes:.1f} MB" in link
    assert (f'href="{script.NAME}"' in (HTML / script.PAGE).read_text()) <= (HTML / script.NAME).exists()


FAULTS = {
    "a picture that is missing": (
        lambda html: next((html / "_images").glob("*.svg")).unlink(),
        r"links _images/.*not there",
    ),
    "a page that is missing": (lambda html: (html / "notation.html").unlink(), r"links notation.html"),
    "a formula's script that is missing": (
        lambda html: (html / "_static/mathjax/tex-chtml.js").unlink(),
        r"links _static/mathjax/tex-chtml.js",
    ),
    "a place on this machine": (
        lambda html: (html / "searchindex.js").write_text(f"// {html}/x"),
        r"searchindex.js names",
    ),
    "no place for the link": (
        lambda html: (html / "intro.html").write_text("<p>Nothing</p>"),
        r"no paragraph of the class archive-lead",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_book_with_a_fault_is_refused_and_nothing_of_the_day_before_stays(script, packed, tmp_path, case):
    spoil, complaint = FAULTS[case]
    html = tmp_path / "html"
    shutil.copytree(packed, html)
    spoil(html)
    found = script.pack(html)
    assert any(re.search(complaint, words) for words in found), found
    assert not (html / script.NAME).exists()
    assert 'class="archive"' not in (html / script.PAGE).read_text(encoding="utf-8")


def test_the_command_refuses_what_is_no_built_book_and_what_has_faults(script, packed, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["archive.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no intro\.html; run make book first"):
        script.main()
    assert list(tmp_path.iterdir()) == []
    half = tmp_path / "half"
    half.mkdir()
    (half / "intro.html").write_text("<html>")
    monkeypatch.setattr("sys.argv", ["archive.py", str(half)])
    with pytest.raises(SystemExit, match=r"no searchindex\.js"):
        script.main()
    html = tmp_path / "html"
    shutil.copytree(packed, html)
    (html / "errata.html").unlink()
    monkeypatch.setattr("sys.argv", ["archive.py", str(html)])
    with pytest.raises(SystemExit, match=r"(?s)No kl-in-rlhf\.zip:.*errata\.html"):
        script.main()
