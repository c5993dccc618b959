"""What each estimator promises, checked by summing over every outcome: no sampling, no seeds."""

import math

import jaxtyping
import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kltutor import control_variate, full_vocab_kl, k1, k2, k3

POLICY = torch.tensor([0.50, 0.30, 0.20], dtype=torch.float64)  # what we sample from
REF = torch.tensor([0.05, 0.15, 0.80], dtype=torch.float64)  # far from it in both directions
INF, NAN = float("inf"), float("nan")
ESTIMATORS = [k1, k2, k3]


def kl(p, q):
    """KL(p ‖ q) in nats, the definition."""
    return (p * (p / q).log()).sum()


def reverse_gradient(policy, ref):
    """∇ KL(policy ‖ ref) in the logits of the policy, by hand: p (log p/q - KL)."""
    return policy * ((policy / ref).log() - kl(policy, ref))


def loss_gradient(estimator):
    """Mean gradient of the estimator as a loss, in the policy's logits, the samples held fixed."""
    logits = POLICY.log().requires_grad_()
    loss = POLICY @ estimator(logits.log_softmax(-1), REF.log())
    return torch.autograd.grad(loss, logits)[0]


def test_the_two_test_distributions_tell_the_directions_apart():
    assert abs(kl(POLICY, REF) - kl(REF, POLICY)) > 0.1


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_have_the_mean_kl_from_policy_to_ref(estimator):
    torch.testing.assert_close(POLICY @ estimator(POLICY.log(), REF.log()), kl(POLICY, REF))


def test_the_mean_of_k2_is_half_the_mean_square_and_not_the_kl():
    mean = (POLICY @ k2(POLICY.log(), REF.log())).item()
    pairs = zip(POLICY.tolist(), REF.tolist(), strict=True)
    assert mean == pytest.approx(sum(p * math.log(p / q) ** 2 for p, q in pairs) / 2, rel=1e-13)
    assert abs(mean - kl(POLICY, REF)) > 0.1


@pytest.mark.parametrize("log_ratio", [-30.0, -2.0, -0.3, -1e-3, -1e-7, 0.0, 1e-7, 1e-3, 0.3, 2.0, 30.0])
def test_single_values_agree_with_thirty_digits(log_ratio):
    logp, ref_logp = torch.tensor(-31.0 + log_ratio).double(), torch.tensor(-31.0).double()
    with mpmath.workdps(30):
        d = mpmath.mpf(logp.item()) - mpmath.mpf(ref_logp.item())
        truth = {k1: d, k2: d**2 / 2, k3: mpmath.exp(-d) - 1 + d}
        for estimator, expected in truth.items():
            error = abs(estimator(logp, ref_logp).item() - expected)
            assert error <= 4e-16 * (abs(d) + expected), estimator.__name__  # rounding of expm1 and of a sum


def test_as_a_loss_k1_has_no_mean_gradient():
    torch.testing.assert_close(loss_gradient(k1), torch.zeros_like(POLICY), atol=1e-15, rtol=0)


def test_as_a_loss_k2_has_the_gradient_of_the_kl_from_policy_to_ref():
    torch.testing.assert_close(loss_gradient(k2), reverse_gradient(POLICY, REF))


def test_as_a_loss_k3_has_the_gradient_of_the_kl_from_ref_to_policy():
    torch.testing.assert_close(loss_gradient(k3), POLICY - REF)  # ∇ KL(ref ‖ softmax), by hand
    assert (loss_gradient(k3) - reverse_gradient(POLICY, REF)).abs().max() > 0.1


def test_k3_is_never_negative_and_zero_only_where_the_two_agree():
    logp = torch.linspace(-20, 0, 33, dtype=torch.float64)
    table = k3(logp[:, None].expand(33, 33), logp.expand(33, 33))
    assert (table >= 0).all()
    assert torch.equal(table == 0, torch.eye(33, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_k3_is_not_negative_in_any_precision_however_near_the_two_are(dtype):
    size = torch.logspace(-12, 0.9, 2000, dtype=torch.float64)
    gap = torch.cat([size, -size]).to(dtype)
    ref_logp = torch.full_like(gap, -8.0)
    small = torch.where(gap > 0, -gap, 0), torch.where(gap > 0, 0, gap)  # one of the two is 0: no rounding
    for logp, other in ((ref_logp + gap.clamp(max=7), ref_logp), small):
        assert (k3(logp, other) >= 0).all()


def test_k3_keeps_its_digits_near_zero_in_float32():
    logp, ref_logp = torch.tensor(-1.0), torch.tensor(-1.0 - 2**-10)
    assert k3(logp, ref_logp).item() == pytest.approx(2**-21, rel=1e-3)  # exp() - 1 loses three digits more


def test_k3_reads_low_by_the_mass_that_the_policy_cannot_draw():
    kept = POLICY[:2] / POLICY[:2].sum()  # a truncated sampler
    mean = kept @ k3(kept.log(), REF[:2].log())
    torch.testing.assert_close(mean, kl(kept, REF[:2]) - REF[2])


@pytest.mark.parametrize("coef", [-0.7, 0.0, 0.4, 1.0, 1.8])
def test_the_control_variate_is_log_ratio_plus_coef_times_w_minus_one(coef):
    value = control_variate(POLICY.log(), REF.log(), coef)
    for v, p, q in zip(value.tolist(), POLICY.tolist(), REF.tolist(), strict=True):
        assert v == pytest.approx(math.log(p / q) + coef * (q / p - 1), rel=1e-13)
    torch.testing.assert_close(POLICY @ value, kl(POLICY, REF))  # unbiased for every coef


def test_the_control_variate_has_k1_and_k3_among_its_members():
    logp, ref_logp = POLICY.log(), REF.log()
    assert torch.equal(control_variate(logp, ref_logp, 0), k1(logp, ref_logp))
    assert torch.equal(control_variate(logp, ref_logp, 1), k3(logp, ref_logp))


@pytest.mark.parametrize(
    ("estimator", "never_in_ref", "never_in_policy"),
    [
        (k1, INF, -INF),
        (k2, INF, INF),
        (k3, INF, INF),
        (lambda p, q: control_variate(p, q, 0.0), INF, -INF),
        (lambda p, q: control_variate(p, q, 0.5), INF, INF),
        (lambda p, q: control_variate(p, q, -0.5), INF, -INF),
    ],
)
def test_the_infinite_cases_are_the_limits(estimator, never_in_ref, never_in_policy):
    some, never = torch.tensor([-1.0]), torch.tensor([-INF])
    assert estimator(some, never).item() == never_in_ref
    assert estimator(never, some).item() == never_in_policy
    near = estimator(torch.tensor([-80.0]).double(), torch.tensor([-1.0]).double()).item()
    assert math.copysign(1, near) == math.copysign(1, never_in_policy)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.floats(-600, 0), st.floats(-600, 0))
def test_signs_and_symmetry_hold_for_any_two_log_probabilities(a, b):
    logp, ref_logp = torch.tensor(a).double(), torch.tensor(b).double()
    assert k1(logp, ref_logp) == -k1(ref_logp, logp)
    assert k2(logp, ref_logp) == k2(ref_logp, logp) >= 0
    assert k3(logp, ref_logp) >= 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shape_and_dtype_follow_the_inputs(estimator, dtype):
    table = torch.tensor([[-1.0, -2.0, -4.0], [-0.5, -3.0, -0.25]], dtype=dtype)
    flipped = table.flip(-1)
    value = estimator(table, flipped)
    assert value.dtype == dtype
    assert torch.equal(estimator(table.mT, flipped.mT), value.mT)  # not contiguous
    assert torch.equal(estimator(table[1, 2], flipped[1, 2]), value[1, 2])  # no axis at all
    assert estimator(table[:0], flipped[:0]).shape == (0, 3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_padding_that_was_filled_first_reaches_neither_value_nor_gradient(estimator):
    mask = torch.tensor([True, False, False, True])
    logp = torch.tensor([-1.0, NAN, -INF, -2.0], dtype=torch.float64, requires_grad=True)
    ref_logp = torch.tensor([-1.5, -INF, -INF, -1.0], dtype=torch.float64)
    value = estimator(logp.masked_fill(~mask, 0), ref_logp.masked_fill(~mask, 0))
    (grad,) = torch.autograd.grad(value.sum(), logp)
    assert value[~mask].tolist() == grad[~mask].tolist() == [0, 0]
    clean = logp.detach()[mask].requires_grad_()
    again = estimator(clean, ref_logp[mask])
    assert torch.equal(again, value[mask])
    assert torch.equal(torch.autograd.grad(again.sum(), clean)[0], grad[mask])


@pytest.mark.parametrize("estimator", [*ESTIMATORS, lambda p, q: control_variate(p, q, 0.5)])
def test_errors_name_the_argument_and_the_way_out(estimator):
    good = torch.tensor([-1.0, -2.0])
    for other in (torch.zeros(2, 1), torch.zeros(1), torch.zeros(1, 2), torch.zeros(()), good.long()):
        with pytest.raises(jaxtyping.TypeCheckError, match="'ref_logp'"):
            estimator(good, other)  # would have broadcast, or been promoted, in silence
    with pytest.raises(ValueError, match=r"^logp\[1\] is 2.*token_logps"):
        estimator(torch.tensor([-1.0, 2.0]), good)
    with pytest.raises(ValueError, match=r"^ref_logp\[0\] is nan"):
        estimator(good, torch.tensor([NAN, -1.0]))
    with pytest.raises(ValueError, match=r"logp\[1\] and ref_logp\[1\] are both -inf"):
        estimator(torch.tensor([-1.0, -INF]), torch.tensor([-1.0, -INF]))


@pytest.mark.parametrize("coef", [NAN, INF, -INF])
def test_the_coefficient_is_a_finite_number(coef):
    with pytest.raises(ValueError, match=f"coef is {coef}"):
        control_variate(POLICY.log(), REF.log(), coef)


def test_full_vocab_kl_is_the_mean_of_k1_at_the_prefix_whatever_the_normalisation():
    logits = torch.stack([POLICY.log() + 3, REF.log() - 50])
    ref_logits = torch.stack([REF.log() - 7, POLICY.log()])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logits), torch.distributions.Categorical(logits=ref_logits)
    )
    torch.testing.assert_close(full_vocab_kl(logits, ref_logits), expected)
    torch.testing.assert_close(expected, torch.stack([kl(POLICY, REF), kl(REF, POLICY)]))
    torch.testing.assert_close(expected[0], POLICY @ k1(POLICY.log(), REF.log()))


def test_full_vocab_kl_has_the_gradients_of_both_arguments():
    logits, ref_logits = (POLICY.log() + 1).requires_grad_(), (REF.log() - 2).requires_grad_()
    by_policy, by_ref = torch.autograd.grad(full_vocab_kl(logits, ref_logits), (logits, ref_logits))
    torch.testing.assert_close(by_policy, reverse_gradient(POLICY, REF))
    torch.testing.assert_close(by_ref, REF - POLICY)


def test_a_banned_token_costs_nothing_in_value_or_gradient_where_the_policy_bans_it():
    logits = torch.cat([POLICY.log(), torch.tensor([-INF])]).requires_grad_()
    for last in (-INF, -1.0):
        ref_logits = torch.cat([REF.log(), torch.tensor([last])])
        ref = ref_logits.softmax(-1)[:3]
        value = full_vocab_kl(logits, ref_logits)
        torch.testing.assert_close(value, kl(POLICY, ref))
        grad = torch.autograd.grad(value, logits)[0]
        assert grad[3] == 0
        torch.testing.assert_close(grad[:3], reverse_gradient(POLICY, ref))


@pytest.mark.parametrize("logit", [0.0, -50.0, -2000.0])  # exp(-2000) rounds to 0, yet it is not a ban
def test_full_vocab_kl_is_infinite_where_only_the_reference_bans_a_token(logit):
    logits = torch.tensor([[0.0, logit], [0.0, 0.0]])
    ref_logits = torch.tensor([[0.0, -INF], [0.0, 0.0]])
    assert full_vocab_kl(logits, ref_logits).tolist() == [INF, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_full_vocab_kl_is_right_to_the_last_digit_of_half_precision_over_a_large_vocabulary(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4000, generator=generator)
    ref_logits = (logits + torch.randn(2, 4000, generator=generator) / 20).to(dtype)
    logits = logits.to(dtype)
    exact = full_vocab_kl(logits.double(), ref_logits.double())  # about 0.001: lost in half-precision sums
    value = full_vocab_kl(logits, ref_logits)
    assert value.dtype == dtype
    assert exact.max() < 2e-3
    torch.testing.assert_close(value.double(), exact, rtol=max(torch.finfo(dtype).eps, 1e-3), atol=0)


def test_full_vocab_kl_refuses_bad_logits_by_name():
    good = torch.zeros(2, 3)
    for name, place in (("logits", 0), ("ref_logits", 1)):
        for value, what in ((NAN, "is nan"), (INF, "is inf")):
            pair = [good, good.clone()]
            pair[place] = good.clone()
            pair[place][1, 2] = value
            with pytest.raises(ValueError, match=rf"^{name}\[1, 2\] {what}"):
                full_vocab_kl(*pair)
        pair[place] = torch.tensor([[0.0, 0.0, 0.0], [-INF, -INF, -INF]])
        with pytest.raises(ValueError, match=rf"^{name}\[1\] bans every token"):
            full_vocab_kl(*pair)
    with pytest.raises(jaxtyping.TypeCheckError, match="'ref_logits'"):
        full_vocab_kl(good, torch.zeros(1, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="'logits'"):
        full_vocab_kl(good.long(), good)


@pytest.mark.parametrize("estimator", [k1, k2, k3], ids=lambda e: e.__name__)
def test_two_dtypes_are_refused_rather_than_promoted(estimator):
    coarse, fine = torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-1.0])
    with pytest.raises(ValueError, match=r"logp is torch.bfloat16 and ref_logp torch.float32"):
        estimator(coarse, fine)
