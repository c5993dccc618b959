"""A kata on selection: how far the best of n draws lies from the reference."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import selection
from kltutor.divergences import kl
from kltutor.katas.calls import Case
from kltutor.katas.inputs import listed, wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import scaled


def best_of_n_kl(
    ref_logp: Float[Tensor, "batch outcome"], reward: Float[Tensor, "batch outcome"], n: int
) -> Float[Tensor, " batch"]:
    """Return KL(best-of-n ‖ ref) exactly: n independent draws from the reference, the best is kept.

    With F(y) the probability under ref of a reward at most that of y, and F₋(y) of a smaller one,

        P(y) = ref(y)·(F(y)ⁿ - F₋(y)ⁿ) / (F(y) - F₋(y))        KL = Σ_y P(y) log(P(y)/ref(y))

    so outcomes of equal reward share in proportion to the reference. 0 log 0 = 0.

    Args:
        ref_logp: log-probabilities of every outcome under the reference; they are normalised.
        reward: of every outcome; equal rewards are ties.
        n: number of draws, at least 1; it may be in the thousands.

    Returns:
        One KL a row, in nats.
    """
    raise NotImplementedError


def _chances(q: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities of a reward at most that of each outcome, and of a smaller one."""
    p, other = q.exp()[:, None, :], r[:, None, :]
    return (p * (other <= r[:, :, None])).sum(-1), (p * (other < r[:, :, None])).sum(-1)


def _sum(mass: Tensor, q: Tensor) -> Tensor:
    """Return Σ P log(P/ref), with 0 log 0 = 0."""
    safe = torch.where(mass > 0, mass, 1)
    return torch.where(mass > 0, mass * (safe.log() - q), 0).sum(-1)


def _naive_kl(q: Tensor, r: Tensor, n: int) -> Tensor:
    top, low = _chances(q, r)
    mass = q.exp() * (top**n - low**n) / (top - low)
    return (mass * (mass.log() - q)).sum(-1)


def _in_order(q: Tensor, r: Tensor, n: int) -> Tensor:
    """Return the KL if the later of two equal outcomes counted as better."""
    place = r.sort(dim=-1, stable=True).indices.argsort(-1).double()
    return selection.best_of_n_kl(q, place, n)


def _each_whole(q: Tensor, r: Tensor, n: int) -> Tensor:
    top, low = _chances(q, r)
    return _sum(top**n - low**n, q)


def _density(q: Tensor, r: Tensor, n: int) -> Tensor:
    return _sum(q.exp() * n * _chances(q, r)[0] ** (n - 1), q)


def _strict(q: Tensor, r: Tensor, n: int) -> Tensor:
    return _sum(q.exp() * n * _chances(q, r)[1] ** (n - 1), q)


def _everywhere(q: Tensor, value: float) -> Tensor:
    return torch.full_like(q[:, 0], value)


def _draws(label: str, inputs: dict[str, Tensor], n: int, edge: bool = False) -> Case:
    return Case(label, inputs | {"n": n}, edge)


_THREE = {"ref_logp": wide([0.5, 0.3, 0.2]).log(), "reward": wide([0.0, 1.0, 2.0])}
_TIES = {"ref_logp": wide([0.4, 0.3, 0.2, 0.1]).log(), "reward": wide([1.0, 2.0, 2.0, 0.0])}

_TURNED = {"ref_logp": _TIES["ref_logp"], "reward": _TIES["reward"].flip(-1)}

register(
    best_of_n_kl,
    level=3,
    section="6.4 Over-optimisation",
    reference=selection.best_of_n_kl,
    cases=(
        _draws("three outcomes", _THREE, 4),
        _draws("a tie", _TIES, 3),
        _draws("two rows", {name: torch.cat([_TIES[name], turned]) for name, turned in _TURNED.items()}, 2),
        _draws("one draw", _THREE, 1),
        _draws("all completions, moderate", listed("moderate"), 8),
        _draws("all completions, far", listed("far"), 16),
        _draws("5000 draws", _THREE, 5000, edge=True),
    ),
    misconceptions=(
        Misconception(
            "formula",
            "This is log n - (n - 1)/n, {got}: exact where no two draws can tie, and a bound here, where "
            "the KL is {right} nats.",
            lambda q, r, n: _everywhere(q, selection.best_of_n_kl_bound(n)),
        ),
        Misconception(
            "log-n",
            "This is log n, {got}: the KL is smaller even without ties, log n - (n - 1)/n, and here {right} "
            "nats.",
            lambda q, r, n: _everywhere(q, math.log(n)),
        ),
        Misconception(
            "ties-broken",
            "Equal rewards are put in an order; outcomes of equal reward share in proportion to the "
            "reference.",
            _in_order,
        ),
        Misconception(
            "ties-not-shared",
            "Every one of several equal outcomes gets the mass of all of them, so the probabilities sum to "
            "more than 1.",
            _each_whole,
        ),
        Misconception(
            "density",
            "n·Fⁿ⁻¹·ref is the law for a continuous reward; with listed outcomes it does not sum to 1: "
            "{got} in place of {right}.",
            _density,
        ),
        Misconception(
            "strictly-smaller",
            "F counts smaller rewards only, so that a draw cannot equal another: {got} in place of {right}.",
            _strict,
        ),
        Misconception(
            "worst-of-n",
            "This keeps the worst of n: {got} nats in place of {right}.",
            lambda q, r, n: selection.best_of_n_kl(q, -r, n),
        ),
        Misconception(
            "other-direction",
            "This is KL(ref ‖ best-of-n), {got}; KL(best-of-n ‖ ref) is {right} nats.",
            lambda q, r, n: kl(q, selection.best_of_n(q, r, n)),
        ),
        Misconception(
            "one-draw-more",
            "Off by one: this is the best of n + 1.",
            lambda q, r, n: selection.best_of_n_kl(q, r, n + 1),
        ),
        Misconception(
            "rows-averaged",
            "The rows are averaged; one KL a row is asked for.",
            lambda q, r, n: selection.best_of_n_kl(q, r, n).mean(),
        ),
        Misconception(
            "log-base-2",
            "The logarithm is to base 2, so this is in bits, {got}; in nats it is {right}.",
            scaled(selection.best_of_n_kl, 1 / math.log(2)),
        ),
        Misconception(
            "zero-times-infinity",
            "For many draws a bad outcome's probability rounds to 0, and 0 times log 0 is nan: leave it out.",
            _naive_kl,
        ),
    ),
)
