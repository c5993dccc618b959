"""Mistakes that many katas share."""

from kltutor.katas.calls import Code
from kltutor.katas.kata import Misconception


def scaled(reference: Code, factor: float) -> Code:
    """Return a function whose values are those of another times a factor."""
    return lambda *inputs: reference(*inputs) * factor


def detached(reference: Code) -> Misconception:
    """Return the wrong answer whose values are right and through which no gradient flows."""
    return Misconception(
        "detached",
        "The values are right, but no gradient comes back: something detaches, or leaves torch.",
        lambda *inputs: reference(*inputs).detach(),
    )


def multiplied(code: Code) -> Misconception:
    """Return the wrong answer that multiplies by the mask where it should choose by it."""
    return Misconception(
        "mask-multiplied",
        "nan times 0 is nan: a mask that multiplies lets masked nan through. Use masked_fill or where.",
        code,
    )


def late(code: Code) -> Misconception:
    """Return the wrong answer that masks its values only after nan has been through a curved function."""
    return Misconception(
        "masked-too-late",
        "The values are right, but where() keeps a masked nan out of the value only: in the gradient it is 0 "
        "times nan. Mask before exp.",
        code,
    )
