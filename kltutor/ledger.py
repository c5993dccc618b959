"""The claims ledger as web pages: a row for each claim, a page for each chapter, and a list."""

import html
import inspect
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from kltutor.claims import STATUS, Claim, Result, all_claims
from kltutor.claims.text import plain

CHAPTERS = {  # the page of each chapter, and its numbered sections without the exercises and the summary
    "01_kl_basics": """
        Definition, conventions, properties
        Forward and reverse
        Relatives: JS, α, Hellinger, χ² and total variation
        Why RLHF adds a KL""",
    "02_estimators": """
        The Monte Carlo set-up
        k1: the log-ratio itself
        k2: half the square
        k3: a control variate that happens to be non-negative
        The three side by side
        The simulation, with the exact answers beside it
        Beyond one token
        Which one, at which distance
        The negative-KL clinic""",
    "03_placement": """
        KL in the reward
        KL in the loss
        Are the two equivalent?
        Who does what
        Off-policy samples
        The gradient of every estimator, placement and level""",
    "04_beta": """
        A fixed beta and its unit
        Two adaptive rules
        Annealing
        When beta fails
        The controller as a control loop""",
    "05_preference": """
        DPO
        GRPO in full
        SimPO
        KTO, IPO and ORPO
        Every loss against the optimum
        What the papers say""",
    "06_theory": """
        The closed form, three ways
        The implicit reward and the value of beta
        From Bradley-Terry to DPO
        Over-optimisation
        KL and chi-squared
        Token or sequence""",
    "07_practice": """
        PPO with the KL in the reward
        GRPO with the KL in the loss
        DPO and its dashboard
        Watching for over-optimisation
        Every algorithm, one table
        The debug checklist
        Running it""",
    "08_failures": """
        Collapse
        Runaway
        Over-optimisation
        Length
        The wrong reference
        Reading a log
        Checking a function""",
}
SHOWN = {"symbolic": "Proof", "exact": "Counterexample", "sampled": "Simulation", "cited": "Source"}
THEMES = {  # each erratum has one
    "Sign: what can be negative, and what falls": "204 218 221 223 225 504 508",
    "Direction: which of two KLs, and over whose samples": "110 111 112 120 227 316 405 503 518 627",
    "Unit: tokens, completions, and the scale of beta": "307 309 402 407 615 628 629 705 809 814",
    "Gradient: what a term descends": "224 304 305 306 319 320 321 323 324 710 803",
    "History: who did and wrote what": "124 217 220 312 314 326 517 524 614 620 625",
    "Noise: what samples show": "202 205 215 222 310 818",
    "Optimum: where training ends, if it ends": "311 507 515 520 603 604 605 611",
    "Control: what keeps a policy and its reward in place": "123 404 802 805 807 812",
    "Divergences: what each is and is not": "106 107 113 114 121 618",
}


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


def errata() -> tuple[Claim, ...]:
    """Return the claims that contradict what is often said, in the order of their ids."""
    return tuple(claim for claim in all_claims() if claim.verdict == "folklore is wrong")


def measured(rows: str) -> dict[str, str]:
    """Return the evidence by id from rows that `as_html` made; a check that failed has none."""
    found = {}
    for row in rows.split('<div class="ledger-row')[1:]:
        if match := re.search(r' id="(kl-\d+)">.*<p class="meta"><strong>Measured:</strong> (.*?)</p>', row):
            found[match[1].upper()] = html.unescape(match[2])
    return found


def as_errata(claims: Iterable[Claim], evidence: Mapping[str, str]) -> str:
    """Return for each what is often said, what is true, how it is known, and where the book says so.

    Raises:
        KeyError: a claim has no evidence.
    """
    return "\n".join(_erratum(claim, evidence[claim.id]) for claim in claims)


def as_themes() -> str:
    """Return the ids of the errata by theme; each leads to its entry on the same page."""
    found = {claim.id: claim for claim in errata()}
    return "\n".join(
        f"<p><strong>{theme}.</strong> {' '.join(_to_entry(found[f'KL-{n}']) for n in numbers.split())}</p>"
        for theme, numbers in THEMES.items()
    )


def section(claim: Claim) -> tuple[str, str]:
    """Return the address of the claim's section in the built book, and its number and title.

    Example:
        >>> from kltutor import claims
        >>> section(claims.get("KL-205"))
        ('02_estimators.html#k2-half-the-square', '2.3 k2: half the square')
    """
    chapter, number = map(int, claim.section.split("."))
    name, titles = list(CHAPTERS.items())[chapter - 1]
    title = textwrap.dedent(titles).split("\n")[number]
    ascii = unicodedata.normalize("NFKD", title.lower()).encode("ascii", "ignore").decode()
    anchor = re.sub(r"[^a-z0-9]+", "-", ascii).strip("-")  # as docutils makes it
    return f"{name}.html#{anchor}", f"{claim.section} {title}"


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


def _erratum(claim: Claim, evidence: str) -> str:
    address, title = section(claim)
    return (
        f'<div class="ledger-row mathjax_process" id="erratum-{claim.id.lower()}">'
        f'<p class="meta"><strong>Often said:</strong> {_tex(claim.folklore)}</p>'
        f'<p><a class="{_classes(claim)}" href="{page(claim)}.html#{claim.id.lower()}">{_badge(claim)}</a> '
        f"{_tex(claim.says)}</p>"
        f'<p class="meta"><strong>{SHOWN[claim.kind]}:</strong> {html.escape(evidence)}</p>'
        f'<p class="meta"><a href="{address}">Section {html.escape(title)}</a></p>'
        "</div>"
    )


def _to_entry(claim: Claim) -> str:
    said = html.escape(f"Often said: {plain(claim.folklore)}")
    return (
        f'<a class="{_classes(claim)}" href="#erratum-{claim.id.lower()}" title="{said}">'
        f'<span class="claim-id">{claim.id}</span></a>'
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
