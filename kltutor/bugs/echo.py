"""Two models that score the prompt's tokens as they score all others, so that a mistake can count them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kltutor import exact
from kltutor.bugs.lab import MOVES
from kltutor.tasks import Task

ECHO = Task(
    name="echo",
    words=("<end>", "warm", "sweet", "cold"),
    horizon=3,
    prompts=(("warm", "sweet"), ("cold", "sweet")),
    prompt_probs=(0.6, 0.4),
    score=lambda prompt, said, ended: 0.0,
)


class Bigram(nn.Module):
    """A language model that reads one token only. Like any other it also predicts the prompt's tokens."""

    def __init__(self, seed: int, towards: int | None = None, move: float = 0.0) -> None:
        """Draw the logits of the next token after each of the four; move them towards those of a seed."""
        super().__init__()
        logits = self._draw(seed)
        self.logits = nn.Parameter(logits if towards is None else logits.lerp(self._draw(towards), move))

    @staticmethod
    def _draw(seed: int) -> Float[Tensor, "token vocab"]:
        return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of the next token at every position."""
        return self.logits[tokens]


def echo_kl(ref: Bigram | None = None) -> float:
    """Return KL(policy ‖ ref) in nats per sequence, of the models of seed 2 and seed 1."""
    return exact.kl(Bigram(2), ref or Bigram(1), ECHO).item()


def echo_refs() -> list[Bigram]:
    """Return references that move away from the policy, as those of the lab do."""
    return [Bigram(2, 1, move) for move in MOVES]


def echo_distances() -> list[float]:
    """Return the KL to each of these references, nats per sequence."""
    return [echo_kl(ref) for ref in echo_refs()]
