"""Estimate how long pages of a built book, or sections of them, take to read.

    python book/reading.py 01_kl_basics.html 02_estimators.html#ch2-clinic

Counted is what one sees without a click. Playing with a widget, exercises and
whatever is folded take their own time.
"""

import sys
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString, PageElement

HTML = Path(__file__).parent / "_build" / "html"
WORD, INLINE, CODE_LINE, DISPLAYED = 0.5, 3.0, 5.0, 30.0  # seconds each
NOT_READ = {"script", "style", "details"}
FOLDED = {"headerlink", "dropdown", "kl-widget"}  # or no prose at all


@cache
def parse(page: Path) -> BeautifulSoup:
    """Return a page as a tree, which nobody may change."""
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def part(page: Path, label: str) -> Tag:
    """Return the article of a page, or the section that a label stands in."""
    heads = f"section[id='{label}'], section > [id='{label}']"
    found = parse(page).select_one(heads if label else "article")
    if found is None:
        raise ValueError(f"{page.name} has no section {label!r}.")
    if label and found.name != "section" and found.parent:
        return found.parent
    return found


def seconds(piece: PageElement) -> float:
    """Return how long a piece of a page takes, with all that is in it."""
    if type(piece) is NavigableString:  # and no comment
        return WORD * len(piece.split())
    if not isinstance(piece, Tag):
        return 0.0
    kinds = set(piece.get("class") or [])
    if piece.name in NOT_READ or kinds & FOLDED:
        return 0.0
    if piece.name == "img" or (piece.name == "div" and "math" in kinds):
        return DISPLAYED
    if "math" in kinds:
        return INLINE
    if "highlight" in kinds:
        lines = piece.get_text().splitlines()
        return CODE_LINE * sum(bool(line.strip()) for line in lines)
    return sum(seconds(child) for child in piece.children)


def minutes(target: str, html: Path = HTML) -> float:
    """Return the minutes for `page.html` or for `page.html#label`."""
    name, _, label = target.partition("#")
    return seconds(part(html / name, label)) / 60


def main() -> None:
    """Print the minutes of each target on the command line, and their sum."""
    found = {target: minutes(target) for target in sys.argv[1:]}
    for target, time in found.items():
        print(f"{time:6.1f}  {target}")
    print(f"{sum(found.values()):6.1f}  minutes")


if __name__ == "__main__":
    main()
