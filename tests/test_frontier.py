"""Reward against KL along beta, best-of-n and implicit rewards, against sums at higher precision."""

import itertools
import math

import mpmath
import pytest
import torch

from kltutor import kl, optimal_policy
from kltutor.optimum import frontier, implicit_reward, regularised_value
from kltutor.selection import best_of_n, best_of_n_kl, best_of_n_kl_bound

REF = torch.tensor([0.05, 0.15, 0.70, 0.10], dtype=torch.float64).log()
REWARD = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
TIED = torch.tensor([1.0, -0.5, 2.0, 2.0], dtype=torch.float64)
BETAS = torch.logspace(-6, 6, 25, dtype=torch.float64)


def precise(ref_logp, reward, beta):
    """KL, E[r], J and Var of the optimum with 60 digits."""
    with mpmath.workdps(60):
        beta = mpmath.mpf(beta)
        rows = [
            (mpmath.exp(q), mpmath.mpf(r)) for q, r in zip(ref_logp, reward, strict=True) if q > -math.inf
        ]
        mass = sum(q for q, _ in rows)
        tilted = [q * mpmath.exp(r / beta) for q, r in rows]
        z = sum(tilted)
        probs = [t / z for t in tilted]
        divergence = sum(p * mpmath.log(p * mass / q) for p, (q, _) in zip(probs, rows, strict=True) if p > 0)
        mean = sum(p * r for p, (_, r) in zip(probs, rows, strict=True))
        spread = sum(p * (r - mean) ** 2 for p, (_, r) in zip(probs, rows, strict=True))
        return float(divergence), float(mean), float(beta * mpmath.log(z / mass)), float(spread)


@pytest.mark.parametrize("reward", [REWARD, TIED, TIED - 64], ids=["distinct", "tied", "negative"])
@pytest.mark.parametrize("banned", [False, True])
def test_the_frontier_keeps_its_digits_from_1e_6_to_1e6(reward, banned):
    ref_logp = REF.clone()
    if banned:
        ref_logp[3] = -torch.inf
        ref_logp = ref_logp.log_softmax(-1)
    found = frontier(ref_logp, reward, BETAS)
    for i, beta in enumerate(BETAS.tolist()):
        divergence, mean, value, spread = precise(ref_logp.tolist(), reward.tolist(), beta)
        assert found.kl[i].item() == pytest.approx(divergence, rel=1e-9, abs=0)
        assert found.reward[i].item() == pytest.approx(mean, abs=1e-12)
        assert found.value[i].item() == pytest.approx(value, abs=1e-12)
        assert found.variance[i].item() == pytest.approx(spread, abs=1e-12)


def test_slopes_of_the_frontier_are_kl_variance_and_beta():
    step = 1e-5
    for beta in (0.1, 0.7, 4.0):
        low, here, high = (
            frontier(REF, REWARD, torch.tensor([b], dtype=torch.float64))
            for b in (beta - step, beta, beta + step)
        )
        slope = (high.value - low.value) / (2 * step)
        assert slope.item() == pytest.approx(-here.kl.item(), rel=1e-6)
        assert ((high.kl - low.kl) / (2 * step)).item() == pytest.approx(
            -here.variance.item() / beta**3, rel=1e-6
        )
        assert ((high.reward - low.reward) / (high.kl - low.kl)).item() == pytest.approx(beta, rel=1e-6)


def test_the_ends_of_the_frontier():
    ends = frontier(REF, TIED, torch.tensor([1e-6, 1e6], dtype=torch.float64))
    assert ends.kl[0].item() == pytest.approx(-math.log(0.80), rel=1e-12)  # ties summed
    spread = (REF.exp() * (TIED - REF.exp() @ TIED) ** 2).sum()
    assert ends.kl[1].item() == pytest.approx(spread.item() / (2 * 1e12), rel=1e-5, abs=0)


def test_a_batch_of_frontiers_is_a_frontier_each():
    both = frontier(torch.stack([REF, REF.flip(0)]), torch.stack([REWARD, TIED]), BETAS)
    for i, (ref_logp, reward) in enumerate(((REF, REWARD), (REF.flip(0), TIED))):
        alone = frontier(ref_logp, reward, BETAS)
        torch.testing.assert_close(both.kl[i], alone.kl, rtol=1e-12, atol=0)
        torch.testing.assert_close(both.value[i], alone.value)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_a_policy_falls_short_of_the_optimum_by_beta_times_its_kl_to_it(beta):
    generator = torch.Generator().manual_seed(3)
    best, log_z = optimal_policy(REF, REWARD, beta)
    for _ in range(20):
        logp = torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(-1)
        gap = beta * log_z - regularised_value(logp, REF, REWARD, beta)
        assert gap.item() == pytest.approx(beta * kl(logp, best).item(), abs=1e-12)
    assert regularised_value(best, REF, REWARD, beta).item() == pytest.approx(beta * log_z.item(), abs=1e-12)


def test_a_policy_outside_the_reference_has_no_finite_value():
    ref_logp = torch.tensor([1.0, 0.0], dtype=torch.float64).log()
    half = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    assert regularised_value(half, ref_logp, torch.tensor([0.0, 9.0], dtype=torch.float64), 0.1) == -torch.inf


def test_the_implicit_reward_of_the_optimum_is_the_reward_up_to_a_constant():
    best, log_z = optimal_policy(REF, REWARD, 0.3)
    torch.testing.assert_close(implicit_reward(best, REF, 0.3), REWARD - 0.3 * log_z)
    mean = (best.exp() * implicit_reward(best, REF, 0.3)).sum()
    torch.testing.assert_close(mean, 0.3 * kl(best, REF))  # over its own samples, a KL


@pytest.mark.parametrize("reward", [REWARD, TIED], ids=["distinct", "tied"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_law_of_the_best_of_all_possible_draws(reward, n):
    probs, law = REF.exp(), torch.zeros(4, dtype=torch.float64)
    for draw in itertools.product(range(4), repeat=n):
        best = max(reward[list(draw)].tolist())
        winners = [i for i in draw if reward[i] == best]
        for i in winners:  # which of the tied draws is kept is left to chance
            law[i] += probs[list(draw)].prod() / len(winners)
    torch.testing.assert_close(best_of_n(REF, reward, n).exp(), law, rtol=0, atol=1e-14)


def test_best_of_very_many_is_the_best_outcome_and_keeps_the_rest_s_digits():
    logp = best_of_n(REF, REWARD, 1000)
    assert logp[3].exp().item() == pytest.approx(1, abs=1e-12)
    with mpmath.workdps(60):
        expected = float(mpmath.log(mpmath.mpf("0.9") ** 1000 - mpmath.mpf("0.85") ** 1000))
    assert logp[0].item() == pytest.approx(expected, rel=1e-12)


def test_best_of_n_never_draws_what_the_reference_cannot():
    ref_logp = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64).log()
    logp = best_of_n(ref_logp, torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64), 3)
    torch.testing.assert_close(logp.exp(), torch.tensor([0.064, 0.936, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_the_kl_of_best_of_n_stays_below_the_bound_and_reaches_it_in_the_limit(n):
    bound = math.log(n) - (n - 1) / n
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=1e-15)
    generator = torch.Generator().manual_seed(n)
    for _ in range(50):
        ref_logp = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1)
        reward = torch.randint(0, 5, (9,), generator=generator).double()
        found = best_of_n_kl(ref_logp, reward, n)
        assert found <= bound + 1e-12
        law = best_of_n(ref_logp, reward, n)
        assert found.item() == pytest.approx(kl(law, ref_logp).item(), abs=1e-12)
    many = torch.full((4000,), -math.log(4000), dtype=torch.float64)
    gap = bound - best_of_n_kl(many, torch.arange(4000, dtype=torch.float64), n).item()
    assert -1e-12 <= gap <= n / 4000
    if n > 1:
        assert gap > 0


def test_at_equal_kl_the_tilt_pays_a_little_more_than_best_of_n():
    ref_logp = torch.full((2000,), -math.log(2000), dtype=torch.float64)
    reward = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    law = best_of_n(ref_logp, reward, 4)
    target, low, high = kl(law, ref_logp).item(), 1e-3, 1e3
    for _ in range(200):
        middle = math.sqrt(low * high)
        divergence = frontier(ref_logp, reward, torch.tensor([middle], dtype=torch.float64)).kl.item()
        low, high = (middle, high) if divergence > target else (low, middle)
    tilted = frontier(ref_logp, reward, torch.tensor([low], dtype=torch.float64)).reward.item()
    chosen = (law.exp() @ reward).item()
    assert chosen == pytest.approx(0.8, abs=1e-3)
    assert tilted == pytest.approx(0.8040, abs=1e-3)
    assert tilted > chosen


def test_best_of_n_counts_masses_too_small_for_a_float():
    third = math.log(1 / 3)
    ref_logp = torch.tensor([-800.0, third, -900.0, third, third, -850.0, -850.0], dtype=torch.float64)
    reward = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    for n in (1, 3, 50):
        logp = best_of_n(ref_logp, reward, n)
        assert logp[0].item() == pytest.approx(-800 + math.log(n), rel=1e-14)  # n chances of the jackpot
        assert logp[2].item() == pytest.approx(-900 + math.log(n) + (n - 1) * third, rel=1e-14)
        both = -850 + math.log(2)  # a tie of the two worst: every draw must be one of them
        assert logp[5:].tolist() == pytest.approx([n * both - math.log(2)] * 2, rel=1e-14)
        assert logp.logsumexp(-1).item() == pytest.approx(0, abs=1e-14)
    assert best_of_n(ref_logp, reward, 10**6)[0].item() == pytest.approx(-800 + math.log(1e6), rel=1e-14)


def test_best_of_n_keeps_its_digits_at_small_masses_and_many_draws():
    tails = [1e-17, 1e-10]  # one in the middle, one at the top
    probs = torch.tensor([0.5, tails[0], 0.5 - 1e-10, tails[1]], dtype=torch.float64)
    pay = torch.arange(4, dtype=torch.float64)
    for n in (3, 10**11):
        with mpmath.workdps(60):
            exact = [mpmath.mpf(p) for p in probs.tolist()]
            exact = [p / sum(exact) for p in exact]
            up_to = [sum(exact[: i + 1]) for i in range(4)]
            law = [high**n - low**n for high, low in zip(up_to, [0, *up_to[:3]], strict=True)]
            expected = [float(mpmath.log(p)) for p in law]
        assert best_of_n(probs.log(), pay, n).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_the_gradient_of_best_of_n_survives_a_worst_outcome_that_is_hardly_there():
    logits = torch.tensor([-60.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    pay = torch.arange(3, dtype=torch.float64)
    (slope,) = torch.autograd.grad(best_of_n(logits.log_softmax(-1), pay, 3)[1], logits)
    # log p = 3 log x with x = e⁰/(e⁰ + e^½), up to e⁻⁶⁰
    share = 1 / (1 + math.exp(0.5))
    assert slope.tolist() == pytest.approx([0, 3 * (1 - share), -3 * (1 - share)], abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
def test_best_of_n_has_the_right_gradient_in_the_reference(n):
    logits = torch.tensor([0.3, -0.5, 1.0, 0.1, -1.2], dtype=torch.float64, requires_grad=True)
    for reward in ([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0, 2.0, 2.0], [0.0] * 5):
        pay = torch.tensor(reward, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda x, pay=pay: best_of_n(x.log_softmax(-1), pay, n), logits)
        assert torch.autograd.gradcheck(lambda x, pay=pay: best_of_n_kl(x.log_softmax(-1), pay, n), logits)


def test_gradients_pass_by_outcomes_that_cannot_be_drawn():
    reward = torch.tensor([0.0, 5.0, 1.0], dtype=torch.float64)
    for banned in range(3):
        logits = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64)
        logits[banned] = -torch.inf
        rest = [i for i in range(3) if i != banned]
        both = []
        for x, pay in ((logits.clone(), reward), (logits[rest].clone(), reward[rest])):
            live = x.requires_grad_()
            ref_logp = live.log_softmax(-1)
            ends = frontier(ref_logp, pay, BETAS)
            drawn = best_of_n(ref_logp, pay, 4)
            total = (
                (drawn.exp() * pay).sum() + best_of_n_kl(ref_logp, pay, 4) + ends.kl.sum() + ends.value.sum()
            )
            both.append(torch.autograd.grad(total + ends.reward.sum() + ends.variance.sum(), live)[0])
        assert both[0][banned] == 0
        torch.testing.assert_close(both[0][rest], both[1])
        assert both[1].abs().max() > 0.01


def test_autograd_through_the_frontier_gives_its_slopes():
    betas = BETAS.clone().requires_grad_()
    found = frontier(REF, REWARD, betas)
    (slope,) = torch.autograd.grad(found.value.sum(), betas, retain_graph=True)
    torch.testing.assert_close(slope, -found.kl.detach(), rtol=1e-5, atol=1e-13)
    (slope,) = torch.autograd.grad(found.kl.sum(), betas)
    torch.testing.assert_close(slope, -found.variance.detach() / BETAS**3, rtol=1e-5, atol=1e-13)


def test_the_variance_of_enormous_rewards_at_a_certain_outcome_is_zero():
    pay, beta = (torch.tensor(x, dtype=torch.float64) for x in ([1e200, -1e200], [1e190]))
    assert frontier(torch.tensor([0.5, 0.5], dtype=torch.float64).log(), pay, beta).variance.tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frontier(REF, REWARD, torch.tensor([1.0, 0.0], dtype=torch.float64)), r"betas\[1\] is 0"),
        (lambda: frontier(REF, REWARD, BETAS * math.nan), r"betas\[0\] is nan"),
        (lambda: frontier(REF, REWARD, BETAS * math.inf), r"betas\[0\] is inf"),
        (lambda: frontier(REF, REWARD * torch.inf, BETAS), "reward"),
        (lambda: frontier(REF + 1, REWARD, BETAS), "ref_logp"),
        (lambda: frontier(REF, REWARD, torch.tensor([1e-320], dtype=torch.float64)), "reward / betas"),
        (lambda: best_of_n(REF, REWARD, 0), "n is 0"),
        (lambda: best_of_n(REF, REWARD * torch.nan, 2), "reward"),
        (lambda: best_of_n_kl_bound(0), "n is 0"),
        (lambda: implicit_reward(REF, REF, 0.0), "beta is 0"),
        (lambda: implicit_reward(REWARD, REF, 1.0), "logp"),
        (lambda: regularised_value(REF, REF, REWARD, -1.0), "beta is -1"),
        (lambda: regularised_value(REF - 1, REF, REWARD, 1.0), r"^logp\[\] sums to"),
        (lambda: regularised_value(REF, REF * math.nan, REWARD, 1.0), r"^ref_logp\[0\] is nan"),
        (lambda: regularised_value(REF, REF, REWARD * math.nan, 1.0), r"^reward\[0\] is nan"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
