"""What the book's build needs beyond its extensions: the claim role, a switch for execution, plain bars."""

import os
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx

from kltutor import claims
from kltutor.ledger import badge_classes, plain


def claim_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Render {claim}`KL-101` as a badge that says how the claim is known and links to its row in the ledger."""
    try:
        claim = claims.get(text)
    except ValueError as error:
        message = inliner.reporter.error(str(error), line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    env = inliner.document.settings.env
    target = env.app.builder.get_relative_uri(env.docname, "claims") + "#" + claim.id.lower()
    badge = nodes.reference("", "", refuri=target, internal=True, reftitle=plain(claim.says), classes=badge_classes(claim))
    badge += nodes.inline("", claim.id, classes=["claim-id"])
    badge += nodes.inline("", claim.badge, classes=["claim-kind"])
    return [badge], []


def set_execution(app: Sphinx, config: Any) -> None:
    """Let KLTUTOR_EXECUTE override execute_notebooks, so that a strict build can use the stored outputs."""
    config.nb_execution_mode = os.environ.get("KLTUTOR_EXECUTE", config.nb_execution_mode)


def escape_bars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep π(y|x) and |y| in a docstring from being read as a substitution."""
    lines[:] = [line if line.lstrip().startswith(">>>") else line.replace("|", "\\|") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role, the switch and the escape."""
    app.add_role("claim", claim_role)
    app.connect("config-inited", set_execution)
    app.connect("autodoc-process-docstring", escape_bars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
