"""The interview: a bank of questions with checked answers, and numeric questions made from seeds."""

from kltutor.interview.bank import LEVELS, TOPICS, entries, get, questions
from kltutor.interview.numeric import KINDS, NumericQuestion, Trap, numeric_question, numeric_questions
from kltutor.interview.render import mathjax, terminal
from kltutor.interview.schema import FollowUp, Question, WrongAnswer

__all__ = [
    "KINDS",
    "LEVELS",
    "TOPICS",
    "FollowUp",
    "NumericQuestion",
    "Question",
    "Trap",
    "WrongAnswer",
    "entries",
    "get",
    "mathjax",
    "numeric_question",
    "numeric_questions",
    "questions",
    "terminal",
]
