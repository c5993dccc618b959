"""The minimum of a loss over all policies: where it is known, where it is free, and where there is none."""

import jaxtyping
import pytest
import torch
from worlds import world

from kltutor import (
    TabularPolicy,
    all_pairs,
    dpo_loss,
    exact,
    ipo_loss,
    kl,
    optimal_policy,
    orpo_loss,
    rational_tilt,
)

WORLD = world(3)
ASKED = torch.tensor(WORLD.prompt_probs, dtype=torch.float64)


def start(number, scale=1.0):
    generator = torch.Generator().manual_seed(number)
    return exact.seq_logp(TabularPolicy.random(WORLD, generator, scale), WORLD).detach()


REF, OTHER = start(0), start(1, 2.0)


def population(loss, beta=0.5, keep=None, **preference):
    """The mean of a pairwise loss over all pairs of draws from the reference."""
    pairs, weights = all_pairs(WORLD, REF, **preference)
    x, w, l = pairs  # noqa: E741
    if keep is not None:
        x, w, l, weights = (t[keep(w, l)] for t in (x, w, l, weights))  # noqa: E741
    return lambda logp: weights @ loss(logp[x, w], logp[x, l], REF[x, w], REF[x, l], beta)


def certain(reward, other):
    return torch.heaviside(reward - other, torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.25, 0.5, 3.0])
@pytest.mark.parametrize("begin", [REF, OTHER], ids=["reference", "far"])
def test_the_regularised_objective_has_its_minimum_at_the_closed_form(beta, begin):
    def shortfall(logp):
        return -ASKED @ (logp.exp() * (WORLD.reward - beta * (logp - REF))).sum(-1)

    star, _ = optimal_policy(REF, WORLD.reward, beta)
    found = exact.minimise(shortfall, begin)
    assert (ASKED @ kl(found, star)).item() < 1e-12
    assert (ASKED @ kl(begin, star)).item() > 0.01


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_with_the_other_direction_it_is_the_rational_tilt(beta):
    def shortfall(logp):
        return -ASKED @ ((logp.exp() * WORLD.reward).sum(-1) - beta * kl(REF, logp))

    tilt = rational_tilt(REF, WORLD.reward, beta)
    assert kl(exact.minimise(shortfall, REF), tilt).max().item() < 1e-12


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_population_dpo_meets_the_optimum(beta):
    star, _ = optimal_policy(REF, WORLD.reward, beta)
    for begin in (REF, OTHER):
        found = exact.minimise(population(dpo_loss, beta), begin)
        assert kl(found, star).max().item() < 1e-12
    swapped = population(lambda w, l, rw, rl, b: dpo_loss(l, w, rl, rw, b), beta)  # noqa: E741
    assert kl(exact.minimise(swapped, REF), star).max().item() > 0.1


def test_it_meets_it_from_wherever_it_starts():
    """Far starts saturate most pairs; each prompt has its own direction that no loss of pairs can see."""
    star, _ = optimal_policy(REF, WORLD.reward, 2.0)
    for number in range(30):
        found = exact.minimise(population(dpo_loss, 2.0), start(number, 2.0))
        assert kl(found, star).max().item() < 1e-12


def test_what_is_never_compared_keeps_its_odds():
    """Pairs inside two groups of completions: each finds its shape, and their odds stay as they were."""
    loss = population(dpo_loss, keep=lambda w, l: (w < 7) == (l < 7))  # noqa: E741
    star, _ = optimal_policy(REF, WORLD.reward, 0.5)
    odds = []
    for begin in (REF, OTHER):
        found = exact.minimise(loss, begin)
        for group in (slice(0, 7), slice(7, None)):
            torch.testing.assert_close(found[:, group].log_softmax(-1), star[:, group].log_softmax(-1))
        odds.append(found[:, 0] - found[:, -1])
    assert (odds[0] - odds[1]).abs().min() > 0.1


def test_what_no_pair_holds_stays_where_it_was():
    loss = population(dpo_loss, keep=lambda w, l: (w > 0) & (l > 0))  # noqa: E741
    lifted = REF.clone()
    lifted[:, 0] += 1.5
    low, high = (exact.minimise(loss, begin) for begin in (REF, lifted.log_softmax(-1)))
    torch.testing.assert_close((high - low)[:, 0] - (high - low)[:, 1], torch.full_like(low[:, 0], 1.5))
    torch.testing.assert_close(high[:, 1:].log_softmax(-1), low[:, 1:].log_softmax(-1))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_a_loss_that_falls_for_ever_is_refused(beta):
    with pytest.raises(ValueError, match="no minimum"):
        exact.minimise(population(dpo_loss, beta, preference=certain), REF)
    found = exact.minimise(population(ipo_loss, beta, preference=certain), REF)
    assert found.isfinite().all()


@pytest.mark.parametrize("beta", [0.01, 0.5, 5.0])
@pytest.mark.parametrize("pairs", [[(0, 1), (1, 2), (2, 3)], [(3, 0)], [(0, 1), (2, 3)]])
def test_so_is_one_of_four_completions_that_always_win_or_lose(pairs, beta):
    ref = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    wins, losses = ([pair[i] for pair in pairs] for i in (0, 1))

    def loss(logp):
        return dpo_loss(logp[0, wins], logp[0, losses], ref[0, wins], ref[0, losses], beta).mean()

    with pytest.raises(ValueError, match=r"no minimum|not settled"):
        exact.minimise(loss, ref)


def test_a_straight_loss_is_refused():
    with pytest.raises(ValueError, match="no minimum"):
        exact.minimise(lambda logp: logp[0, 0] - logp[0, 1], REF)


@pytest.mark.parametrize("beyond", ["refused", float("nan"), float("inf"), -float("inf")])
def test_a_step_to_where_the_loss_is_not_defined_is_too_long(beyond):
    """Of -5 log p(0) - log p(1) - w·log(0.7 - p(0)), which has no value from 0.7 on."""
    crossed, weight = [], 0.01

    def walled(logp):
        p = logp[0, 0].exp()
        if p >= 0.7:
            crossed.append(p)
            if beyond == "refused":
                raise ValueError("p(0) is 0.7 or more")
            return logp.sum() * 0 + beyond
        return -5 * logp[0, 0] - logp[0, 1] - weight * (0.7 - p).log()

    found = exact.minimise(walled, torch.tensor([[0.1, 0.9]], dtype=torch.float64).log())
    assert crossed
    p = found[0, 0].exp().item()
    assert 0.6 < p < 0.7
    assert abs(-5 / p + 1 / (1 - p) + weight / (0.7 - p)) < 1e-6


def test_orpo_of_completions_that_always_win_falls_for_ever_and_the_search_says_so():
    """At probability 1, where the odds are infinite, `orpo_loss` refuses its argument."""
    ref = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    with pytest.raises(ValueError, match=r"^the loss has (no minimum|not settled)"):
        exact.minimise(lambda p: orpo_loss(p[:, 0], p[:, 1], 10.0).mean(), ref)


def test_a_hill_is_left_downwards():
    """-log p(0) - log p(1), seen from its reverse: the start is a saddle, the two minima lie beside it."""

    def double_well(logp):
        gap = logp[0, 0] - logp[0, 1]
        return (gap.square() - 1).square() + (logp - REF)[:, 2:].square().sum() + logp[0, 1].square()

    found = exact.minimise(double_well, REF)
    slope = torch.func.grad(lambda z: double_well(z.log_softmax(-1)))(found)
    assert slope.abs().max().item() < 1e-10
    assert abs((found[0, 0] - found[0, 1]).abs().item() - 1) < 0.2
    assert double_well(found) < double_well(REF)


def test_the_start_is_not_changed():
    before = REF.clone()
    exact.minimise(population(dpo_loss), REF)
    assert torch.equal(REF, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact.minimise(lambda p: p.sum(-1), REF), r"loss returned shape \(2,\)"),
        (lambda: exact.minimise(lambda p: p.sum() * torch.nan, REF), "finite scalar"),
        (lambda: exact.minimise(lambda p: p.sum(), REF - 1), "seq_logp"),
        (lambda: exact.minimise(lambda p: p.sum(), REF.log_softmax(-1) * torch.inf), "seq_logp"),
        (lambda: exact.minimise(population(dpo_loss), REF, steps=1), "has not settled"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="seq_logp"):
        exact.minimise(lambda p: p.sum(), REF[0])
