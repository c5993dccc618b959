"""A beta that does not listen to the KL: fixed or annealed; and what a trainer needs of any rule for beta."""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from kltutor.checks import check_nonnegative, check_number, check_positive
from kltutor.resumable import Resumable

Measures = Literal["old‖policy", "policy‖ref"]
Unit = Literal["nats per token", "nats per sequence"]


@runtime_checkable
class Controller(Protocol):
    """What a trainer needs of a rule for beta."""

    @property
    def beta(self) -> float:
        """The coefficient now in force."""

    @property
    def measures(self) -> Measures:
        """KL(policy ‖ ref), or KL(old ‖ policy) between the policies before and after one update."""

    @property
    def unit(self) -> Unit:
        """The unit of that KL; per token means averaged over the visited states."""

    def update(self, measured_kl: float, n: int) -> float:
        """Return the beta that follows an update of n episodes; a ValueError leaves all as it was."""

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, in types that JSON can hold."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue exactly where a controller of the same class and settings was at `state`."""


@dataclass
class FixedBeta(Resumable):
    """A beta that never changes, 0 included; the KL is checked and not used.

    Example:
        >>> FixedBeta(0.05).update(3.0, n=512)
        0.05
    """

    measures: ClassVar[Measures] = "policy‖ref"
    beta: float
    _: KW_ONLY
    unit: Unit = "nats per sequence"

    def _check(self) -> None:
        check_nonnegative(beta=self.beta)

    def update(self, measured_kl: float, n: int) -> float:
        """Return beta."""
        check_reading(measured_kl, n)
        return self.beta


@dataclass
class AnnealedBeta(Resumable):
    """A beta that goes from `start` to `end` in `episodes` episodes and stays there; the KL is not used.

    With t the part of the episodes that is done, beta is start + (end - start)·t if linear,
    start·(end / start)^t if exponential, and end + (start - end)·(1 + cos πt)/2 if cosine.

    Args:
        start, end: the first and the last beta in either order, at least 0; above 0 if exponential.
        episodes: how many it takes, at least 1.
        shape: of the curve.
        unit: of the KL that beta multiplies.

    Example:
        >>> annealed = AnnealedBeta(0.1, 0.001, episodes=1000, shape="exponential")
        >>> [round(annealed.update(3.0, n=500), 6) for _ in range(3)]
        [0.01, 0.001, 0.001]
    """

    measures: ClassVar[Measures] = "policy‖ref"
    start: float
    end: float
    episodes: int
    shape: Literal["linear", "exponential", "cosine"] = "linear"
    _: KW_ONLY
    unit: Unit = "nats per sequence"
    done: int = field(default=0, init=False)

    def _check(self) -> None:
        check = check_positive if self.shape == "exponential" else check_nonnegative
        check(start=self.start, end=self.end)
        check_positive(episodes=self.episodes)
        check_nonnegative(done=self.done)

    @property
    def beta(self) -> float:
        """The coefficient now in force."""
        part = self.done / self.episodes
        if part == 0 or part >= 1:  # the ends are exact
            return float(self.end if part else self.start)
        if self.shape == "linear":
            return self.start + (self.end - self.start) * part
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** part)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * part)) / 2

    def update(self, measured_kl: float, n: int) -> float:
        """Return the beta after n more episodes."""
        check_reading(measured_kl, n)
        self.done += n
        return self.beta


def check_reading(measured_kl: float, n: int) -> None:
    """Raise ValueError unless the KL, in nats, is a finite number and n at least 1."""
    check_number(measured_kl=measured_kl)
    if n < 1:
        raise ValueError(f"n is {n}; the number of episodes of the update, at least 1, is expected.")
