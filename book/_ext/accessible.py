"""Mend what the theme and the extensions leave unreadable to a screen reader.

Each mend is for one finding of axe-core, which the tests run on every page: a
label that hides the words it should name, a summary or a list without what its
role needs, and boxes that scroll but cannot be reached by keys.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

MENDS = (
    # The words inside, "Show the code", are the better name.
    (r' aria-label="Toggle hidden content"', ""),
    (r'(search-button-field[^>]*) aria-label="Search"', r"\1"),
    # The button has a name; its pictures need none.
    (r'(<i class="theme-switch [^>]*?) +title="[^"]*"', r"\1"),
    (
        r'<summary>(?=<span class="toctree-toggle")',
        '<summary aria-label="Show or hide the pages below">',
    ),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
)
TAB_STOPS = """
addEventListener("load", () => {
  const update = () => {
    for (const box of document.querySelectorAll(".cell_output")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  update();
  addEventListener("resize", update);
});
"""


def mend(text: str) -> str:
    """Return a page's HTML with every mend made; once more changes nothing."""
    for found, better in MENDS:
        text = re.sub(found, better, text)
    return text


def mend_pages(app: Sphinx, error: Exception | None) -> None:
    """Mend the pages of a finished HTML build."""
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).glob("*.html"):
            text = path.read_text(encoding="utf-8")
            if (better := mend(text)) != text:
                path.write_text(better, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.add_js_file(None, body=TAB_STOPS)
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
