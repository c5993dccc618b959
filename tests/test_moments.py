"""The exact moments against sums over outcomes in plain Python and integrals of thirty digits."""

import math

import mpmath
import pytest
import torch

from kltutor import control_variate, estimator_moments, gaussian_moments, optimal_coef

POLICY, REF = [0.50, 0.30, 0.20], [0.05, 0.15, 0.80]  # unlike in both directions
INF, NAN = float("inf"), float("nan")
VALUES = {  # of one draw, from the two probabilities
    "k1": lambda p, q: math.log(p / q),
    "k2": lambda p, q: math.log(p / q) ** 2 / 2,
    "k3": lambda p, q: q / p - 1 + math.log(p / q),
}


def logs(probs):
    return torch.tensor(probs, dtype=torch.float64).log()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def chi2(p, q):
    """Σ (p - q)²/q."""
    return sum((a - b) ** 2 / b for a, b in zip(p, q, strict=True))


def mean_and_variance(policy, values):
    mean = sum(p * v for p, v in zip(policy, values, strict=True))
    return mean, sum(p * (v - mean) ** 2 for p, v in zip(policy, values, strict=True))


@pytest.mark.parametrize(("policy", "ref"), [(POLICY, REF), (REF, POLICY)])
@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_moments_are_the_sums_over_all_outcomes(name, policy, ref):
    values = [VALUES[name](p, q) for p, q in zip(policy, ref, strict=True)]
    mean, variance = mean_and_variance(policy, values)
    moments = estimator_moments(logs(policy), logs(ref))[name]
    assert moments.mean.item() == pytest.approx(mean, rel=1e-13)
    assert moments.variance.item() == pytest.approx(variance, rel=1e-13)
    assert moments.bias.item() == pytest.approx(mean - kl(policy, ref), abs=1e-15)


def test_each_batch_entry_is_on_its_own():
    policy, ref = torch.stack([logs(POLICY), logs(REF)]), torch.stack([logs(REF), logs(POLICY)])
    batch = estimator_moments(policy[:, None], ref[:, None])
    coef = optimal_coef(policy, ref)
    for i in range(2):
        torch.testing.assert_close(coef[i], optimal_coef(policy[i], ref[i]))
        for name, single in estimator_moments(policy[i], ref[i]).items():
            for many, one in zip(batch[name], single, strict=True):
                assert many.shape == (2, 1)
                torch.testing.assert_close(many[i, 0], one)


def test_k3_is_biased_by_the_mass_that_the_policy_misses():
    policy = logs([0.7, 0.3, 0.0])
    moments = estimator_moments(policy, logs([0.2, 0.5, 0.3]))
    assert moments["k3"].bias.item() == pytest.approx(-0.3, rel=1e-13)
    assert moments["k1"].bias == 0
    both_miss = estimator_moments(policy, logs([0.4, 0.6, 0.0]))
    assert both_miss["k3"].bias.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("logit", [-1.0, -30.0, -800.0])  # exp(-800) rounds to 0, yet it can be drawn
def test_moments_are_infinite_where_the_policy_can_draw_what_the_reference_cannot(logit):
    policy = torch.tensor([0.0, logit], dtype=torch.float64).log_softmax(-1)
    for name, moments in estimator_moments(policy, logs([1.0, 0.0])).items():
        assert moments.mean == moments.variance == INF, name
        assert moments.bias == 0, name  # they agree with the KL, which is infinite too


def test_a_variance_that_is_finite_does_not_overflow_on_the_way():
    policy = torch.tensor([0.0, -60.0]).log_softmax(-1)  # float32 ends near e^88
    variance = estimator_moments(policy, torch.tensor([0.5, 0.5]).log())["k3"].variance
    assert variance.item() == pytest.approx(0.25 * math.exp(60), rel=1e-4)  # the leading term ref²/policy


def test_an_outcome_too_rare_for_the_dtype_is_an_error_and_not_a_wrong_mean():
    policy = torch.tensor([0.0, -110.0]).log_softmax(-1)
    with pytest.raises(ValueError, match=r"policy_logp\[1\] is so far below ref_logp that k3 overflows"):
        estimator_moments(policy, torch.tensor([0.5, 0.5]).log())


def test_the_mean_of_k1_has_the_gradient_of_the_kl_also_beside_a_banned_outcome():
    logits = torch.cat([logs(POLICY), torch.tensor([-INF])]).requires_grad_()
    ref = torch.cat([logs(REF), torch.tensor([-INF])])
    mean = estimator_moments(logits.log_softmax(-1), ref)["k1"].mean
    (grad,) = torch.autograd.grad(mean, logits)
    by_hand = [p * (math.log(p / q) - kl(POLICY, REF)) for p, q in zip(POLICY, REF, strict=True)]
    torch.testing.assert_close(grad, torch.tensor([*by_hand, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(("policy", "ref"), [(POLICY, REF), (REF, POLICY), ([0.001, 0.999], [0.1, 0.9])])
def test_the_variance_of_k3_is_that_of_k1_plus_chi2_minus_twice_jeffreys(policy, ref):
    moments = estimator_moments(logs(policy), logs(ref))
    jeffreys = kl(policy, ref) + kl(ref, policy)
    expected = moments["k1"].variance.item() + chi2(ref, policy) - 2 * jeffreys
    assert moments["k3"].variance.item() == pytest.approx(expected, rel=1e-12)


def test_k3_loses_by_far_on_a_token_that_only_the_reference_likes():
    moments = estimator_moments(logs([0.001, 0.999]), logs([0.1, 0.9]))
    p, logit = 0.001, math.log(0.001 / 0.1) - math.log(0.999 / 0.9)  # k1 takes two values this far apart
    assert moments["k1"].variance.item() == pytest.approx(p * (1 - p) * logit**2, rel=1e-12)
    gap = (100 - 0.9 / 0.999) + logit  # and so does k3
    assert moments["k3"].variance.item() == pytest.approx(p * (1 - p) * gap**2, rel=1e-12)
    assert moments["k3"].variance > 400 * moments["k1"].variance


@pytest.mark.parametrize(("policy", "ref"), [(POLICY, REF), (REF, POLICY)])
def test_the_optimal_coefficient_is_minus_covariance_over_variance(policy, ref):
    k1s = [VALUES["k1"](p, q) for p, q in zip(policy, ref, strict=True)]
    ws = [q / p - 1 for p, q in zip(policy, ref, strict=True)]
    mean, var = mean_and_variance(policy, k1s)
    covariance = sum(p * (a - mean) * w for p, a, w in zip(policy, k1s, ws, strict=True))
    assert covariance == pytest.approx(-(kl(policy, ref) + kl(ref, policy)), rel=1e-12)
    coef = optimal_coef(logs(policy), logs(ref)).item()
    assert coef == pytest.approx(-covariance / chi2(ref, policy), rel=1e-12)

    def variance(c):
        values = control_variate(logs(policy), logs(ref), c).tolist()
        return mean_and_variance(policy, values)[1]

    assert variance(coef) == pytest.approx(var - covariance**2 / chi2(ref, policy), rel=1e-10)
    assert variance(coef) < min(variance(coef - 0.01), variance(coef + 0.01), variance(0.0), variance(1.0))


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12])
def test_the_optimal_coefficient_tends_to_one_without_losing_its_digits(distance):
    scores = logs(POLICY) + distance * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert optimal_coef(logs(POLICY), scores.log_softmax(-1)).item() == pytest.approx(1, abs=3 * distance)


def test_the_optimal_coefficient_needs_two_different_distributions_of_one_support():
    with pytest.raises(ValueError, match="policy_logp equals ref_logp"):
        optimal_coef(logs(POLICY), logs(POLICY))
    for policy, ref in (([0.5, 0.5, 0.0], REF), (POLICY, [0.0, 0.5, 0.5])):
        with pytest.raises(ValueError, match="different supports"):
            optimal_coef(logs(policy), logs(ref))


@pytest.mark.parametrize("function", [estimator_moments, optimal_coef])
def test_unnormalised_vectors_are_named(function):
    with pytest.raises(ValueError, match=r"^policy_logp\[\] sums to 0\.7"):
        function(logs([0.5, 0.2]), logs([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"^ref_logp\[\] sums to 0\.7"):
        function(logs([0.5, 0.5]), logs([0.5, 0.2]))
    with pytest.raises(ValueError, match=r"^ref_logp\[1\] is nan"):
        function(logs([0.5, 0.5]), logs([0.5, NAN]))


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 2.0])
def test_equal_variance_gaussians_have_the_closed_forms_of_the_book(mu):
    k1, k2, k3 = gaussian_moments(mu).values()
    for moments, mean, variance in (
        (k1, mu**2 / 2, mu**2),
        (k2, mu**2 / 2 + mu**4 / 8, mu**4 / 2 + mu**6 / 4),
        (k3, mu**2 / 2, math.expm1(mu**2) - mu**2),
    ):
        assert moments.mean.item() == pytest.approx(mean, rel=1e-12)
        assert moments.variance.item() == pytest.approx(variance, rel=1e-12)
    assert k2.bias.item() == pytest.approx(mu**4 / 8, rel=1e-11)
    assert k1.bias == k3.bias == 0


def test_at_half_a_standard_deviation_the_numbers_are_dyadic():
    moments = gaussian_moments(0.5)
    assert moments["k2"].mean.item() == 17 / 128  # 1/8 + 1/128
    assert moments["k2"].variance.item() == 9 / 256  # 1/32 + 1/256


@pytest.mark.parametrize(
    ("mu", "sigma"), [(0.5, 1.0), (0.0, 1.3), (-0.8, 0.6), (1.5, 1.2), (3.0, 0.9), (0.2, 0.3)]
)
def test_gaussian_moments_agree_with_integrals_of_thirty_digits(mu, sigma):
    moments = gaussian_moments(mu, sigma)
    with mpmath.workdps(30):
        m, s = mpmath.mpf(mu), mpmath.mpf(sigma)
        cuts = [-60, -12, -6, -2, 0, 2, 6, 12, 60]

        def log_ratio(y):
            return ((y - m) / s) ** 2 / 2 - y**2 / 2 + mpmath.log(s)

        def mean(f):
            return mpmath.quad(lambda y: mpmath.npdf(y) * f(log_ratio(y)), cuts)

        truth = {
            "k1": lambda d: d,
            "k2": lambda d: d**2 / 2,
            "k3": lambda d: mpmath.expm1(-d) + d,
        }
        divergence = mean(lambda d: d)
        for name, f in truth.items():
            first = mean(f)
            second = mean(lambda d, f=f, first=first: (f(d) - first) ** 2)
            assert moments[name].mean.item() == pytest.approx(float(first), rel=1e-12), name
            assert moments[name].variance.item() == pytest.approx(float(second), rel=1e-12), name
            assert moments[name].bias.item() == pytest.approx(float(first - divergence), abs=1e-14), name


def test_gaussian_moments_keep_twelve_digits_far_from_the_reference():
    mu = mpmath.mpf(1000)
    assert gaussian_moments(1000.0)["k2"].variance.item() == pytest.approx(
        float(mu**4 / 2 + mu**6 / 4), rel=1e-12
    )


def test_a_fine_grid_of_outcomes_gives_the_gaussian_moments():
    y = torch.linspace(-11, 11, 881, dtype=torch.float64)  # the trapezoid rule is exact to rounding here
    moments = estimator_moments(
        (-(y**2) / 2).log_softmax(-1), (-(((y - 0.4) / 0.9) ** 2) / 2).log_softmax(-1)
    )
    for name, exact in gaussian_moments(0.4, 0.9).items():
        for on_grid, closed in zip(moments[name], exact, strict=True):
            torch.testing.assert_close(on_grid, closed, rtol=1e-9, atol=1e-12)


def test_the_variance_of_k3_is_infinite_from_a_reference_of_sd_root_two_on():
    for sigma in (math.sqrt(2) + 1e-15, 1.5, 3.0):
        for mu in (0.0, 0.7):
            k3 = gaussian_moments(mu, sigma)["k3"]
            assert k3.variance == INF
            assert k3.mean == gaussian_moments(mu, sigma)["k1"].mean < INF
    assert gaussian_moments(0.0, math.sqrt(2) - 1e-9)["k3"].variance < INF
    assert gaussian_moments(0.0, 1.4)["k3"].variance < gaussian_moments(0.0, 1.41)["k3"].variance


def test_the_order_of_the_variances_flips_at_the_stated_distances():
    def gap(a, b):
        return lambda square: float(
            gaussian_moments(math.sqrt(square))[a].variance - gaussian_moments(math.sqrt(square))[b].variance
        )

    third_first = mpmath.findroot(lambda x: mpmath.exp(x) - 1 - 2 * x, 1.25)
    third_second = mpmath.findroot(lambda x: mpmath.exp(x) - 1 - x - x**2 / 2 - x**3 / 4, 1.45)
    for (a, b), root in {
        ("k2", "k1"): math.sqrt(5) - 1,
        ("k3", "k1"): float(third_first),
        ("k3", "k2"): float(third_second),
    }.items():
        assert gap(a, b)(root * 0.999) < 0 < gap(a, b)(root * 1.001)
    assert float(third_first) == pytest.approx(1.25643, abs=5e-6)
    assert float(third_second) == pytest.approx(1.4512, abs=5e-5)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_gaussian_moments_refuse_what_is_no_gaussian(value):
    with pytest.raises(ValueError, match=f"mu is {value}"):
        gaussian_moments(value)
    with pytest.raises(ValueError, match=f"sigma is {value}"):
        gaussian_moments(0.0, value)
    with pytest.raises(ValueError, match="sigma is 0"):
        gaussian_moments(0.0, 0.0)
