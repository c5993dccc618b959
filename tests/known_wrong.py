"""What this subject's folklore gets wrong, as patterns that no text of ours may match in its own words.

The patterns stand in `known_wrong.yaml`, each with wrong sentences that it finds and true ones that it lets
pass; `refuted.yaml` lists the sentences of the book that quote such a thing to refute it.
"""

import html
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from kltutor.interview import terminal

HERE = Path(__file__).parent
NEGATION = r"not|no|never|neither|nor|none|nothing|cannot|isn't|doesn't|don't"
GAP = rf"(?:(?!\b(?:{NEGATION})\b|[.;?!] ).){{0,60}}?"  # of one sentence, without a negation
MARKUP = (
    (r"\\[()]", "$"),  # MathJax's own brackets
    (r"\\[\[\]]", "$$"),
    (r"\{(?:claim|cite(?::\w+)?)\}`[^`]*`", ""),
    (r"\{\w[\w:]*\}`([^`<]*)(?:<[^`]*>)?`", r"\1"),  # the words of a link
    (r"\[([^\]]*)\]\([^)\s]*\)", r"\1"),
    (r"</?[a-zA-Z][^<>]*>", " "),
    (r"(?<!\w)[*_]+(?=\w)|(?<=[\w.,;:?!\"”])[*]+", ""),  # emphasis
)
SPELLING = (  # one wording of what has many
    (r"[−–]", "-"),
    ("’", "'"),
    (r"(?<=\w)_(?=\w)", ""),
    (r"chi[- ]?squared?\b|\bchi2\b|χ\^?2", "χ²"),
    (r"\bbeta\b", "β"),
    (r"\b(?:Kullback.Leibler|KL)[- ]divergence\b", "KL"),
    (r"\bJensen.Shannon(?: divergence)?\b|\bJS[- ]divergence\b|\bJSD\b", "JS"),
    (r"π(?:θ|theta)\b|\bpitheta\b", "π"),
    (r"\b(?:π|pi)ref\b", "ref"),
    (r"\s*([-=<>≤≥≈+/·‖])\s*", r"\1"),
    ("‖", " ‖ "),
)
INDICES = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


@dataclass(frozen=True)
class Wrong:
    """Rows of the notes, a pattern over plain text, sentences that it finds, and true ones that pass."""

    rows: str
    pattern: str
    wrong: tuple[str, ...]
    right: tuple[str, ...]

    @property
    def regex(self) -> re.Pattern[str]:
        """The pattern with its gaps written out."""
        return re.compile(self.pattern.replace("…", GAP), re.IGNORECASE)


@dataclass(frozen=True)
class Refuted:
    """A sentence of the book that quotes folklore, where it stands, and what refutes it there."""

    page: str
    words: str
    because: str


def read(name, kind):
    """Return the entries of a file beside this one."""
    entries = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return [kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in e.items()}) for e in entries]


WRONG = read("known_wrong.yaml", Wrong)
REGEX = [(entry.rows, entry.regex) for entry in WRONG]


def plainly(text: str) -> str:
    """Return a text on one line, its markup and formulas as plain Unicode, in one spelling."""
    for pattern, replacement in MARKUP:
        text = re.sub(pattern, replacement, text)
    text = html.unescape(text)
    text = terminal(text) if "$" in text else text.replace("`", "")
    line = " ".join(text.split()).translate(INDICES)
    for pattern, replacement in SPELLING:
        line = re.sub(pattern, replacement, line, flags=re.IGNORECASE)
    return line.strip()


def says(text: str) -> list[str]:
    """Return the rows whose wrong statement a text makes; formulas stand between dollar signs."""
    return found(plainly(text))


def found(line: str) -> list[str]:
    """Return the same of a line that `plainly` made."""
    return [rows for rows, regex in REGEX if regex.search(line)]
