"""The GRPO step that both sides make."""

from dataclasses import dataclass

BETA, CLIP, RATE, LONGEST_GRADIENT = 0.04, 0.2, 1e-4, 1.0


@dataclass(frozen=True)
class Setting:
    """Sizes of the step, and how often it is timed."""

    words: int = 16
    prompt: int = 2
    horizon: int = 8
    batch: int = 64
    group: int = 8
    layers: int = 2
    heads: int = 4
    width: int = 64
    steps: int = 20  # timed in a row
    warmup: int = 5
    repeats: int = 5
