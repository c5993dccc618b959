"""Print the built cheat sheet to a PDF of one A4 page, and link it on its page.

    python book/cheatsheet.py          the book in book/_build/html
    python book/cheatsheet.py HTML     the book in that folder

It needs Chromium. A sheet that does not fit one page, runs out of its block or
has letters smaller than 7.5 pt is refused: there is no PDF then, and no link.
"""

import re
import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject

PAGE, PDF = "00_cheat_sheet.html", "cheat_sheet.pdf"
SMALLEST = 7.5  # pt, formulas with their indices aside
WIDTH, HEIGHT = 741, 1077  # CSS pixels inside the margins of A4
LEAD = re.compile(r'<p class="sheet-lead">.*?</p>\n', re.DOTALL)
LINK = (
    f'<p class="sheet-pdf"><a class="reference internal" href="{PDF}">'
    "The sheet as a PDF of one page</a></p>\n"
)
# What runs out of its block, is too small, or not set in its own letters.
FAULTS = """smallest => {
  const sheet = document.querySelector("#cheat-sheet"), faults = [];
  const say = (element, what) => {
    const title = element.closest("section").querySelector("h1, h2").firstChild;
    const words = element.textContent.trim().slice(0, 40);
    faults.push(`${title.textContent}: "${words}" ${what}`);
  };
  const inside = (element, rectangles) => {
    const block = element.closest("section").getBoundingClientRect();
    const out = own => own.left < block.left - 1 || own.right > block.right + 1;
    if ([...rectangles].some(out)) say(element, "runs out of its block");
  };
  const whole = sheet.getBoundingClientRect();
  for (const block of sheet.querySelectorAll(":scope > *"))
    if (block.getBoundingClientRect().right > whole.right + 1)
      say(block, "lies beside the page");
  for (const formula of sheet.querySelectorAll("mjx-container, img"))
    inside(formula, formula.getClientRects());
  const texts = document.createTreeWalker(sheet, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode, element = text.parentElement;
    if (!text.textContent.trim() || !element.offsetParent) continue;
    if (element.closest("mjx-container, .claim-kind, .headerlink")) continue;
    const size = parseFloat(getComputedStyle(element).fontSize) * 0.75;
    if (size < smallest - 0.01) say(element, `is set in ${size.toFixed(2)} pt`);
    const range = document.createRange();
    range.selectNodeContents(text);
    inside(element, (element.closest(".claim") ?? range).getClientRects());
  }
  for (const formula of sheet.querySelectorAll("mjx-merror"))
    say(formula, "is no formula");
  const loaded = weight =>
    document.fonts.check(`${weight} 8pt "Sheet Sans"`, "K");
  if (![400, 600].every(loaded)) faults.push("Sheet Sans has not been loaded");
  return faults;
}"""


def chromium() -> str | None:
    """Return the path of a browser that can print, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def faults(page: Page) -> list[str]:
    """Return what is wrong with the sheet as it would be printed, in words."""
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    page.emulate_media(media="print", color_scheme="light")
    page.wait_for_function("window.MathJax?.startup?.promise")
    page.evaluate("() => MathJax.startup.promise")
    page.evaluate("() => document.fonts.ready.then(() => null)")
    found: list[str] = page.evaluate(FAULTS, SMALLEST)
    return found


def unlink(html: Path) -> None:
    """Take the PDF away, and the link to it."""
    (html / PDF).unlink(missing_ok=True)
    text = (html / PAGE).read_text(encoding="utf-8")
    if LINK in text:
        (html / PAGE).write_text(text.replace(LINK, ""), encoding="utf-8")


def link(html: Path) -> None:
    """Put the link to the PDF after the lead of the page."""
    text = (html / PAGE).read_text(encoding="utf-8")
    lead = LEAD.search(text)
    if lead is None:
        raise ValueError(f"{PAGE} has no paragraph of the class sheet-lead.")
    text = text[: lead.end()] + LINK + text[lead.end() :]
    (html / PAGE).write_text(text, encoding="utf-8")


def portable(printed: bytes, html: Path) -> PdfWriter:
    """Return the PDF with links that lead on from wherever the book lies."""
    writer = PdfWriter(clone_from=BytesIO(printed))
    here = html.resolve().as_uri() + "/"
    for page in writer.pages:
        for note in page.get("/Annots", []):
            action: Any = note.get_object().get("/A", {})
            if str(action.get("/URI", "")).startswith(here):
                target = str(action["/URI"]).removeprefix(here)
                action[NameObject("/URI")] = TextStringObject(target)
    writer.metadata = {"/Title": "KL in RLHF: cheat sheet"}
    return writer


def print_sheet(html: Path) -> list[str]:
    """Print the sheet and link it; return why it is refused, if it is."""
    unlink(html)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(color_scheme="light")
        page.goto((html / PAGE).resolve().as_uri())
        found = faults(page)
        printed = page.pdf(
            prefer_css_page_size=True, print_background=True, tagged=True
        )
        browser.close()
    count = len(PdfReader(BytesIO(printed)).pages)
    if count != 1:
        found.append(f"the sheet takes {count} pages; one is expected")
    if not found:
        portable(printed, html).write(html / PDF)
        link(html)
    return found


def main() -> None:
    """Print the sheet of the book in the folder that the command line names."""
    default = Path(__file__).parent / "_build" / "html"
    html = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if not (html / PAGE).exists():
        sys.exit(f"{html / PAGE} is not there; run make book first.")
    if chromium() is None:
        sys.exit("Install chromium: the PDF is printed by it.")
    if found := print_sheet(html):
        sys.exit("\n".join([f"No {PDF}:", *found]))
    print(html / PDF)


if __name__ == "__main__":
    main()
