"""The checks that annotations cannot state: what passes, what does not, and what the error says."""

import pytest
import torch

from kltutor.checks import (
    check_detached,
    check_device,
    check_distributions,
    check_finite,
    check_logits,
    check_logps,
    check_nonnegative,
    check_number,
    check_pair,
    check_positive,
    check_rows,
    check_tokens,
    first,
)

INF, NAN = float("inf"), float("nan")


def test_first_is_the_index_of_the_first_true():
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[1, 2] = bad[1, 1] = True
    assert first(bad) == [1, 1]
    assert first(torch.tensor(True)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_log_probabilities_pass_with_minus_infinity_and_with_rounding_above_zero(dtype):
    check_logps(logp=torch.tensor([0.0, -1.0, -INF, 1e-5], dtype=dtype))
    check_logps(logp=torch.zeros(0, 3, dtype=dtype))  # nothing is nothing wrong
    check_logps(logp=torch.tensor(-1.0, dtype=dtype, requires_grad=True))


@pytest.mark.parametrize("value", [NAN, INF, 0.01, 7.5])
def test_a_value_that_is_no_log_probability_is_named_with_its_place(value):
    logp = torch.full((2, 3), -1.0)
    logp[1, 2] = value
    with pytest.raises(ValueError, match=rf"ref_logp\[1, 2\] is {value:.4g}.*token_logps.*masked_fill"):
        check_logps(logp=torch.zeros(2), ref_logp=logp)


def test_a_pair_may_hold_minus_infinity_once_but_not_twice():
    sure, never = torch.tensor([-1.0, -INF]), torch.tensor([-INF, -1.0])
    check_pair(sure, never)
    with pytest.raises(ValueError, match=r"logp\[1\] and ref_logp\[1\] are both -inf"):
        check_pair(sure, sure)
    with pytest.raises(ValueError, match=r"ref_logp\[0\] is nan"):
        check_pair(sure, torch.tensor([NAN, 0.0]))


def test_distributions_sum_to_one_along_the_last_axis_only():
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
    check_distributions(p=rows, q=rows.to(torch.float32))
    with pytest.raises(ValueError, match=r"p\[0\] sums to 0.7.* probabilities sum to 1.*log_softmax"):
        check_distributions(p=rows.mT.contiguous())  # columns sum to .7, .7 and .6
    with pytest.raises(ValueError, match=r"q\[1\] sums to 0.6"):
        check_distributions(q=torch.stack([rows[0], rows[1] + torch.tensor(0.6).log()]))


def test_a_near_miss_of_one_is_an_error_that_shows_the_miss():
    logp = torch.tensor([0.5, 0.5 + 1e-7], dtype=torch.float64).log()
    with pytest.raises(ValueError, match=r"p\[\] sums to 1 along the last axis, off by 1e-07"):
        check_distributions(p=logp)
    check_distributions(p=logp.to(torch.float32))  # where 1e-7 is rounding


@pytest.mark.parametrize("logp", [torch.zeros(0), torch.full((3,), -INF), torch.tensor([-INF, NAN])])
def test_no_mass_at_all_is_no_distribution(logp):
    with pytest.raises(ValueError, match=r"p\["):
        check_distributions(p=logp)


def test_logits_may_ban_tokens_but_not_all_of_a_row():
    check_logits(logits=torch.tensor([[50.0, -INF], [-INF, 0.0]]))
    with pytest.raises(ValueError, match=r"scores\[0, 1\] is nan"):
        check_logits(scores=torch.tensor([[0.0, NAN]]))
    with pytest.raises(ValueError, match=r"scores\[1, 0\] is inf"):
        check_logits(scores=torch.tensor([[0.0, 0.0], [INF, 0.0]]))
    with pytest.raises(ValueError, match=r"scores\[1\] bans every token"):
        check_logits(scores=torch.tensor([[0.0, -INF], [-INF, -INF]]))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_finite_means_neither_nan_nor_infinite(value):
    check_finite(reward=torch.tensor([1e300], dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"reward\[1\] is {value}"):
        check_finite(reward=torch.tensor([0.0, value]))


def test_each_row_of_a_mask_needs_a_true():
    check_rows(torch.tensor([[True, False], [False, True]]))
    with pytest.raises(ValueError, match="mask row 1 has no True"):
        check_rows(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="mask row 0 has no True"):
        check_rows(torch.zeros(1, 0, dtype=torch.bool))


@pytest.mark.parametrize("token", [-100, -1, 3])
def test_tokens_outside_the_vocabulary_are_named(token):
    check_tokens(torch.tensor([[0, 2]]), 3)
    with pytest.raises(ValueError, match=rf"tokens\[0, 1\] is {token}, outside the vocabulary 0 to 2.*-100"):
        check_tokens(torch.tensor([[0, token]]), 3)


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_a_number_is_neither_nan_nor_infinite(number):
    check_number(mu=-1e300, alpha=0.0, whole=3)
    with pytest.raises(ValueError, match=f"alpha is {number}; a finite number is expected"):
        check_number(mu=0.0, alpha=number)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "", "cpu:x"])
def test_a_device_is_one_that_torch_can_compute_on_here(device):
    check_device("cpu")
    with pytest.raises(ValueError, match=f"device is '{device}', which torch cannot use: .*device=cpu"):
        check_device(device)


@pytest.mark.parametrize("number", [0.0, -1.0, NAN, INF])
def test_positive_means_finite_and_above_zero(number):
    check_positive(beta=1e-300)
    with pytest.raises(ValueError, match=f"beta is {number}"):
        check_positive(beta=number)


@pytest.mark.parametrize("number", [-1e-300, -1.0, NAN, INF, -INF])
def test_nonnegative_means_finite_and_not_below_zero(number):
    check_nonnegative(beta=0.0, other=-0.0, third=1e300)
    with pytest.raises(ValueError, match=f"clip is {number}; a finite number of at least 0"):
        check_nonnegative(beta=0.1, clip=number)


def test_what_requires_grad_is_not_detached():
    leaf = torch.ones(2, requires_grad=True)
    check_detached(scores=torch.ones(2), again=leaf.detach())
    for tensor in (leaf, leaf * 2, leaf[:1]):
        with pytest.raises(ValueError, match=r"rewards requires grad.*Pass rewards\.detach\(\)"):
            check_detached(scores=torch.ones(2), rewards=tensor)
    with torch.no_grad():
        check_detached(scores=leaf * 2)
