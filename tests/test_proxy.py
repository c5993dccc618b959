"""Preference data and the reward model learnt from it, on tasks whose gold reward is known."""

import math

import pytest
import torch

from kltutor import TabularPolicy, exact, optimal_policy, tasks
from kltutor.pairs import Pairs, sample_pairs
from kltutor.preference import bradley_terry
from kltutor.proxy import features, fit_proxy

SMALL = tasks.small()


def seed(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module")
def logp():
    return exact.seq_logp(TabularPolicy.random(SMALL, seed(), 0.7), SMALL).detach()


def test_features_count_words_of_the_right_prompt():
    seen = features(SMALL)
    index = [" ".join(SMALL.read(s)[0]) for s in SMALL.sequences].index("warm cold warm")
    assert SMALL.read(SMALL.sequences[index])[1]
    assert seen[0, index].tolist() == [2, 0, 1, 0, 0, 0, 1]
    assert seen[1, index].tolist() == [0, 0, 0, 2, 0, 1, 1]
    unended = [i for i, s in enumerate(SMALL.sequences) if not SMALL.read(s)[1]]
    assert (seen[:, unended, -1] == 0).all()


def test_labels_follow_bradley_terry_and_prompts_their_probabilities(logp):
    """20 000 pairs; each share lies within 4.5 standard errors but with probability below 1e-4."""
    pairs = sample_pairs(SMALL, logp, 20000, seed(1))
    share = (pairs.prompt == 0).double().mean().item()
    assert abs(share - 0.6) < 4.5 * math.sqrt(0.24 / 20000)
    gold = SMALL.reward[pairs.prompt, pairs.chosen], SMALL.reward[pairs.prompt, pairs.rejected]
    win = bradley_terry(*gold)  # of the pair as labelled: σ(gap) or its complement
    gap = gold[0] - gold[1]
    for size in (0.5, 1.0, 2.0):
        these = gap.abs() == size
        expected = 1 / (1 + math.exp(-size))
        found = (gap[these] > 0).double().mean().item()
        assert abs(found - expected) < 4.5 * math.sqrt(expected * (1 - expected) / these.sum().item())
    assert (win[gap == 0] == 0.5).all()


def test_both_completions_are_drawn_from_the_policy_for_their_own_prompt():
    sure = torch.full((2, SMALL.size), -torch.inf, dtype=torch.float64)
    sure[0, 5] = sure[1, 9] = 0
    pairs = sample_pairs(SMALL, sure, 50, seed())
    assert set(pairs.prompt.tolist()) == {0, 1}
    for drawn in (pairs.chosen, pairs.rejected):
        assert torch.equal(drawn, torch.where(pairs.prompt == 0, 5, 9))


def test_flipped_labels_are_flipped_as_often_as_said(logp):
    clean, noisy = (sample_pairs(SMALL, logp, 20000, seed(1), flip=flip) for flip in (0.0, 0.3))
    assert torch.equal(clean.prompt, noisy.prompt)
    differ = (clean.chosen != noisy.chosen) & (clean.chosen != clean.rejected)
    gap = SMALL.reward[clean.prompt, clean.chosen] - SMALL.reward[clean.prompt, clean.rejected]
    wins = bradley_terry(gap, torch.zeros_like(gap))
    # One uniform number labels both, so they differ where it falls between p and (1 - f) p + f (1 - p).
    assert differ.double().mean() < 0.3
    noisy_gap = SMALL.reward[noisy.prompt, noisy.chosen] - SMALL.reward[noisy.prompt, noisy.rejected]
    assert noisy_gap.mean() < 0.6 * gap.mean()
    assert wins.mean() > 0.5


def test_the_fit_is_the_minimum_of_its_loss(logp):
    pairs = sample_pairs(SMALL, logp, 400, seed(2))
    seen = features(SMALL)
    proxy = fit_proxy(SMALL, pairs, ridge=0.5)
    weights = torch.linalg.lstsq(seen.flatten(0, 1), proxy.flatten()[:, None]).solution[:, 0].requires_grad_()
    gaps = seen[pairs.prompt, pairs.chosen] - seen[pairs.prompt, pairs.rejected]
    loss = torch.log1p(torch.exp(-gaps @ weights)).sum() + 0.25 * weights.square().sum()
    (slope,) = torch.autograd.grad(loss, weights)
    assert slope.abs().max() < 1e-7


def test_the_proxy_learns_the_direction_of_the_gold_reward_and_not_its_shape(logp):
    proxy = fit_proxy(SMALL, sample_pairs(SMALL, logp, 3000, seed(3)))
    centred = [x - exact.expectation(x, logp, SMALL) for x in (proxy, SMALL.reward)]
    covariance = exact.expectation(centred[0] * centred[1], logp, SMALL)
    spread = [exact.variance(x, logp, SMALL) for x in (proxy, SMALL.reward)]
    assert covariance / (spread[0] * spread[1]).sqrt() > 0.7
    said = [" ".join(SMALL.read(s)[0]) for s in SMALL.sequences]
    twice, both = said.index("warm warm"), said.index("warm sweet")
    assert SMALL.reward[0, twice] < SMALL.reward[0, both]
    assert proxy[0, twice] - proxy[0, both] > SMALL.reward[0, twice] - SMALL.reward[0, both] + 0.5


@pytest.mark.parametrize("number", [0, 1, 2])
def test_over_optimisation_emerges(logp, number):
    """Along beta the proxy keeps rising while the gold reward peaks at an inner KL and then falls."""
    proxy = fit_proxy(SMALL, sample_pairs(SMALL, logp, 300, seed(number)))
    gold, seen = [], []
    for beta in torch.logspace(1, -2, 25).tolist():
        best, _ = optimal_policy(logp, proxy, beta)
        gold.append(exact.expectation(SMALL.reward, best, SMALL).item())
        seen.append(exact.expectation(proxy, best, SMALL).item())
    assert seen == sorted(seen)
    top = max(range(25), key=gold.__getitem__)
    assert 0 < top < 24
    assert gold[top] > gold[0] + 0.3
    assert gold[-1] < gold[top] - 0.1


def test_over_optimisation_emerges_in_the_larger_task_too():
    task = tasks.phrases()
    base = exact.seq_logp(TabularPolicy.random(task, seed(10), 0.7), task).detach()
    proxy = fit_proxy(task, sample_pairs(task, base, 300, seed()))
    gold, seen = [], []
    for beta in (10.0, 1.0, 0.3, 0.1, 0.01):
        best, _ = optimal_policy(base, proxy, beta)
        gold.append(exact.expectation(task.reward, best, task).item())
        seen.append(exact.expectation(proxy, best, task).item())
    assert seen == sorted(seen)
    assert max(gold) > gold[0] + 0.3
    assert gold[-1] < max(gold) - 0.5


def test_a_tiny_ridge_settles_and_a_huge_one_leaves_nothing(logp):
    pairs = sample_pairs(SMALL, logp, 5, seed(1))  # so few pairs separate
    assert fit_proxy(SMALL, pairs, ridge=1e-9).abs().max() > 10
    assert fit_proxy(SMALL, pairs, ridge=1e9).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda logp: sample_pairs(SMALL, logp, 0, seed()), "count is 0"),
        (lambda logp: sample_pairs(SMALL, logp, 5, seed(), flip=0.5), "flip is 0.5"),
        (lambda logp: sample_pairs(SMALL, logp[:1], 5, seed()), "seq_logp has shape"),
        (lambda logp: sample_pairs(SMALL, logp - 1, 5, seed()), "seq_logp"),
        (lambda logp: fit_proxy(SMALL, sample_pairs(SMALL, logp, 5, seed()), ridge=0.0), "ridge is 0"),
        (lambda logp: fit_proxy(SMALL, Pairs(*[torch.zeros(0, dtype=torch.long)] * 3)), "pairs is empty"),
        (lambda logp: fit_proxy(SMALL, Pairs(*[torch.tensor([2])] * 3)), "pairs.prompt holds"),
        (lambda logp: fit_proxy(SMALL, Pairs(*[torch.tensor([-1])] * 3)), "pairs.prompt holds"),
        (
            lambda logp: fit_proxy(SMALL, Pairs(*(torch.tensor(i) for i in ([0], [SMALL.size], [0])))),
            "chosen holds",
        ),
        (
            lambda logp: fit_proxy(SMALL, Pairs(*(torch.tensor(i) for i in ([0], [0], [SMALL.size])))),
            "rejected holds",
        ),
        (
            lambda logp: fit_proxy(SMALL, Pairs(*(torch.tensor(i) for i in ([0, 1], [1], [2, 3])))),
            "chosen has",
        ),
        (lambda logp: fit_proxy(SMALL, Pairs(*(torch.tensor(i) for i in ([0.0], [1], [2])))), "prompt has"),
    ],
)
def test_bad_input_is_named(logp, call, message):
    with pytest.raises(ValueError, match=message):
        call(logp)
