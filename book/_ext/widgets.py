"""Make widgets run in the built book: a page gets their sources, once each.

A notebook's output holds only a widget's place and state, so its bytes do not
change with the source. Nothing is fetched, and the state that a build's own
kernel leaves behind is not put into the page.
"""

from typing import Any

from sphinx.application import Sphinx

from kltutor.widgets import page


def add_sources(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doc: Any
) -> None:
    """Append sources and style to the body of a page that has widgets."""
    if context.get("body"):
        context["body"] += page.markup(context["body"])


def drop_state(app: Sphinx, env: Any) -> None:
    """Forget the state of the kernel that executed a page, where one did."""
    for found in getattr(env, "nb_metadata", {}).values():
        found.get("js_files", {}).pop("ipywidgets_state", None)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.connect("env-updated", drop_state)
    app.connect("html-page-context", add_sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
