"""The claims ledger as web pages: a row for each claim, a page for each chapter, and a list."""

import html
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from kltutor.claims import STATUS, Claim, Result, all_claims


def page(claim: Claim) -> str:
    """Return the name of the page, and of the notebook, that holds the claim's row.

    Example:
        >>> from kltutor import claims
        >>> page(claims.get("KL-205"))
        'claims_2'
    """
    return f"claims_{claim.section[0]}"


def of_chapter(chapter: int) -> tuple[Claim, ...]:
    """Return the claims of one chapter, in the order of their ids."""
    return tuple(claim for claim in all_claims() if claim.section[0] == str(chapter))


def as_html(results: Iterable[Result]) -> str:
    """Return the rows of the ledger, in the order given; MathJax sets the TeX between dollar signs."""
    return "\n".join(_row(result) for result in results)


def as_list(claims: Iterable[Claim]) -> str:
    """Return the bare statements, each behind a badge that leads to its row."""
    return "\n".join(
        f'<p class="mathjax_process"><a class="{_classes(claim)}" '
        f'href="{page(claim)}.html#{claim.id.lower()}">{_badge(claim)}</a> {_tex(claim.says)}</p>'
        for claim in claims
    )


def totals() -> list[dict[str, Any]]:
    """Return a row for each chapter, and one for all: how many claims it has, and how they are known."""
    rows: dict[str, list[Claim]] = {}
    for claim in all_claims():
        rows.setdefault(claim.section[0], []).append(claim)
    rows["all"] = list(all_claims())
    return [
        {"chapter": chapter, "claims": len(found)}
        | {status: Counter(STATUS[claim.kind] for claim in found)[status] for status in STATUS.values()}
        | {"folklore wrong": sum(claim.verdict == "folklore is wrong" for claim in found)}
        for chapter, found in rows.items()
    ]


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
        f'<p><span class="{_classes(claim)}">{_badge(claim)}</span> {_tex(claim.says)}</p>'
        f'<p class="meta">{_tex(verdict)}</p>'
        f'<p class="meta">{passed}<strong>Measured:</strong> {html.escape(result.evidence)}</p>'
        f"<details><summary>Section {claim.section}: the code that checks it</summary>{source}</details>"
        "</div>"
    )


def _classes(claim: Claim) -> str:
    return " ".join(("claim", *claim.classes))


def _badge(claim: Claim) -> str:
    return (
        f'<span class="claim-id">{claim.id}</span> <span class="claim-kind">{html.escape(claim.badge)}</span>'
    )


def _tex(text: str) -> str:
    r"""Escape for HTML and turn $…$ into \(…\), which MathJax reads."""
    return re.sub(r"\$([^$]+)\$", r"\\(\1\\)", html.escape(text, quote=False))
