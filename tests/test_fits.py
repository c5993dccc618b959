"""Gaussian fits against integrals on the whole line, brute force and the conditions of a minimum."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from kltutor import fit_alpha, fit_forward, fit_reverse, mixture_logp

GRID = torch.linspace(-16, 16, 161, dtype=torch.float64)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def two_modes(s):
    """Even mixture of N(-s, 1) and N(s, 1)."""
    return mixture_logp(GRID, vector(-s, s), vector(1.0, 1.0), vector(0.5, 0.5))


LOPSIDED = (vector(-3.0, 2.0), vector(1.0, 0.7), vector(0.3, 0.7))


@functools.cache
def lopsided_fits(alpha):
    return fit_alpha(GRID, mixture_logp(GRID, *LOPSIDED), alpha)


def density(y, means, sds, weights):
    return sum(
        w * stats.norm.pdf(y, m, s)
        for m, s, w in zip(means.tolist(), sds.tolist(), weights.tolist(), strict=True)
    )


def line_kl(p, q):
    """KL between two densities on the line, by quadrature."""
    return integrate.quad(lambda y: p(y) * math.log(p(y) / q(y)), -14, 14, limit=400, epsabs=1e-12)[0]


def grid_objective(parameters, target, alpha):
    """D_α(target ‖ fit) by its definition on the grid, in numpy."""
    mean, log_sd = parameters
    grid = GRID.numpy()
    fit = stats.norm.logpdf(grid, mean, math.exp(log_sd))
    fit -= np.logaddexp.reduce(fit)
    if alpha in (0, 1):
        first, second = (target, fit) if alpha else (fit, target)
        return float((np.exp(first) * (first - second)).sum())
    return float((1 - np.exp(alpha * target + (1 - alpha) * fit).sum()) / (alpha * (1 - alpha)))


def test_a_mixture_is_its_density_normalised_on_the_grid():
    logp = mixture_logp(GRID, *LOPSIDED)
    expected = density(GRID.numpy(), *LOPSIDED)
    np.testing.assert_allclose(logp.exp().numpy(), expected / expected.sum(), rtol=1e-12)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_a_component_without_weight_does_not_count():
    one = mixture_logp(GRID, vector(1.0), vector(2.0), vector(1.0))
    two = mixture_logp(GRID, vector(1.0, 90.0), vector(2.0, 1.0), vector(1.0, 0.0))
    torch.testing.assert_close(one, two)


def test_the_forward_fit_has_the_mean_and_variance_of_the_mixture():
    means, sds, weights = LOPSIDED
    target = mixture_logp(GRID, *LOPSIDED)
    fit = fit_forward(GRID, target)
    mean = (weights @ means).item()
    assert fit.mean == pytest.approx(mean, rel=1e-10)
    assert fit.sd**2 == pytest.approx((weights @ (sds**2 + means**2)).item() - mean**2, rel=1e-10)
    exact = line_kl(lambda y: density(y, *LOPSIDED), lambda y: stats.norm.pdf(y, fit.mean, fit.sd))
    assert fit.divergence == pytest.approx(exact, abs=1e-8)


def test_no_other_gaussian_has_less_forward_divergence():
    target = mixture_logp(GRID, *LOPSIDED)
    fit = fit_forward(GRID, target)
    best = optimize.minimize(
        grid_objective, [0.0, 0.0], args=(target.numpy(), 1), method="Nelder-Mead", tol=1e-12
    )
    assert best.fun == pytest.approx(fit.divergence, abs=1e-10)
    assert best.x == pytest.approx([fit.mean, math.log(fit.sd)], abs=1e-4)


def test_a_gaussian_target_is_its_own_fit_in_both_directions():
    target = mixture_logp(GRID, vector(1.5), vector(2.0), vector(1.0))
    for fit in (fit_forward(GRID, target), *fit_reverse(GRID, target)):
        assert fit == pytest.approx((1.5, 2.0, 0.0), abs=1e-6)
    assert len(fit_reverse(GRID, target)) == 1


@pytest.mark.parametrize(("s", "count", "wide_first"), [(2.3, 1, True), (2.75, 3, True), (2.85, 3, False)])
def test_the_reverse_fit_stays_wide_until_the_modes_are_well_apart(s, count, wide_first):
    fits = fit_reverse(GRID, two_modes(s))
    assert len(fits) == count
    assert (fits[0].sd > 2) == wide_first
    wide = [fit for fit in fits if fit.sd > 2]
    assert len(wide) == 1
    assert wide[0].mean == pytest.approx(0, abs=1e-5)
    narrow = [fit for fit in fits if fit.sd <= 2]
    assert sorted(fit.mean < 0 for fit in narrow) == [False, True][: len(narrow)]


def test_the_reverse_fits_are_the_minima_of_the_integral_on_the_line():
    fits = lopsided_fits(0)
    assert len(fits) > 1
    assert fits == fit_reverse(GRID, mixture_logp(GRID, *LOPSIDED))
    assert [fit.divergence for fit in fits] == sorted(fit.divergence for fit in fits)

    def integral(parameters):
        mean, sd = parameters

        def relative(y):  # KL(fit ‖ target) at mean + y sd
            here = mean + y * sd
            log_fit = stats.norm.logpdf(here, mean, sd)
            return stats.norm.pdf(y) * (log_fit - math.log(density(here, *LOPSIDED)))

        return integrate.quad(relative, -9, 9, limit=400, epsabs=1e-12)[0]

    for fit in fits:
        assert fit.divergence == pytest.approx(integral((fit.mean, fit.sd)), abs=1e-6)
        for mean, sd in ((1e-2, 0), (-1e-2, 0), (0, 1e-2), (0, -1e-2)):
            assert integral((fit.mean + mean, fit.sd + sd)) > fit.divergence


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_every_local_minimum_is_found_and_each_is_one(alpha):
    fits = lopsided_fits(alpha)
    log_probs = mixture_logp(GRID, *LOPSIDED).numpy()
    for fit in fits:
        assert fit.divergence == pytest.approx(
            grid_objective((fit.mean, math.log(fit.sd)), log_probs, alpha), abs=1e-10
        )
    means, log_sds = np.linspace(-5, 5, 41), np.linspace(-0.8, 1.4, 23)
    surface = np.array([[grid_objective((m, s), log_probs, alpha) for s in log_sds] for m in means])
    valleys = [  # points of the table below all eight neighbours
        (means[i], log_sds[j])
        for i in range(1, 40)
        for j in range(1, 22)
        if surface[i, j] == surface[i - 1 : i + 2, j - 1 : j + 2].min()
    ]
    assert len(valleys) == len(fits)
    for mean, log_sd in valleys:
        nearest = min(abs(mean - fit.mean) + abs(log_sd - math.log(fit.sd)) for fit in fits)
        assert nearest < 0.4
    assert surface.min() >= fits[0].divergence - 1e-12


def test_a_saddle_between_two_minima_is_not_taken_for_one(monkeypatch):
    target = two_modes(2.75)
    minima = fit_reverse(GRID, target)
    stationary = []

    def any_stationary_point(value_and_gradient, start, **_):
        root = optimize.root(lambda x: value_and_gradient(np.clip(x, -8, 8))[1], start, tol=1e-12)
        value, gradient = value_and_gradient(np.clip(root.x, -8, 8))
        if np.abs(gradient).max() < 1e-8:
            stationary.append(root.x)
        return optimize.OptimizeResult(x=root.x, jac=gradient, fun=value)

    monkeypatch.setattr(optimize, "minimize", any_stationary_point)
    found = fit_reverse(GRID, target)
    assert all(min(abs(a.mean - b.mean) + abs(a.sd - b.sd) for b in minima) < 1e-4 for a in found)
    saddles = [  # inside the grid, and none of the minima
        (mean, log_sd)
        for mean, log_sd in stationary
        if abs(mean) < 5
        and 0 < log_sd < 1.5
        and all(abs(mean - m.mean) + abs(math.exp(log_sd) - m.sd) > 0.05 for m in minima)
    ]
    assert saddles  # or this test would have tested nothing


def test_the_ends_of_the_alpha_family_are_the_two_directions():
    forward = fit_forward(GRID, mixture_logp(GRID, *LOPSIDED))
    (end,) = lopsided_fits(1)
    assert end == pytest.approx(tuple(forward), abs=1e-6)
    assert lopsided_fits(0)[0].sd < 1 < forward.sd


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_the_order_lies_between_the_two_directions(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}; a number from 0 to 1"):
        fit_alpha(GRID, two_modes(1.0), alpha)


@pytest.mark.parametrize(
    "grid",
    [
        vector(0.0, 1.0),
        vector(0.0, 1.0, 2.1),
        GRID.flip(0),
        vector(0.0, float("nan"), 2.0),
        torch.zeros(5).double(),
    ],
)
def test_a_grid_is_equally_spaced_and_ascending(grid):
    with pytest.raises(ValueError, match="grid is not an equally spaced ascending vector"):
        mixture_logp(grid, vector(1.0), vector(1.0), vector(1.0))
    logp = torch.zeros_like(grid).log_softmax(-1)
    for fit in (fit_forward, fit_reverse):
        with pytest.raises(ValueError, match="grid is not an equally spaced ascending vector"):
            fit(grid, logp)


def test_a_grid_that_does_not_cover_is_refused_whoever_does_not_fit():
    short = torch.linspace(-4, 4, 81, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the mixture has probability .* wider grid"):
        mixture_logp(short, vector(0.0), vector(1.0), vector(1.0))
    flat = (-(short**2) / 18).log_softmax(-1)  # N(0, 9)
    for fit in (fit_forward, fit_reverse):
        with pytest.raises(ValueError, match=r"target_logp has probability .* wider grid"):
            fit(short, flat)
    tails = torch.full_like(short, -40.0)
    tails[8], tails[72] = 0.0, 0.0  # two points near the ends: the target fits, its forward fit does not
    with pytest.raises(ValueError, match=r"the forward fit has probability .* wider grid"):
        fit_forward(short, tails.log_softmax(-1))


def test_a_target_narrower_than_the_grid_can_show_is_refused():
    spike = mixture_logp(GRID, vector(0.0), vector(0.2), vector(1.0))  # one grid step
    with pytest.raises(ValueError, match="finer grid"):
        fit_forward(GRID, spike)
    with pytest.raises(ValueError, match="finer one"):
        fit_reverse(GRID, spike)


def test_targets_and_mixtures_are_checked_by_name():
    one = vector(1.0)
    with pytest.raises(ValueError, match="sds holds 0"):
        mixture_logp(GRID, one, vector(0.0), one)
    with pytest.raises(ValueError, match="sds holds nan"):
        mixture_logp(GRID, one, vector(float("nan")), one)
    with pytest.raises(ValueError, match="weights are"):
        mixture_logp(GRID, vector(0.0, 1.0), vector(1.0, 1.0), vector(0.5, 0.6))
    with pytest.raises(ValueError, match="weights are"):
        mixture_logp(GRID, vector(0.0, 1.0), vector(1.0, 1.0), vector(1.5, -0.5))
    with pytest.raises(ValueError, match="the mixture has probability nan"):
        mixture_logp(GRID, vector(float("nan")), one, one)
    for grid, target, name in (
        (GRID.float(), two_modes(1.0), "grid"),
        (GRID, two_modes(1.0).float(), "target_logp"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} is torch.float32; fits need torch.float64"):
            fit_forward(grid, target)
    with pytest.raises(ValueError, match=r"target_logp\[\] sums to 0\.5"):
        fit_reverse(GRID, two_modes(1.0) - math.log(2))
    holes = two_modes(1.0).masked_fill(GRID.abs() > 15, -torch.inf).log_softmax(-1)
    assert fit_forward(GRID, holes).sd ** 2 == pytest.approx(2, rel=1e-9)
    with pytest.raises(ValueError, match="target_logp holds -inf"):
        fit_reverse(GRID, holes)


def test_a_line_search_that_runs_away_comes_back():
    # From some of its starts the search steps to log sd in the hundreds, where no fit has probabilities.
    grid = torch.linspace(-20, 20, 401, dtype=torch.float64)
    means, weights = torch.tensor([-4.0, 2.589]).double(), torch.tensor([0.95, 0.05]).double()
    target = mixture_logp(grid, means, torch.ones(2).double(), weights)
    best, *_ = fit_alpha(grid, target, 0.9655)
    forward = fit_forward(grid, target)
    assert abs(best.mean - forward.mean) < 0.1  # next to α = 1
    assert abs(best.sd - forward.sd) < 0.1
