"""What RLHF libraries do with a KL: their terms re-implemented, and their settings at one version each."""

from kltutor.libraries.labs import Lab, completions, far, mean_gradient, mean_value, slope
from kltutor.libraries.page import matrix, measured, source, users
from kltutor.libraries.rows import LIBRARIES
from kltutor.libraries.schema import Library, Use
from kltutor.libraries.terms import UNCLAMPED
from kltutor.libraries.verdicts import in_reward, verdict

__all__ = [
    "LIBRARIES",
    "UNCLAMPED",
    "Lab",
    "Library",
    "Use",
    "completions",
    "far",
    "in_reward",
    "matrix",
    "mean_gradient",
    "mean_value",
    "measured",
    "slope",
    "source",
    "users",
    "verdict",
]
