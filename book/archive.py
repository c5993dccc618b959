"""Pack the built book into one archive that opens by double-click, and link it.

    python book/archive.py          the book in book/_build/html
    python book/archive.py HTML     the book in that folder

The archive is HTML/kl-in-rlhf.zip, and the same book gives the same bytes. It
is refused if a link in it would lead nowhere, or a file names this machine;
there is no archive then, and no link to it.
"""

import posixpath
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

ROOT = Path(__file__).resolve().parents[1]
PAGE, NAME = "intro.html", "kl-in-rlhf.zip"
NEEDED = (PAGE, "searchindex.js", "_static/kltutor.css")  # has every built book
# What no page loads or links: maps for debuggers, templates, translations.
SPARE = (
    ".buildinfo",
    "objects.inv",
    "_modules/index.html",
    "*.map",
    "*-macros.html",
    "_static/locales/*",
    NAME,
)
BUNDLE = re.compile(r"_static/mathjax/[^/]+\.js")  # a page loads one of many
PLACES = re.compile(r"""<[^<>]*?\s(?:href|src)=["']([^"'#?]+)""")
LEAD = re.compile(r'<p class="archive-lead">.*?</p>\n', re.DOTALL)
LINK = (
    f'<p class="archive"><a class="reference internal" href="{NAME}" download>'
    "The book as one archive</a>, {:.1f} MB</p>\n"
)
LINKED = re.compile(r'<p class="archive">.*?</p>\n')
README = """KL in RLHF, version {version}: the whole book, no network needed.
Unpack all of it, then open index.html in a browser.
Code under MIT, text under CC BY 4.0; see LICENSE.
"""
# Opened from within a packed archive, a page stands alone: then it says so.
START = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>KL in RLHF</title>
<noscript><meta http-equiv="refresh" content="0; url=book/{page}"></noscript>
<style>
  body {{ margin: 4rem auto; max-width: 32rem; padding: 0 1rem; }}
  body {{ font: 1.1rem/1.5 sans-serif; }}
</style>
<h1>KL in RLHF</h1>
<p><a href="book/{page}">Open the book</a></p>
<p id="packed" hidden>The book is not beside this page. Unpack the whole
archive, and open index.html in the folder that this makes.</p>
<script>
  const test = new Image();
  test.onload = () => location.replace("book/{page}");
  test.onerror = () => {{ document.getElementById("packed").hidden = false; }};
  test.src = "book/_static/logo.svg";
</script>
</html>
"""


def clean(html: Path) -> None:
    """Take the archive away, and the link to it."""
    (html / NAME).unlink(missing_ok=True)
    text = (html / PAGE).read_text(encoding="utf-8")
    if LINKED.search(text):
        (html / PAGE).write_text(LINKED.sub("", text), encoding="utf-8")


def content(html: Path) -> dict[str, bytes]:
    """Return the files of the book that a reader needs, by their path."""
    names = sorted(
        path.relative_to(html).as_posix()
        for path in html.rglob("*")
        if path.is_file()
    )
    pages = "".join(
        path.read_text(encoding="utf-8") for path in html.glob("*.html")
    )
    return {
        name: (html / name).read_bytes()
        for name in names
        if not any(fnmatch(name, spare) for spare in SPARE)
        and not (BUNDLE.fullmatch(name) and f'"{name}' not in pages)
    }


def faults(files: dict[str, bytes], private: list[str]) -> list[str]:
    """Return which links lead nowhere and which files name a private place."""
    found = []
    for name, data in files.items():
        for place in private:
            if place.encode() in data:
                found.append(f"{name} names {place}")
        if name.endswith(".html"):
            folder = posixpath.dirname(name)
            for target in sorted(set(PLACES.findall(data.decode()))):
                if re.match(r"\w+:|//", target):  # of the web, or data
                    continue
                leads = posixpath.normpath(f"{folder}/{unquote(target)}")
                if leads.lstrip("/") not in files:
                    found.append(f"{name} links {target}, which is not there")
    return found


def write(files: dict[str, bytes], folder: str, to: Path) -> None:
    """Write an archive of one folder, in the order given, with no day in it."""
    with ZipFile(to, "w") as archive:
        for name, data in files.items():
            info = ZipInfo(f"{folder}/{name}", (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system = ZIP_DEFLATED, 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data, compresslevel=9)


def pack(html: Path) -> list[str]:
    """Write the archive and link it; return why it is refused, if it is."""
    clean(html)
    text = (html / PAGE).read_text(encoding="utf-8")
    if (lead := LEAD.search(text)) is None:
        return [f"{PAGE} has no paragraph of the class archive-lead"]
    files = content(html)
    private = [str(ROOT), str(html.resolve()), f"{Path.home()}/"]
    if found := faults(files, private):
        return found
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = about["project"]["version"]
    top = {
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
        "README.txt": README.format(version=version).encode(),
        "index.html": START.format(page=PAGE).encode(),
    }
    book = {f"book/{name}": data for name, data in files.items()}
    write({**top, **book}, f"kl-in-rlhf-{version}", html / NAME)
    link = LINK.format((html / NAME).stat().st_size / 1e6)
    text = text[: lead.end()] + link + text[lead.end() :]
    (html / PAGE).write_text(text, encoding="utf-8")
    return []


def main() -> None:
    """Pack the book in the folder that the command line names."""
    default = Path(__file__).parent / "_build" / "html"
    html = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if missing := [name for name in NEEDED if not (html / name).exists()]:
        sys.exit(f"{html} has no {missing[0]}; run make book first.")
    if found := pack(html):
        sys.exit("\n".join([f"No {NAME}:", *found]))
    print(html / NAME)


if __name__ == "__main__":
    main()
