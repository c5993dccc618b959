"""One Gaussian for a target with two modes: the forward fit, every reverse fit, and the orders between."""

import functools
from typing import Any

import torch
from torch import Tensor

from kltutor.divergences import alpha_divergence, kl
from kltutor.fits import GaussianFit, fit_alpha, fit_forward, fit_reverse, mixture_logp
from kltutor.widgets.base import Number, Real, Reals, StateError, Widget

GRID = torch.linspace(-20, 20, 401, dtype=torch.float64)
SPACING = 0.1
DRAWN = slice(128, 273)  # from -7.2 to 7.2
ONE = torch.ones(1, dtype=torch.float64)
MEANS = torch.linspace(-7.2, 7.2, 49, dtype=torch.float64)  # the map: its columns
SDS = torch.linspace(0.6, 5, 23, dtype=torch.float64)  # and its rows
NEAREST = 1e-4  # below it D_α differs from its limit less than from its own rounding


class KLFit(Widget):
    """A Gaussian q fitted to p, a mixture of two Gaussians A and B of standard deviation 1.

    The forward fit minimises KL(p ‖ q), a reverse fit KL(q ‖ p), and an alpha fit D_α(p ‖ q), which is the
    first at α = 1 and the second at α = 0. Set `modes`, `weight` and `alpha`; read the numbers. Lists hold
    one entry for each local optimum, the best first. Places are in standard deviations of a mode, KLs in
    nats; all are sums over a grid of step 0.1 from -20 to 20. A new state takes the package seconds.

    Example:
        >>> w = KLFit(modes=[-3.5, 3.5], alpha=0.0)
        >>> round(w.forward_sd**2, 6)  # 1 within the modes, 3.5² between them
        13.25
        >>> w.reverse_count  # one on each mode, and a wide one
        3
    """

    modes = Reals((-2.5, 2.5), -4.0, 4.0, help="where A and B are, in standard deviations of a mode")
    weight = Real(0.5, 0.05, 0.95, help="share of A; B has the rest")
    alpha = Real(0.5, 0.0, 1.0, help="order of the divergence: 0 is reverse, 1 is forward")

    distance = Number("from A to B, in standard deviations of a mode")
    weight_b = Number("share of B")
    forward_mean = Number("mean of the forward fit, which is that of the target")
    forward_sd = Number("standard deviation of the forward fit, which is that of the target")
    forward_kl = Number("KL(p ‖ forward fit), nats")
    forward_other_kl = Number("KL(forward fit ‖ p), nats: what the reverse fits minimise")
    reverse_count = Number("how many local optima the reverse KL has")
    reverse_mean = Number("mean of each reverse fit")
    reverse_sd = Number("standard deviation of each reverse fit")
    reverse_kl = Number("KL(reverse fit ‖ p) of each, nats")
    reverse_other_kl = Number("KL(p ‖ reverse fit) of each, nats: what the forward fit minimises")
    alpha_count = Number("how many local optima D_α has")
    alpha_mean = Number("mean of each alpha fit")
    alpha_sd = Number("standard deviation of each alpha fit")
    alpha_value = Number("D_α(p ‖ alpha fit) of each; in nats at α = 0 and 1, between them without a unit")
    alone_a = Number("-log(share of A), nats: what a reverse fit on A alone costs when B is far")
    alone_b = Number("-log(share of B), nats")
    a_density = Number("share of A times its density at 145 points from -7.2 to 7.2")
    b_density = Number("the same for B")
    target_density = Number("density of p at these points")
    forward_density = Number("density of the forward fit at these points")
    reverse_density = Number("density of each reverse fit at these points")
    alpha_density = Number("density of each alpha fit at these points")
    landscape = Number("D_α(p ‖ q): 23 rows are sds from 0.6 to 5, 49 columns means from -7.2 to 7.2")

    def check(self) -> None:
        """Raise StateError unless there are two modes and alpha is 0, 1 or well between."""
        if len(self.modes) != 2:
            raise StateError(f"modes has {len(self.modes)} entries; the places of A and B are expected.")
        if self.alpha not in (0, 1) and not NEAREST <= self.alpha <= 1 - NEAREST:
            raise StateError(
                f"alpha is {self.alpha!r}; 0, 1 or a number from {NEAREST:g} to 1 - {NEAREST:g} is expected."
            )

    @property
    def numbers(self) -> dict[str, Any]:
        """What follows from the state, by the package."""
        self.check()
        target = _target(self.modes, self.weight)
        forward = fit_forward(GRID, target)
        reverse, alpha = (_fits(self.modes, self.weight, order) for order in (0.0, self.alpha))
        a, b = (_gaussian(place, 1.0) for place in self.modes)
        shares = torch.tensor([self.weight, 1 - self.weight], dtype=torch.float64)
        found = {
            "distance": abs(self.modes[1] - self.modes[0]),
            "weight_b": shares[1].item(),
            "forward_mean": forward.mean,
            "forward_sd": forward.sd,
            "forward_kl": forward.divergence,
            "forward_other_kl": kl(_gaussian(forward.mean, forward.sd), target).item(),
            "reverse_count": len(reverse),
            "reverse_mean": [fit.mean for fit in reverse],
            "reverse_sd": [fit.sd for fit in reverse],
            "reverse_kl": [fit.divergence for fit in reverse],
            "reverse_other_kl": [kl(target, _gaussian(fit.mean, fit.sd)).item() for fit in reverse],
            "alpha_count": len(alpha),
            "alpha_mean": [fit.mean for fit in alpha],
            "alpha_sd": [fit.sd for fit in alpha],
            "alpha_value": [fit.divergence for fit in alpha],
            "alone_a": -shares.log()[0].item(),
            "alone_b": -shares.log()[1].item(),
            "a_density": _drawn(a + shares.log()[0]),
            "b_density": _drawn(b + shares.log()[1]),
            "target_density": _drawn(target),
            "forward_density": _drawn(_gaussian(forward.mean, forward.sd)),
            "reverse_density": [_drawn(_gaussian(fit.mean, fit.sd)) for fit in reverse],
            "alpha_density": [_drawn(_gaussian(fit.mean, fit.sd)) for fit in alpha],
        }
        around = (-(((GRID - MEANS[:, None]) / SDS[:, None, None]) ** 2) / 2).log_softmax(-1)
        return found | {"landscape": alpha_divergence(target.expand_as(around), around, self.alpha).tolist()}


def _target(modes: tuple[float, ...], weight: float) -> Tensor:
    places = torch.tensor(modes, dtype=torch.float64)
    return mixture_logp(GRID, places, ONE.expand(2), torch.tensor([weight, 1 - weight], dtype=torch.float64))


def _gaussian(mean: float, sd: float) -> Tensor:
    return mixture_logp(GRID, mean * ONE, sd * ONE, ONE)


def _drawn(logp: Tensor) -> list[float]:
    density: list[float] = (logp[DRAWN].exp() / SPACING).tolist()
    return density


@functools.lru_cache(maxsize=64)  # the search is slow, and every number that is read asks for it
def _fits(modes: tuple[float, ...], weight: float, alpha: float) -> tuple[GaussianFit, ...]:
    target = _target(modes, weight)
    if alpha == 1:
        return (fit_forward(GRID, target),)
    return fit_reverse(GRID, target) if alpha == 0 else fit_alpha(GRID, target, alpha)
