"""What the build needs beyond its extensions.

A {claim} role, a switch for execution, and plain bars in docstrings.
"""

import os
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx

from kltutor import claims, ledger

Rendered = tuple[list[nodes.Node], list[nodes.system_message]]


def claim_role(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Inliner,
    options: Any = None,
    content: Any = (),
) -> Rendered:
    """Render {claim}`KL-101` as a badge that links to its row of the ledger.

    The badge says how the claim is known. An unknown id is an error.
    """
    try:
        claim = claims.get(text)
    except ValueError as error:
        message = inliner.reporter.error(str(error), line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    env = inliner.document.settings.env
    page = env.app.builder.get_relative_uri(env.docname, ledger.page(claim))
    badge = nodes.reference(
        "",
        "",
        refuri=f"{page}#{claim.id.lower()}",
        internal=True,
        reftitle=claim.plain,
        classes=["claim", *claim.classes],
    )
    badge += nodes.inline("", claim.id, classes=["claim-id"])
    badge += nodes.inline("", claim.badge, classes=["claim-kind"])
    return [badge], []


def set_execution(app: Sphinx, config: Any) -> None:
    """Let KLTUTOR_EXECUTE override execute_notebooks."""
    mode = os.environ.get("KLTUTOR_EXECUTE", config.nb_execution_mode)
    config.nb_execution_mode = mode


def escape_bars(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep π(y|x) and |y| in a docstring from being read as a substitution."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            lines[i] = line.replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all three."""
    app.add_role("claim", claim_role)
    # The ledger has formulas in its output only, which Sphinx does not see.
    app.set_html_assets_policy("always")
    app.connect("config-inited", set_execution)
    app.connect("autodoc-process-docstring", escape_bars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
