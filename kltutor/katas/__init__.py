"""Katas: small functions to write oneself, graded on the spot, a wrong one by the name of its mistake."""

from kltutor.katas.kata import Grade, Kata, Misconception, all_katas, get

__all__ = ["Grade", "Kata", "Misconception", "all_katas", "get"]
