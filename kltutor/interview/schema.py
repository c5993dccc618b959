"""What an entry of the question bank holds, and what is refused when it is read.

The files `questions_1.yaml` to `questions_3.yaml` hold one list of questions for each level. In every text
formulas stand between $ or $$; see `kltutor.interview.render` for the forms that can be made of it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Topic = Literal[
    "basics", "estimators", "placement", "beta", "preference", "theory", "over-optimisation", "practice"
]
Level = Literal[1, 2, 3]


def _pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, dict) else value


def _text(text: str) -> str:
    if text != text.strip() or not text:
        raise ValueError("is empty or has blanks at an end.")
    if text.count("$") % 2 or text.replace("$$", "").count("$") % 2:
        raise ValueError(f"has a dollar sign without its partner: {text!r}.")
    for formula in re.findall(r"\$+([^$]+)\$", text):
        if formula.count("{") != formula.count("}"):
            raise ValueError(f"has braces that do not match in {formula!r}.")
    return text


def _unique(items: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(items)) != len(items):
        raise ValueError(f"has an entry twice: {items}.")
    return items


Text = Annotated[str, AfterValidator(_text)]
Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)]
Claims = Annotated[
    tuple[Annotated[str, Field(pattern=r"^KL-\d{3}$")], ...], Field(min_length=1), AfterValidator(_unique)
]
Labels = Annotated[
    tuple[Annotated[str, Field(pattern=r"^ch[\w-]+$")], ...], Field(min_length=1), AfterValidator(_unique)
]


def words(text: str) -> int:
    """Return the number of words, each formula counted as one.

    Example:
        >>> words("So $a + b$ is two.")
        4
    """
    return len(re.sub(r"\$\$.+?\$\$|\$.+?\$", "x", text, flags=re.DOTALL).split())


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WrongAnswer(_Record):
    """A misconception as one would hear it, and what refutes it.

    Attributes:
        says: the wrong answer.
        because: the refutation, with a counterexample.
    """

    says: Text
    because: Text


class _Entry(_Record):
    """What questions and follow-ups have in common.

    Attributes:
        id: "Q07", or "Q07a" for a follow-up.
        question: as an examiner would ask it.
        hint: a first push that does not give the answer away.
        answer: as one could say it in an interview.
        rubric: points to tick, each one sentence.
        claims: ids of the ledger that the answer rests on.
        sections: labels of the chapters' sections to reread.
        checks: numbers as printed, with the expression that computes each; see `kltutor.interview.numbers`.
        cited: numbers as printed, with the claim whose statement holds each.
        wrong: common wrong answers.
    """

    id: str
    question: Text
    hint: Text
    answer: Text
    rubric: tuple[Text, ...]
    claims: Claims
    sections: Labels
    checks: Pairs = ()
    cited: Pairs = ()
    wrong: tuple[WrongAnswer, ...] = ()

    @property
    def own_words(self) -> tuple[str, ...]:
        """Return every text that the bank states as true: all but the wrong answers it quotes."""
        refuted = tuple(wrong.because for wrong in self.wrong)
        return (self.question, self.hint, self.answer, *self.rubric, *refuted)

    @model_validator(mode="after")
    def _cited_claims_are_named(self) -> "_Entry":
        missing = {claim for _, claim in self.cited} - set(self.claims)
        if missing:
            raise ValueError(f"cites {', '.join(sorted(missing))}, which its claims do not name.")
        return self


class FollowUp(_Entry):
    """The examiner's next question, with a short model answer."""

    id: Annotated[str, Field(pattern=r"^Q\d\d[a-z]$")]
    rubric: Annotated[tuple[Text, ...], Field(min_length=2, max_length=4)]

    @model_validator(mode="after")
    def _answer_is_short(self) -> "FollowUp":
        if not 40 <= words(self.answer) <= 130:
            raise ValueError(f"answer has {words(self.answer)} words; 40 to 130 are expected.")
        return self


class Question(_Entry):
    """One of the questions of an interview; attributes as `_Entry`, and these.

    Attributes:
        level: 1 is asked everywhere, 2 by a team that works on alignment, 3 is hard or open.
        topic: for choosing.
        follow_ups: what the examiner asks next.
    """

    id: Annotated[str, Field(pattern=r"^Q\d\d$")]
    level: Level
    topic: Topic
    rubric: Annotated[tuple[Text, ...], Field(min_length=3, max_length=6)]
    wrong: Annotated[tuple[WrongAnswer, ...], Field(min_length=1)]
    follow_ups: Annotated[tuple[FollowUp, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _belongs_together(self) -> "Question":
        if not 60 <= words(self.answer) <= 200:
            raise ValueError(f"answer has {words(self.answer)} words; 60 to 200 are expected.")
        for letter, follow_up in zip("abcdefgh", self.follow_ups, strict=False):
            if follow_up.id != self.id + letter:
                raise ValueError(f"follow-up {follow_up.id} stands where {self.id + letter} is expected.")
        return self
