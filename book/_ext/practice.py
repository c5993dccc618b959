"""Give the practice page its scripts and its cards; see static/practice.

The cards are made from the question bank at each build. No other page gets
any of it, and nothing is fetched.
"""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from kltutor.interview import practice

SCRIPTS = ("ts-fsrs.umd", "core", "view", "cards", "mock")


def add_static(app: Sphinx, config: Any) -> None:
    """Copy the folder with scripts and style into the book."""
    config.html_static_path.append(str(Path(__file__).parent / "static"))


def add_practice(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doc: Any
) -> None:
    """Add scripts, style and cards to the page that has a place for them."""
    if 'id="practice-cards"' not in context.get("body", ""):
        return
    app.add_css_file("practice/practice.css")
    for script in SCRIPTS:
        app.add_js_file(f"practice/{script}.js", loading_method="defer")
    context["body"] += (
        '<script type="application/json" id="practice-data">'
        f"{practice.as_json()}</script>"
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.connect("config-inited", add_static)
    app.connect("html-page-context", add_practice)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
