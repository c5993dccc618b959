"""Best single Gaussian for a target on a grid, under forward KL, reverse KL and the alpha family between.

A target is a vector of log-probabilities of the points of an equally spaced grid, normalised. A fit is a
Gaussian put on the same grid. In the tutorial's naming the *forward* fit minimises KL(target ‖ fit), the
*reverse* fit KL(fit ‖ target). The reverse objective can have several local minima; all are returned.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions
from kltutor.divergences import alpha_divergence, kl

EDGE = 1e-6  # probability at an end of the grid above which a target or fit does not fit on it
COARSE = 1.5  # standard deviation in grid steps below which a Gaussian is not resolved


class GaussianFit(NamedTuple):
    """A Gaussian N(mean, sd²) and its divergence from the target in nats."""

    mean: float
    sd: float
    divergence: float


def mixture_logp(
    grid: Float[Tensor, " point"],
    means: Float[Tensor, " component"],
    sds: Float[Tensor, " component"],
    weights: Float[Tensor, " component"],
) -> Float[Tensor, " point"]:
    """Return the log-probabilities of the grid points under a mixture of Gaussians, normalised on the grid.

    Args:
        grid: equally spaced points in ascending order.
        means: centre of each component.
        sds: standard deviation of each component, above 0.
        weights: share of each component; non-negative and summing to 1.

    Raises:
        ValueError: the grid is not equally spaced, a standard deviation is not above 0, the weights do not
            sum to 1, or the mixture has more than 1e-6 of its mass at an end of the grid.

    Example:
        >>> grid = torch.linspace(-9, 9, 181, dtype=torch.float64)
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> logp = mixture_logp(grid, 0 * one, one, one)
        >>> round((logp.exp() * grid**2).sum().item(), 6)
        1.0
    """
    _check_grid(grid)
    if not (sds > 0).all():
        raise ValueError(f"sds holds {sds.min().item()}; standard deviations are above 0.")
    if not ((weights >= 0).all() and abs(weights.sum().item() - 1) < 1e-6):
        raise ValueError(f"weights are {weights.tolist()}; non-negative numbers that sum to 1 are expected.")
    scores = -(((grid[:, None] - means) / sds) ** 2) / 2 - sds.log() + weights.log()
    logp = scores.logsumexp(-1).log_softmax(-1)
    _check_covers(logp, "the mixture")
    return logp


def fit_forward(grid: Float[Tensor, " point"], target_logp: Float[Tensor, " point"]) -> GaussianFit:
    """Return the Gaussian that minimises KL(target ‖ fit): it has the target's mean and variance.

    Unique, since the Gaussians are an exponential family and the objective is convex in their natural
    parameters.

    Args:
        grid: equally spaced points in ascending order; about 8 per standard deviation give 10 digits.
        target_logp: log-probabilities of the grid points, normalised.

    Raises:
        ValueError: the grid is not equally spaced, too narrow or too coarse, or the target is not normalised.

    Source:
        Bishop (2006), section 10.7 (moment matching).

    Example:
        >>> grid = torch.linspace(-12, 12, 241, dtype=torch.float64)
        >>> two, one = torch.tensor([-2.0, 2.0]).double(), torch.ones(2).double()
        >>> fit = fit_forward(grid, mixture_logp(grid, two, one, one / 2))
        >>> round(abs(fit.mean), 6), round(fit.sd**2, 6)  # variance 1 within, 4 between
        (0.0, 5.0)
    """
    _check_target(grid, target_logp)
    mean, sd = _mean_and_sd(grid, target_logp)
    if not sd > COARSE * (grid[1] - grid[0]):
        raise ValueError(f"target_logp has standard deviation {sd.item():.2g}; a finer grid is expected.")
    fit = _gaussian_logp(grid, mean, sd.log())
    _check_covers(fit, "the forward fit")
    return GaussianFit(mean.item(), sd.item(), kl(target_logp, fit).item())


def fit_reverse(
    grid: Float[Tensor, " point"], target_logp: Float[Tensor, " point"]
) -> tuple[GaussianFit, ...]:
    """Return every local minimum of KL(fit ‖ target) over Gaussians, the best first.

    Args:
        grid: equally spaced points in ascending order.
        target_logp: log-probabilities of the grid points, normalised and all finite.

    Raises:
        ValueError: as `fit_alpha`.

    Example:
        >>> grid = torch.linspace(-16, 16, 321, dtype=torch.float64)
        >>> two, one = torch.tensor([-3.0, 3.0]).double(), torch.ones(2).double()
        >>> fits = fit_reverse(grid, mixture_logp(grid, two, one, one / 2))
        >>> [(round(fit.mean), round(fit.sd)) for fit in fits]  # one a mode, then a wide one over both
        [(-3, 1), (3, 1), (0, 3)]
    """
    return fit_alpha(grid, target_logp, 0.0)


def fit_alpha(
    grid: Float[Tensor, " point"], target_logp: Float[Tensor, " point"], alpha: float
) -> tuple[GaussianFit, ...]:
    """Return every local minimum over Gaussians of the alpha divergence D_α(target ‖ fit), the best first.

    α = 1 is the forward fit, α = 0 the reverse fit, and the orders between lead from one to the other. The
    search starts from 45 places over the target's range and keeps each point where the gradient
    vanishes and the Hessian is positive definite.

    Args:
        grid: equally spaced points in ascending order.
        target_logp: log-probabilities of the grid points, normalised and all finite.
        alpha: order from 0 to 1; outside, a narrow fit drives the divergence beyond all numbers.

    Raises:
        ValueError: the grid is not equally spaced, too narrow or too coarse, the target is not normalised or
            has a point of probability zero, or alpha lies outside 0 to 1.
    """
    from scipy.optimize import minimize  # takes as long to load as half of torch, so only here

    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; a number from 0 to 1 is expected.")
    _check_target(grid, target_logp)
    if (target_logp == -torch.inf).any():
        raise ValueError("target_logp holds -inf; a target that is positive on the whole grid is expected.")
    spacing = (grid[1] - grid[0]).item()

    def objective(parameters: Float[Tensor, "2"]) -> Float[Tensor, ""]:
        return alpha_divergence(target_logp, _gaussian_logp(grid, parameters[0], parameters[1]), alpha)

    points, logp = grid.numpy(), target_logp.numpy()

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        # By hand: the search asks this a thousand times, and autograd with its checks is 20 times slower.
        with np.errstate(all="ignore"):
            z = (points - x[0]) * np.exp(-x[1])
            scores = -z * z / 2
            fit_logp = scores - scores.max()
            fit_logp -= np.log(np.exp(fit_logp).sum())
        if not np.isfinite(fit_logp).all():  # a line search has run away
            return math.inf, np.zeros(2)
        fit = np.exp(fit_logp)
        if alpha == 0:
            slope = fit * (fit_logp - logp)
            value = slope.sum()
        else:
            both = np.exp(alpha * logp + (1 - alpha) * fit_logp)
            slope = (fit - both) / alpha  # of the divergence in fit_logp, up to a multiple of fit
            kl_like = (both * (logp - fit_logp)).sum()
            value = kl_like if alpha == 1 else (1 - both.sum()) / (alpha * (1 - alpha))
        pull = slope - fit * slope.sum()
        return value, np.array([(pull * z).sum() * np.exp(-x[1]), (pull * z * z).sum()])

    spread = _mean_and_sd(grid, target_logp)[1].item()
    levels = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    quantiles = grid[torch.searchsorted(target_logp.exp().cumsum(0), levels)]
    found: list[GaussianFit] = []
    for mean in quantiles.tolist():
        for scale in (0.1, 0.2, 0.4, 0.7, 1.0):
            start = np.array([mean, math.log(max(scale * spread, 2 * spacing))])
            best = minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-10})
            parameters = torch.tensor(best.x, dtype=torch.float64)
            sd = math.exp(best.x[1])
            flat = np.abs(best.jac).max() < 1e-6
            inside = COARSE * spacing < sd and grid[0] < best.x[0] < grid[-1]
            new = all(abs(best.x[0] - fit.mean) + abs(sd - fit.sd) > 1e-3 * spread for fit in found)
            if not (flat and inside and new):
                continue
            hessian = torch.autograd.functional.hessian(objective, parameters)
            if torch.linalg.eigvalsh(hessian).min() > 1e-6:
                _check_covers(_gaussian_logp(grid, parameters[0], parameters[1]), "a fit")
                found.append(GaussianFit(best.x[0].item(), sd, best.fun))
    if not found:
        raise ValueError("no local minimum lies within the resolution of the grid; a finer one is expected.")
    return tuple(sorted(found, key=lambda fit: (round(fit.divergence, 9), fit.mean)))


def _mean_and_sd(
    grid: Float[Tensor, " point"], target_logp: Float[Tensor, " point"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    target = target_logp.exp()
    mean = (target * grid).sum()
    return mean, (target * (grid - mean).square()).sum().sqrt()


def _gaussian_logp(
    grid: Float[Tensor, " point"], mean: Float[Tensor, ""], log_sd: Float[Tensor, ""]
) -> Float[Tensor, " point"]:
    return (-(((grid - mean) * (-log_sd).exp()) ** 2) / 2).log_softmax(-1)


def _check_grid(grid: Float[Tensor, " point"]) -> None:
    if grid.dtype != torch.float64:
        raise ValueError(f"grid is {grid.dtype}; fits need torch.float64.")
    steps = grid.diff()
    if len(grid) < 3 or not (steps > 0).all() or (steps - steps.mean()).abs().max() > 1e-6 * steps.mean():
        raise ValueError("grid is not an equally spaced ascending vector of at least 3 points.")


def _check_target(grid: Float[Tensor, " point"], target_logp: Float[Tensor, " point"]) -> None:
    _check_grid(grid)
    if target_logp.dtype != torch.float64:
        raise ValueError(f"target_logp is {target_logp.dtype}; fits need torch.float64.")
    check_distributions(target_logp=target_logp)
    _check_covers(target_logp, "target_logp")


def _check_covers(logp: Float[Tensor, " point"], what: str) -> None:
    edge = torch.maximum(logp[0], logp[-1]).exp().item()
    if not edge <= EDGE:  # so written, nan is refused too
        raise ValueError(
            f"{what} has probability {edge:.2g} at an end of the grid; a wider grid is expected."
        )
