"""Masks and reductions against loops in plain Python, in value and in gradient."""

import itertools
import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kltutor import last_action, masked_mean, masked_sum, reduce, token_logps

INF, NAN = float("inf"), float("nan")
VALUES = torch.tensor(
    [[1.0, -2.0, 4.0, 0.5], [3.0, 7.0, -1.0, 2.0], [5.0, 0.25, 6.0, -3.0]], dtype=torch.float64
)
MASK = torch.tensor([[True, True, False, False], [False, True, True, True], [True, False, False, True]])
HOWS = ["token_mean", "sequence_sum", "sequence_mean"]


def weight(how, mask):
    """What one unit of each value adds to the result, from the definition of the reduction."""
    rows, total = len(mask), sum(map(sum, mask))
    scale = {
        "token_mean": lambda row: 1 / total,
        "sequence_sum": lambda row: 1 / rows,
        "sequence_mean": lambda row: 1 / (rows * sum(row)),
    }[how]
    return [[scale(row) if on else 0.0 for on in row] for row in mask]


def dot(weights, values):
    pairs = zip(itertools.chain(*weights), itertools.chain(*values), strict=True)
    return sum(w * v for w, v in pairs if w)


@pytest.mark.parametrize("how", HOWS)
def test_each_reduction_is_its_sum_over_rows_and_tokens_in_value_and_gradient(how):
    values = VALUES.clone().requires_grad_()
    result = reduce(values, MASK, how)
    weights = weight(how, MASK.tolist())
    assert result.item() == pytest.approx(dot(weights, VALUES.tolist()), rel=1e-14)
    (grad,) = torch.autograd.grad(result, values)
    torch.testing.assert_close(grad, torch.tensor(weights, dtype=torch.float64))


def test_the_three_reductions_differ_on_completions_of_different_length():
    results = [reduce(VALUES, MASK, how).item() for how in HOWS]
    assert min(abs(a - b) for a, b in itertools.combinations(results, 2)) > 0.1


def test_the_three_reductions_agree_up_to_the_length_on_completions_of_one_length():
    mask = torch.tensor([[True, True, True, False]] * 3)
    token_mean, sequence_sum, sequence_mean = (reduce(VALUES, mask, how) for how in HOWS)
    torch.testing.assert_close(token_mean, sequence_mean)
    torch.testing.assert_close(3 * token_mean, sequence_sum)


def test_sums_and_means_of_rows_count_only_what_the_mask_holds():
    assert masked_sum(VALUES, MASK).tolist() == [-1.0, 8.0, 2.0]
    torch.testing.assert_close(masked_mean(VALUES, MASK), torch.tensor([-0.5, 8 / 3, 1.0]).double())
    assert masked_sum(VALUES, torch.zeros_like(MASK)).tolist() == [0.0, 0.0, 0.0]
    everything = torch.ones_like(MASK)
    torch.testing.assert_close(masked_sum(VALUES, everything), VALUES.sum(-1))
    torch.testing.assert_close(masked_mean(VALUES, everything), VALUES.mean(-1))


@pytest.mark.parametrize("junk", [INF, -INF, NAN, 1e308])
@pytest.mark.parametrize("how", [*HOWS, "masked_sum", "masked_mean"])
def test_what_stands_at_a_masked_position_never_matters(junk, how):
    function = {"masked_sum": masked_sum, "masked_mean": masked_mean}.get(how, lambda v, m: reduce(v, m, how))
    values = VALUES.masked_fill(~MASK, junk).requires_grad_()
    result = function(values, MASK)
    torch.testing.assert_close(result, function(VALUES, MASK))
    (grad,) = torch.autograd.grad(result.sum(), values)
    assert (grad[~MASK] == 0).all()
    assert grad[MASK].isfinite().all()


@pytest.mark.parametrize("junk", [INF, NAN])
def test_what_stands_at_a_counted_position_is_not_hidden(junk):
    values = VALUES.masked_fill(MASK, junk)
    for how in HOWS:
        assert not reduce(values, MASK, how).isfinite()


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.data())
def test_the_reductions_agree_with_the_loop_on_any_batch(data):
    rows, time = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    row = st.lists(st.booleans(), min_size=time, max_size=time).filter(any)
    mask = data.draw(st.lists(row, min_size=rows, max_size=rows))
    numbers = st.lists(st.integers(-64, 64), min_size=time, max_size=time)
    values = data.draw(st.lists(numbers, min_size=rows, max_size=rows))
    on, tensor = torch.tensor(mask), torch.tensor(values, dtype=torch.float64)
    for how in HOWS:
        expected = dot(weight(how, mask), values)
        assert reduce(tensor, on, how).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    ends = [max(t for t in range(time) if row[t]) for row in mask]
    assert last_action(on).tolist() == ends


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_follows_the_values_and_layout_does_not_matter(dtype):
    values = VALUES.to(dtype)  # exact in every dtype
    for how in HOWS:
        result = reduce(values.T.contiguous().T, MASK.T.contiguous().T, how)
        assert result.dtype == dtype
        assert torch.equal(result, reduce(values, MASK, how))


def test_a_reduction_needs_rows_tokens_and_a_boolean_mask():
    with pytest.raises(ValueError, match="values has no rows"):
        reduce(VALUES[:0], MASK[:0], "token_mean")
    empty_row = MASK.clone()
    empty_row[1] = False
    for call in (masked_mean, *(lambda v, m, how=how: reduce(v, m, how) for how in HOWS)):
        with pytest.raises(ValueError, match="mask row 1 has no True"):
            call(VALUES, empty_row)
        with pytest.raises(jaxtyping.TypeCheckError, match="'mask'"):
            call(VALUES, MASK.double())
        with pytest.raises(jaxtyping.TypeCheckError, match="'mask'"):
            call(VALUES, MASK.long())
        with pytest.raises(jaxtyping.TypeCheckError, match="'mask'"):
            call(VALUES, MASK[:, :1])  # would have broadcast in silence
        with pytest.raises(jaxtyping.TypeCheckError, match="'values'"):
            call(VALUES.long(), MASK)
        with pytest.raises(jaxtyping.TypeCheckError, match="'values'"):
            call(VALUES[0], MASK[0])
    with pytest.raises(jaxtyping.TypeCheckError, match="'mask'"):
        masked_sum(VALUES, MASK[:1])


@pytest.mark.parametrize("how", ["mean", "sum", "Token_mean", "", None])
def test_an_unknown_reduction_is_an_error_that_lists_the_known_ones(how):
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)'how'.*token_mean.*sequence_sum"):
        reduce(VALUES, MASK, how)


def test_the_last_action_is_the_last_true_of_a_row_with_gaps_and_padding_anywhere():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    for row, places in enumerate([(0,), (5,), (1, 2, 4), (0, 1, 2, 3, 4, 5)]):
        mask[row, list(places)] = True
    assert last_action(mask).tolist() == [0, 5, 4, 5]
    long = torch.ones(1, 5000, dtype=torch.bool)  # where a cumulative sum in half precision goes wrong
    assert last_action(long).tolist() == [4999]


def test_a_row_without_an_action_has_no_last_one():
    with pytest.raises(ValueError, match="mask row 1 has no True"):
        last_action(torch.tensor([[True], [False]]))
    with pytest.raises(jaxtyping.TypeCheckError, match="'mask'"):
        last_action(torch.tensor([[1, 0]]))


LOGITS = torch.tensor(
    [[[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]], [[5.0, -4.0, 1.0], [-0.2, 0.1, 0.7]]], dtype=torch.float64
)
TOKENS = torch.tensor([[2, 0], [1, 2]])


def test_the_log_probability_of_a_token_is_its_own_softmax_and_not_a_neighbours():
    result = token_logps(LOGITS, TOKENS)
    for b, t in itertools.product(range(2), range(2)):
        scores = [math.exp(x) for x in LOGITS[b, t].tolist()]
        assert result[b, t].item() == pytest.approx(math.log(scores[TOKENS[b, t]] / sum(scores)), rel=1e-13)


def test_the_gradient_of_a_log_probability_is_one_hot_minus_softmax():
    logits = LOGITS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(token_logps(logits, TOKENS).sum(), logits)
    torch.testing.assert_close(grad, torch.eye(3).double()[TOKENS] - LOGITS.softmax(-1))


def test_a_banned_token_has_log_probability_minus_infinity_and_harms_no_other():
    logits = LOGITS.clone()
    logits[0, 0, 1] = -INF
    logits.requires_grad_()
    result = token_logps(logits, TOKENS)
    assert result[0, 0].item() == pytest.approx(2 - math.log(math.exp(0.3) + math.exp(2.0)))
    (grad,) = torch.autograd.grad(result.sum(), logits)
    assert grad.isfinite().all()
    assert grad[0, 0, 1] == 0
    assert token_logps(logits, torch.tensor([[1, 0], [1, 2]]))[0, 0] == -INF


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_log_probabilities_come_in_the_dtype_of_the_logits(dtype, integer):
    result = token_logps(LOGITS.to(dtype), TOKENS.to(integer))
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), token_logps(LOGITS, TOKENS), rtol=0, atol=10 * torch.finfo(dtype).eps
    )


def test_errors_of_token_logps_name_the_argument():
    for token in (-100, -1, 3):
        with pytest.raises(ValueError, match=rf"tokens\[1, 0\] is {token}, outside the vocabulary 0 to 2"):
            token_logps(LOGITS, torch.tensor([[2, 0], [token, 2]]))
    for value, message in ((NAN, "is nan"), (INF, "is inf")):
        logits = LOGITS.clone()
        logits[1, 0, 2] = value
        with pytest.raises(ValueError, match=rf"logits\[1, 0, 2\] {message}"):
            token_logps(logits, TOKENS)
    banned = LOGITS.clone()
    banned[0, 1] = -INF
    with pytest.raises(ValueError, match=r"logits\[0, 1\] bans every token"):
        token_logps(banned, TOKENS)
    for tokens in (TOKENS[:, :1], TOKENS[:1], TOKENS.double(), TOKENS[0]):
        with pytest.raises(jaxtyping.TypeCheckError, match="'tokens'"):
            token_logps(LOGITS, tokens)
    with pytest.raises(jaxtyping.TypeCheckError, match="'logits'"):
        token_logps(LOGITS.long(), TOKENS)
