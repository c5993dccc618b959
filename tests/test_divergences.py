"""Divergences against their definitions, in value and in gradient, inside and at the edge of the simplex."""

import itertools
import math

import jaxtyping
import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kltutor import alpha_divergence, chi2, gaussian_kl, hellinger2, jeffreys, js, kl, tv

A, B, C = [0.50, 0.30, 0.20], [0.05, 0.15, 0.80], [0.25, 0.05, 0.70]
WITH_ZERO, OTHER_ZERO = [0.6, 0.4, 0.0], [0.0, 0.3, 0.7]
INF, NAN = float("inf"), float("nan")
ALPHAS = [-1.5, -1, -0.3, 0, 0.2, 0.5, 0.9, 1, 1.4, 2, 3]


def by_alpha(alpha):
    def divergence(p, q):
        return alpha_divergence(p, q, alpha)

    divergence.__name__ = f"alpha = {alpha}"
    return divergence


def kl_sum(p, q):
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return INF
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def power(a, b, alpha):
    """The summand p^α q^(1-α): 0 where a positive power of 0 is taken, inf where a negative one."""
    if 0 in (a, b):
        exponents = [e for x, e in ((a, alpha), (b, 1 - alpha)) if x == 0]
        return INF if min(exponents) < 0 and max(a, b) > 0 else 0.0
    return a**alpha * b ** (1 - alpha)


def alpha_sum(alpha):
    if alpha == 1:
        return kl_sum
    if alpha == 0:
        return lambda p, q: kl_sum(q, p)
    return lambda p, q: (
        (1 - sum(power(a, b, alpha) for a, b in zip(p, q, strict=True))) / (alpha * (1 - alpha))
    )


def js_sum(p, q):
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl_sum(p, middle) + kl_sum(q, middle)) / 2


def chi2_sum(p, q):
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a or b]
    return INF if any(b == 0 for _, b in pairs) else sum((a - b) ** 2 / b for a, b in pairs)


DEFINITIONS = {
    kl: kl_sum,
    jeffreys: lambda p, q: kl_sum(p, q) + kl_sum(q, p),
    js: js_sum,
    tv: lambda p, q: max(  # the largest difference in the probability of an event
        sum(a - b for a, b in event)
        for n in range(len(p) + 1)
        for event in itertools.combinations(list(zip(p, q, strict=True)), n)
    ),
    hellinger2: lambda p, q: 1 - sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)),
    chi2: chi2_sum,
    **{by_alpha(alpha): alpha_sum(alpha) for alpha in ALPHAS},
}
CASES = [pytest.param(f, g, id=f.__name__) for f, g in DEFINITIONS.items()]
DIVERGENCES = [pytest.param(f, id=f.__name__) for f in DEFINITIONS]
DIRECTED = [kl, chi2]


def logs(probs, dtype=torch.float64):
    return torch.tensor(probs, dtype=torch.float64).log().to(dtype)


@pytest.mark.parametrize(("function", "definition"), CASES)
@pytest.mark.parametrize(
    ("p", "q"), [(A, B), (B, A), (A, C), ([1.0, 0.0], [0.3, 0.7]), ([0.3, 0.7], [1.0, 0.0])]
)
def test_each_divergence_is_its_definition(function, definition, p, q):
    assert function(logs(p), logs(q)).item() == pytest.approx(definition(p, q), rel=1e-12)


@pytest.mark.parametrize(("function", "definition"), CASES)
def test_zeros_follow_their_conventions_wherever_they_stand(function, definition):
    vectors = [WITH_ZERO, OTHER_ZERO, A, [0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    for p, q in itertools.product(vectors, repeat=2):
        value = function(logs(p), logs(q)).item()
        assert value == pytest.approx(definition(p, q), rel=1e-12, abs=1e-15), (p, q)


@pytest.mark.parametrize("function", DIVERGENCES)
def test_gradients_agree_with_finite_differences_in_both_arguments(function):
    def f(p, q):
        return function(p.log_softmax(-1), q.log_softmax(-1))

    p, q = logs(A).requires_grad_(), logs(B).requires_grad_()
    grads = torch.autograd.grad(f(p, q), (p, q))
    h = 1e-5
    for i, step in enumerate(h * torch.eye(3, dtype=torch.float64)):
        with torch.no_grad():
            numeric = (f(p + step, q) - f(p - step, q)) / (2 * h), (f(p, q + step) - f(p, q - step)) / (2 * h)
        for grad, difference in zip(grads, numeric, strict=True):
            torch.testing.assert_close(grad[i], difference, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("function", DIVERGENCES)
def test_the_gradient_at_an_outcome_that_neither_has_is_zero_and_leaves_the_others_alone(function):
    p, q = logs(A).requires_grad_(), logs(B).requires_grad_()
    clean = torch.autograd.grad(function(p.log_softmax(-1), q.log_softmax(-1)), (p, q))
    banned = [torch.cat([x.detach(), torch.tensor([-INF])]).requires_grad_() for x in (p, q)]
    grads = torch.autograd.grad(function(*(x.log_softmax(-1) for x in banned)), banned)
    for with_zero, without in zip(grads, clean, strict=True):
        assert with_zero[3] == 0
        torch.testing.assert_close(with_zero[:3], without)


@pytest.mark.parametrize("function", DIVERGENCES)
@pytest.mark.parametrize(("p", "q"), [(WITH_ZERO, A), (A, WITH_ZERO)])
def test_a_finite_divergence_has_finite_gradients_where_one_side_is_zero(function, p, q):
    inputs = logs(p).requires_grad_(), logs(q).requires_grad_()
    value = function(*inputs)
    if value.isfinite():
        for x, grad in zip(inputs, torch.autograd.grad(value, inputs), strict=True):
            assert grad.isfinite().all()
            assert (grad[x == -INF] == 0).all()


def test_the_gradient_of_kl_is_that_derived_by_hand():
    p, q = logs(A).requires_grad_(), logs(B).requires_grad_()
    value = kl(p.log_softmax(-1), q.log_softmax(-1))
    by_p, by_q = torch.autograd.grad(value, (p, q))
    a, b = torch.tensor(A).double(), torch.tensor(B).double()
    torch.testing.assert_close(by_p, a * ((a / b).log() - kl_sum(A, B)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_q, b - a, rtol=1e-6, atol=1e-6)
    assert kl_sum(A, B) != pytest.approx(kl_sum(B, A), rel=0.1)  # unlike enough to tell the direction


def test_kl_agrees_with_torch_distributions():
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logs(A)), torch.distributions.Categorical(logits=logs(B))
    )
    torch.testing.assert_close(kl(logs(A), logs(B)), expected)


@pytest.mark.parametrize("function", DIVERGENCES)
def test_each_leading_index_has_its_own_value(function):
    p, q = torch.stack([logs(A), logs(B), logs(C)]), torch.stack([logs(B), logs(C), logs(A)])
    batch = function(p.mT.contiguous().mT.reshape(3, 1, 3), q[:, None])
    assert batch.shape == (3, 1)
    for i in range(3):
        torch.testing.assert_close(batch[i, 0], function(p[i], q[i]))
    assert function(p[:0], q[:0]).shape == (0,)
    mixed = function(
        torch.stack([logs(A), logs(OTHER_ZERO)]), torch.stack([logs(B), logs(WITH_ZERO)])
    )  # an infinite row does not touch the other
    torch.testing.assert_close(mixed[0], function(logs(A), logs(B)))


@pytest.mark.parametrize("function", DIVERGENCES)
def test_float32_gives_the_same_to_its_own_precision(function):
    value = function(logs(A, torch.float32), logs(B, torch.float32))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), function(logs(A), logs(B)), rtol=3e-6, atol=0)


@pytest.mark.parametrize("function", DIVERGENCES)
def test_a_distribution_has_no_distance_from_itself(function):
    for probs in (A, B, WITH_ZERO):
        assert abs(function(logs(probs), logs(probs)).item()) <= 1e-15


probabilities = st.lists(st.floats(0.001, 1), min_size=4, max_size=4)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(probabilities, probabilities)
def test_the_inequalities_of_the_book_hold_for_any_pair(a, b):
    p, q = ([x / sum(v) for x in v] for v in (a, b))
    lp, lq = logs(p), logs(q)
    forward, distance, half = kl(lp, lq).item(), tv(lp, lq).item(), hellinger2(lp, lq).item()
    between = js(lp, lq).item()
    slack = 1e-12
    assert -slack <= forward
    assert forward <= math.log1p(chi2(lp, lq).item()) + slack
    assert 2 * distance**2 <= forward + slack  # Pinsker
    assert distance <= math.sqrt(-math.expm1(-max(forward, 0))) + slack
    assert half <= forward / 2 + slack
    assert -2 * math.log1p(-half) <= forward + slack
    assert 0 <= half <= 1
    assert between <= min(1, distance) * math.log(2) + slack
    for symmetric in (js, tv, hellinger2, jeffreys):
        assert symmetric(lp, lq).item() == pytest.approx(symmetric(lq, lp).item(), rel=1e-9, abs=1e-14)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(probabilities, probabilities)
def test_merging_two_outcomes_never_raises_a_divergence(a, b):
    p, q = ([x / sum(v) for x in v] for v in (a, b))
    for function in DEFINITIONS:
        merged = function(logs([p[0] + p[1], *p[2:]]), logs([q[0] + q[1], *q[2:]]))
        assert merged <= function(logs(p), logs(q)) * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("alpha", ALPHAS)
def test_swapping_the_arguments_of_alpha_divergence_mirrors_alpha(alpha):
    torch.testing.assert_close(
        alpha_divergence(logs(A), logs(B), alpha), alpha_divergence(logs(B), logs(A), 1 - alpha)
    )


def test_alpha_divergence_has_the_other_divergences_among_its_orders():
    p, q = logs(A), logs(B)
    for alpha, expected in {
        1: kl(p, q),
        0: kl(q, p),
        0.5: 4 * hellinger2(p, q),
        2: chi2(p, q) / 2,
        -1: chi2(q, p) / 2,
    }.items():
        torch.testing.assert_close(alpha_divergence(p, q, alpha), expected)


@pytest.mark.parametrize(("limit", "expected"), [(1, (A, B)), (0, (B, A))])
def test_alpha_divergence_is_continuous_at_its_limits(limit, expected):
    p, q = logs(A), logs(B)
    for h in (1e-3, 1e-5):
        below, above = (alpha_divergence(p, q, limit + d).item() for d in (-h, h))
        assert below != above
        assert (below + above) / 2 == pytest.approx(kl_sum(*expected), rel=10 * h**2 + 1e-10)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("function", [jeffreys, chi2, hellinger2, by_alpha(0.5), by_alpha(2), by_alpha(-0.7)])
def test_digits_are_kept_near_equality(function, distance):
    p = logs(A)
    q = (p + distance * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)).log_softmax(-1)
    with mpmath.workdps(50):  # from the very floats, so that only the function's own rounding counts
        pairs = [(mpmath.exp(a), mpmath.exp(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
        f = {
            "jeffreys": lambda t: (t - 1) * mpmath.log(t),
            "chi2": lambda t: (t - 1) ** 2,
            "hellinger2": lambda t: (mpmath.sqrt(t) - 1) ** 2 / 2,
        }.get(function.__name__)
        if f is None:
            alpha = mpmath.mpf(float(function.__name__.split()[-1]))
            f = lambda t: (t**alpha - alpha * t - (1 - alpha)) / (alpha * (alpha - 1))  # noqa: E731
        expected = float(sum(b * f(a / b) for a, b in pairs))
    assert function(p, q).item() == pytest.approx(expected, rel=1e-15 / distance + 1e-12)


@pytest.mark.parametrize("logit", [-50.0, -100.0, -300.0])
@pytest.mark.parametrize("function", DIVERGENCES)
def test_a_rare_outcome_overflows_only_where_the_result_does(function, logit):
    rare = torch.tensor([0.0, logit]).log_softmax(-1)
    even = torch.tensor([0.5, 0.5]).log()
    with mpmath.workdps(60):
        small = mpmath.exp(mpmath.mpf(rare[1].item()))
        p, q = [1 - small, small], [mpmath.mpf(1) / 2] * 2
        for first, second, x, y in ((rare, even, p, q), (even, rare, q, p)):
            expected = _truth(function.__name__, x, y)
            value = function(first, second).item()
            if expected > 3e38:
                assert value == INF
            else:
                assert value == pytest.approx(float(expected), rel=1e-4)


def _truth(name, p, q):
    pairs = list(zip(p, q, strict=True))

    def relative(p, q):
        return sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))

    if name.startswith("alpha"):
        alpha = mpmath.mpf(float(name.split()[-1]))
        if alpha in (0, 1):
            return relative(p, q) if alpha else relative(q, p)
        return (1 - sum(a**alpha * b ** (1 - alpha) for a, b in pairs)) / (alpha * (1 - alpha))
    middle = [(a + b) / 2 for a, b in pairs]
    return {
        "kl": relative(p, q),
        "jeffreys": relative(p, q) + relative(q, p),
        "js": (relative(p, middle) + relative(q, middle)) / 2,
        "tv": sum(abs(a - b) for a, b in pairs) / 2,
        "hellinger2": 1 - sum(mpmath.sqrt(a * b) for a, b in pairs),
        "chi2": sum((a - b) ** 2 / b for a, b in pairs),
    }[name]


@pytest.mark.parametrize("function", [kl, jeffreys, chi2, by_alpha(1), by_alpha(2)])
def test_mass_that_rounds_to_zero_is_mass_all_the_same(function):
    p = torch.tensor([0.0, -2000.0], dtype=torch.float64)
    assert function(p, logs([1.0, 0.0])) == INF


@pytest.mark.parametrize("function", DIVERGENCES)
def test_errors_name_the_argument(function):
    good = logs(A)
    for place, name in enumerate("pq"):
        for vector, message in (
            (logs([0.5, 0.3, 0.1]), rf"^{name}\[\] sums to 0\.9"),
            (torch.tensor([0.0, NAN, -1.0]).double(), rf"^{name}\[1\] is nan"),
            (torch.tensor([2.0, -1.0, -1.0]).double(), rf"^{name}\[0\] is 2.*at most 0"),
        ):
            pair = [good, good]
            pair[place] = vector
            with pytest.raises(ValueError, match=message):
                function(*pair)
    for bad in (good[:2], good[None], torch.zeros(1).double(), torch.zeros(()).double(), good.long()):
        with pytest.raises(jaxtyping.TypeCheckError, match="'q'"):
            function(good, bad)  # would have broadcast, or been promoted, in silence


@pytest.mark.parametrize("alpha", [NAN, INF, -INF])
def test_the_order_is_a_finite_number(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}"):
        alpha_divergence(logs(A), logs(B), alpha)


GAUSSIANS = [(0.3, 0.7, -0.5, 1.9), (-0.5, 1.9, 0.3, 0.7), (0.0, 1.0, 0.5, 1.0), (2.0, 0.1, 2.0, 0.2)]


@pytest.mark.parametrize("case", GAUSSIANS)
def test_gaussian_kl_is_the_integral_of_its_definition(case):
    mean, sd, ref_mean, ref_sd = map(mpmath.mpf, case)
    with mpmath.workdps(25):
        cuts = [mean + k * sd for k in (-20, -8, -3, 0, 3, 8, 20)]

        def integrand(y):
            log_p = -(((y - mean) / sd) ** 2) / 2 - mpmath.log(sd)
            log_q = -(((y - ref_mean) / ref_sd) ** 2) / 2 - mpmath.log(ref_sd)
            return mpmath.npdf(y, mean, sd) * (log_p - log_q)

        expected = float(mpmath.quad(integrand, cuts))
    value = gaussian_kl(*(torch.tensor(x, dtype=torch.float64) for x in case))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gaussian_kl_agrees_with_torch_distributions_in_value_and_gradient():
    inputs = [x.requires_grad_() for x in torch.tensor(GAUSSIANS, dtype=torch.float64).T.contiguous()]
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(*inputs[:2]), normal(*inputs[2:]))
    value = gaussian_kl(*inputs)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gaussian_kl_keeps_its_digits_and_its_sign_near_equality():
    zero, sd = torch.tensor(0.0), torch.tensor(1.0)
    for gap in (1e-2, 1e-3, -1e-3):  # KL = (e^{2t} - 1 - 2t)/2 with t = log sd
        other = torch.tensor(1.0 + gap)
        t = math.log(other.item())
        assert gaussian_kl(zero, other, zero, sd).item() == pytest.approx(
            (math.expm1(2 * t) - 2 * t) / 2, rel=3e-4
        )


def test_gaussian_kl_refuses_what_is_no_gaussian_by_name():
    names = ["mean", "sd", "ref_mean", "ref_sd"]
    for place, name in enumerate(names):
        for value in (NAN, INF):
            values = [torch.ones(2) for _ in names]
            values[place] = torch.tensor([1.0, value])
            with pytest.raises(ValueError, match=rf"^{name}\[1\] is {value}"):
                gaussian_kl(*values)
        values = [torch.ones(2) for _ in names]
        values[place] = torch.ones(1)
        with pytest.raises(jaxtyping.TypeCheckError, match=f"'{name}'" if place else "'sd'"):
            gaussian_kl(*values)
    for sd in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"^sd is {sd} somewhere"):
            gaussian_kl(torch.zeros(2), torch.tensor([1.0, sd]), torch.zeros(2), torch.ones(2))
        with pytest.raises(ValueError, match=f"^ref_sd is {sd} somewhere"):
            gaussian_kl(torch.zeros(2), torch.ones(2), torch.zeros(2), torch.tensor([1.0, sd]))
