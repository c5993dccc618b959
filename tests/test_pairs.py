"""The population of compared pairs is the law that the sampled pairs follow."""

import math

import jaxtyping
import pytest
import torch
from worlds import world

from kltutor import TabularPolicy, all_pairs, bradley_terry, exact, sample_pairs, tasks

WORLD = world(2)


def start(task, number=0):
    return exact.seq_logp(TabularPolicy.random(task, torch.Generator().manual_seed(number)), task).detach()


LOGP = start(WORLD)


def table(pairs, weights):
    """Weight of every (prompt, chosen, rejected)."""
    result = torch.zeros(2, WORLD.size, WORLD.size, dtype=torch.float64)
    result[pairs.prompt, pairs.chosen, pairs.rejected] = weights
    return result


def test_weights_are_those_of_two_draws_and_a_label():
    found = table(*all_pairs(WORLD, LOGP))
    for x, asked in enumerate(WORLD.prompt_probs):
        for i in range(WORLD.size):
            for j in range(WORLD.size):
                both = LOGP[x, i].exp() * LOGP[x, j].exp()
                wins = 1 / (1 + math.exp(WORLD.reward[x, j] - WORLD.reward[x, i]))
                expected = 2 * asked * both * wins if i != j else 0.0
                assert found[x, i, j].item() == pytest.approx(float(expected), rel=1e-12)


def test_they_sum_to_the_probability_that_two_draws_differ():
    _, weights = all_pairs(WORLD, LOGP)
    same = torch.tensor(WORLD.prompt_probs, dtype=torch.float64) @ (2 * LOGP).exp().sum(-1)
    assert weights.sum().item() == pytest.approx(1 - same.item(), rel=1e-12)
    assert same > 0.2


def test_sampled_pairs_follow_them():
    """Chi-squared over all pairs at 99.99 %: a wrong alarm with probability 1e-4."""
    from scipy.stats import chi2

    count = 40_000
    drawn = sample_pairs(WORLD, LOGP, count, torch.Generator().manual_seed(1))
    seen = torch.zeros(2, WORLD.size, WORLD.size, dtype=torch.float64)
    ones = torch.ones(count, dtype=torch.float64)
    seen.index_put_((drawn.prompt, drawn.chosen, drawn.rejected), ones, accumulate=True)
    seen.diagonal(dim1=1, dim2=2).zero_()
    pairs, weights = all_pairs(WORLD, LOGP)
    expected = table(pairs, weights * count)
    cells = expected > 5
    distance = ((seen - expected).square() / expected)[cells].sum().item()
    assert cells.sum() > 50
    assert distance < chi2.ppf(1 - 1e-4, int(cells.sum()))
    wrong = table(pairs, weights * count).transpose(1, 2)  # chosen and rejected swapped
    cells = wrong > 5
    assert ((seen - wrong).square() / wrong)[cells].sum().item() > chi2.ppf(1 - 1e-4, int(cells.sum()))


def test_other_preferences_label_the_same_draws():
    certain = lambda reward, other: torch.heaviside(reward - other, torch.tensor(0.5, dtype=torch.float64))  # noqa: E731
    pairs, weights = all_pairs(WORLD, LOGP, preference=certain)
    gap = WORLD.reward[pairs.prompt, pairs.chosen] - WORLD.reward[pairs.prompt, pairs.rejected]
    assert (gap >= 0).all(), "a pair that is never labelled so is left out"
    assert weights.sum().item() == pytest.approx(all_pairs(WORLD, LOGP)[1].sum().item(), rel=1e-12)
    noisy, weights = all_pairs(WORLD, LOGP, preference=lambda a, b: 0.8 * bradley_terry(a, b) + 0.1)
    expected = 0.8 * table(*all_pairs(WORLD, LOGP))
    draws = torch.tensor(WORLD.prompt_probs).view(2, 1, 1) * LOGP.exp()[:, :, None] * LOGP.exp()[:, None]
    draws.diagonal(dim1=1, dim2=2).zero_()
    torch.testing.assert_close(table(noisy, weights), expected + 0.2 * draws)


def test_a_completion_that_is_never_drawn_is_in_no_pair():
    logp = LOGP.clone()
    logp[:, 3] = -torch.inf
    pairs, _ = all_pairs(WORLD, logp.log_softmax(-1))
    assert (pairs.chosen != 3).all()
    assert (pairs.rejected != 3).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: all_pairs(WORLD, LOGP[:1]), r"seq_logp has shape \(1, 7\); \(2, 7\) is expected"),
        (lambda: all_pairs(WORLD, LOGP - 1), "seq_logp"),
        (lambda: all_pairs(WORLD, LOGP, preference=lambda a, b: (a - b).exp()), "do not sum to 1"),
        (lambda: all_pairs(WORLD, LOGP, preference=lambda a, b: 0.5 + a - b), "do not sum to 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="seq_logp"):
        all_pairs(tasks.bandit(), LOGP[0])
