"""The claims ledger as a web page: one row a claim, with its evidence and the code that checked it."""

import html
import inspect
import re
import textwrap
from collections.abc import Iterable

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from kltutor.claims import Result


def as_html(results: Iterable[Result]) -> str:
    """Return the rows of the ledger, in the order given; MathJax sets the TeX between dollar signs."""
    return "\n".join(_row(result) for result in results)


def _row(result: Result) -> str:
    claim = result.claim
    verdict = {
        "holds": "Holds.",
        "holds if": f"Holds if {claim.condition}",
        "folklore is wrong": f"Folklore is wrong. Often said: {claim.folklore}",
    }[claim.verdict]
    passed = "" if result.passed else "<strong>The check failed.</strong> "
    source = textwrap.dedent(inspect.getsource(claim.check))
    source = source[source.index("def ") :]  # the decorator only repeats the row
    source = highlight(source, PythonLexer(), HtmlFormatter())
    return (
        f'<div class="ledger-row mathjax_process" id="{claim.id.lower()}">'
        f'<p><span class="{" ".join(("claim", *claim.classes))}"><span class="claim-id">{claim.id}</span> '
        f'<span class="claim-kind">{html.escape(claim.badge)}</span></span> {_tex(claim.says)}</p>'
        f'<p class="meta">{_tex(verdict)}</p>'
        f'<p class="meta">{passed}<strong>Measured:</strong> {html.escape(result.evidence)}</p>'
        f"<details><summary>Section {claim.section}: the code that checks it</summary>{source}</details>"
        "</div>"
    )


def _tex(text: str) -> str:
    r"""Escape for HTML and turn $…$ into \(…\), which MathJax reads."""
    return re.sub(r"\$([^$]+)\$", r"\\(\1\\)", html.escape(text, quote=False))
