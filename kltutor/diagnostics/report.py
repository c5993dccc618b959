"""What a diagnosis says: findings with their evidence, what they explain, and what the log cannot tell."""

import html
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from kltutor.diagnostics.remedies import EXPLAINS, HEALTHY, MODES, REMEDIES, SECTIONS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong.

    Attributes:
        mode: its name, from `MODES`.
        cause: which of the mode's causes it looks like, or what it comes down to; a few words.
        evidence: sentences with numbers, units and steps.
        measure: the number that decided.
        threshold: from where on it decides.
        measured: what the number is, with its unit.
        steps: first and last step that the evidence is from.
        columns: that the evidence is read from.
        explained_by: a finding of higher rank that brings this one about, or "".
    """

    mode: str
    cause: str
    evidence: tuple[str, ...]
    measure: float
    threshold: float
    measured: str
    steps: tuple[float, float]
    columns: tuple[str, ...]
    explained_by: str = ""

    @property
    def confidence(self) -> str:
        """Say by how much the evidence is past its threshold; no probability."""
        return f"{self.measured}: {self.measure:.3g}, where {self.threshold:.3g} decides"

    @property
    def section(self) -> str:
        """The section of the book about the mode."""
        return SECTIONS[self.mode]

    @property
    def what_to_try(self) -> tuple[str, ...]:
        """What to try, the first thing first."""
        return REMEDIES.get((self.mode, self.cause), REMEDIES[self.mode, ""])

    def to_dict(self) -> dict[str, Any]:
        """Return the finding in types that JSON can hold."""
        return {
            "mode": self.mode,
            "cause": self.cause,
            "evidence": list(self.evidence),
            "confidence": self.confidence,
            "measure": self.measure if math.isfinite(self.measure) else None,
            "threshold": self.threshold,
            "steps": list(self.steps),
            "columns": list(self.columns),
            "explained_by": self.explained_by,
            "what_to_try": list(self.what_to_try),
            "section": self.section,
        }


class Remark(NamedTuple):
    """Something seen that is no fault."""

    text: str


class Unseen(NamedTuple):
    """Why a log cannot show a mode."""

    why: str


Seen = Finding | Remark | Unseen | None  # None: the log could show the mode, and does not


@dataclass(frozen=True)
class Report:
    """What a log shows.

    Attributes:
        findings: the main one first.
        remarks: what was seen and is no fault.
        unseen: of modes that this log cannot show, why not.
        source: of the log.
        notes: what was done to the log in reading.
    """

    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    unseen: dict[str, str]
    source: str
    notes: tuple[str, ...]

    @property
    def mode(self) -> str:
        """The mode of the main finding, "healthy" if there is none."""
        return self.findings[0].mode if self.findings else HEALTHY

    def to_dict(self) -> dict[str, Any]:
        """Return the report in types that JSON can hold."""
        return {
            "source": self.source,
            "mode": self.mode,
            "findings": [finding.to_dict() for finding in self.findings],
            "remarks": list(self.remarks),
            "unseen": dict(self.unseen),
            "notes": list(self.notes),
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return the report as lines, each with its kind: head, text, item, or note."""
        told = [("head", f"{self.source}: {self.mode}")]
        if not self.findings:
            told.append(("text", "Nothing that this log can show is wrong."))
        for finding in self.findings:
            cause = f", {finding.cause}" if finding.cause else ""
            told.append(("head", f"{finding.mode}{cause} (section {finding.section})"))
            told += [("text", sentence) for sentence in finding.evidence]
            told.append(("note", f"{finding.confidence}."))
            if finding.explained_by:
                told.append(("text", f"It follows from {finding.explained_by}; mend that first."))
            else:
                told += [("item", advice) for advice in finding.what_to_try]
        told += [("text", remark) for remark in self.remarks]
        told += [("note", f"Not to be seen here: {mode}. {why}") for mode, why in self.unseen.items()]
        return told + [("note", note) for note in self.notes]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Print on a terminal."""
        from rich.text import Text

        styles = {"head": "bold", "text": "", "item": "", "note": "dim"}
        for kind, line in self.lines():
            yield Text(f"- {line}" if kind == "item" else line, style=styles[kind])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the lines in IPython; `repr` has every digit, which the next machine need not have."""
        printer.text("\n".join(f"- {line}" if kind == "item" else line for kind, line in self.lines()))

    def _repr_html_(self) -> str:
        tags = {"head": "strong", "text": "span", "item": "span", "note": "small"}
        return "".join(
            f"<p><{tags[kind]}>{'– ' if kind == 'item' else ''}{html.escape(line)}</{tags[kind]}></p>"
            for kind, line in self.lines()
        )


def rank(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return findings in the order of `MODES`, causes first, and say which follows from which."""
    ordered = sorted(findings, key=lambda finding: MODES.index(finding.mode))
    ranked: list[Finding] = []
    for finding in ordered:
        causes = [above.mode for above in ranked if finding.mode in EXPLAINS.get(above.mode, ())]
        ranked.append(replace(finding, explained_by=causes[0]) if causes else finding)
    return tuple(ranked)
