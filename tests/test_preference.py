"""Preference losses against their formulas, their gradients and the optimum they are meant to reach."""

import itertools
import math

import jaxtyping
import pytest
import torch

from kltutor import kl, optimal_policy
from kltutor.preference import (
    bradley_terry,
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    preference_metrics,
    simpo_loss,
)

REF = torch.tensor([0.05, 0.15, 0.70, 0.10], dtype=torch.float64).log()
REWARD = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
PAIRS = torch.tensor(list(itertools.permutations(range(4), 2)))


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


CHOSEN, REJECTED = tensor(-5.0, -30.0, -2.0), tensor(-7.0, -4.0, -2.5)
REF_CHOSEN, REF_REJECTED = tensor(-6.0, -28.0, -2.0), tensor(-6.0, -6.0, -1.0)
FOUR = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
MARGINS = (2.0, -4.0, 1.5)  # log-ratio of chosen minus that of rejected, in nats


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def descend(loss, logits):
    """Newton's method on a small convex loss of free logits, the first held at 0."""
    fixed, free = logits[:1], logits[1:].clone()

    def value(x):
        return loss(torch.cat([fixed, x]).log_softmax(-1))

    for _ in range(100):
        live = free.requires_grad_()
        (slope,) = torch.autograd.grad(value(live), live)
        if slope.abs().max() < 1e-13:
            break
        curvature = torch.autograd.functional.hessian(value, free.detach())
        free = free.detach() - torch.linalg.solve(curvature, slope)
    return torch.cat([fixed, free.detach()]).log_softmax(-1)


def population(loss, logp, wins):
    """The mean of a pairwise loss over all ordered pairs, each weighted by how often it is so labelled."""
    won, lost = PAIRS.T
    return (wins[won, lost] * loss(logp[won], logp[lost], REF[won], REF[lost])).sum()


def test_bradley_terry_is_the_logistic_of_the_difference():
    assert bradley_terry(tensor(2.0), tensor(0.5)).item() == pytest.approx(sigmoid(1.5), rel=1e-15)
    assert (bradley_terry(REWARD, REWARD.flip(0)) + bradley_terry(REWARD.flip(0), REWARD) == 1).all()


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_is_its_formula(beta, smoothing):
    found = dpo_loss(*FOUR, beta, label_smoothing=smoothing)
    for value, margin in zip(found.tolist(), MARGINS, strict=True):
        h = beta * margin
        expected = -(1 - smoothing) * math.log(sigmoid(h)) - smoothing * math.log(sigmoid(-h))
        assert value == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_of_dpo_weighs_a_pair_by_how_wrong_it_is(smoothing):
    chosen, rejected = (x.clone().requires_grad_() for x in (CHOSEN, REJECTED))
    up, down = torch.autograd.grad(
        dpo_loss(chosen, rejected, REF_CHOSEN, REF_REJECTED, 0.5, label_smoothing=smoothing).sum(),
        (chosen, rejected),
    )
    weights = [sigmoid(0.5 * margin) - (1 - smoothing) for margin in MARGINS]
    torch.testing.assert_close(up, 0.5 * tensor(*weights))  # minus σ(-h) without smoothing: it pushes up
    torch.testing.assert_close(down, -up)
    assert smoothing or (up < 0).all()


def test_dpo_at_the_reference_is_log_two_whatever_the_lengths():
    assert (dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED, 0.3) - math.log(2)).abs().max() < 1e-15


@pytest.mark.parametrize("beta", [0.2, 0.7, 2.0])
def test_population_dpo_has_the_optimum_of_the_regularised_objective(beta):
    wins = bradley_terry(REWARD[:, None].expand(4, 4), REWARD.expand(4, 4))
    found = descend(lambda logp: population(lambda *x: dpo_loss(*x, beta), logp, wins), REF)
    best, _ = optimal_policy(REF, REWARD, beta)
    assert kl(found, best) < 1e-8
    assert kl(best, REF) > 0.01  # so this is not the reference


def test_swapping_chosen_and_rejected_learns_the_reward_upside_down():
    wins = bradley_terry(REWARD[:, None].expand(4, 4), REWARD.expand(4, 4))
    found = descend(lambda logp: population(lambda c, r, a, b: dpo_loss(r, c, b, a, 0.7), logp, wins), REF)
    worst, _ = optimal_policy(REF, -REWARD, 0.7)
    assert kl(found, worst) < 1e-8


@pytest.mark.parametrize("beta", [0.2, 0.7])
def test_ipo_is_a_regression_to_half_over_beta_and_of_a_known_probability_to_its_margin(beta):
    found = ipo_loss(*FOUR, beta)
    for value, margin in zip(found.tolist(), MARGINS, strict=True):
        assert value == pytest.approx((margin - 1 / (2 * beta)) ** 2, rel=1e-14)
    two = tensor(0.3, 0.7).log()
    for p in (0.5, 0.8, 1.0):  # even where one always wins the margin is finite

        def loss(logp, p=p):
            both = (logp, logp.flip(0), two, two.flip(0))
            return (tensor(p, 1 - p) * ipo_loss(*both, beta)).sum()

        logp = descend(loss, two)
        margin = (logp - two)[0] - (logp - two)[1]
        assert margin.item() == pytest.approx((p - 0.5) / beta, abs=1e-9)


def test_dpo_without_noise_has_no_finite_margin():
    margins = torch.linspace(0, 500, 40, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(margins)
    losses = dpo_loss(-zero, -margins, zero, zero, 0.1)
    (slope,) = torch.autograd.grad(losses.sum(), margins)
    assert (slope < 0).all()


def test_kto_is_its_formula_for_both_kinds():
    logp, ref_logp, wanted = tensor(-3.0, -8.0), tensor(-4.0, -7.5), torch.tensor([True, False])
    found = kto_loss(
        logp, ref_logp, wanted, tensor(0.25)[0], 0.4, desirable_weight=1.5, undesirable_weight=0.5
    )
    assert found[0].item() == pytest.approx(1.5 * (1 - sigmoid(0.4 * (1.0 - 0.25))), rel=1e-14)
    assert found[1].item() == pytest.approx(0.5 * (1 - sigmoid(0.4 * (0.25 + 0.5))), rel=1e-14)


def test_kto_raises_wanted_completions_and_lowers_the_others():
    logp = tensor(-3.0, -3.0).requires_grad_()
    loss = kto_loss(logp, tensor(-4.0, -4.0), torch.tensor([True, False]), tensor(0.0)[0], 0.4).sum()
    (slope,) = torch.autograd.grad(loss, logp)
    assert slope[0] < 0 < slope[1]


def test_the_reference_point_is_a_mean_log_ratio_never_below_zero_and_has_no_gradient():
    assert kto_reference_point(tensor(-3.0, -4.0), tensor(-4.0, -4.5)).item() == pytest.approx(0.75)
    assert kto_reference_point(tensor(-5.0, -4.0), tensor(-4.0, -4.5)).item() == 0
    assert not kto_reference_point(tensor(-3.0).requires_grad_(), tensor(-4.0)).requires_grad


def test_simpo_and_orpo_are_their_formulas():
    chosen, rejected = tensor(-0.5, -2.0), tensor(-1.0, -1.5)
    for value, c, r in zip(
        simpo_loss(chosen, rejected, 2.5, 0.8).tolist(), (-0.5, -2.0), (-1.0, -1.5), strict=True
    ):
        assert value == pytest.approx(-math.log(sigmoid(2.5 * (c - r) - 0.8)), rel=1e-14)
    for value, c, r in zip(
        orpo_loss(chosen, rejected, 0.3).tolist(), (-0.5, -2.0), (-1.0, -1.5), strict=True
    ):
        odds = (math.exp(c) / (1 - math.exp(c))) / (math.exp(r) / (1 - math.exp(r)))
        assert value == pytest.approx(-c - 0.3 * math.log(odds / (1 + odds)), rel=1e-13)
    assert orpo_loss(tensor(-1e-12), tensor(-40.0), 0.0).item() == pytest.approx(1e-12)
    near = orpo_loss(tensor(-1e-20), tensor(-1e-18), 1.0)  # odds of 1e20 and 1e18
    assert near.item() == pytest.approx(math.log1p(0.01), rel=1e-12)


def test_smoothed_dpo_rests_where_the_labels_are_believed_as_often_as_they_are_right():
    for smoothing, beta in ((0.1, 0.5), (0.3, 2.0)):
        rest = math.log((1 - smoothing) / smoothing) / beta  # σ(h) = 1 - ε
        margin = tensor(0.9 * rest, rest, 1.1 * rest)
        zero = torch.zeros(3, dtype=torch.float64)
        losses = dpo_loss(zero, zero - 50, zero, margin - 50, beta, label_smoothing=smoothing)
        assert losses[1] < losses[0]
        assert losses[1] < losses[2]


def test_simpo_in_the_parameters_of_its_code():
    chosen, rejected, beta, ratio = tensor(-0.5, -2.0), tensor(-1.0, -1.5), 2.5, 0.4
    found = simpo_loss(chosen, rejected, beta, ratio * beta)
    expected = -torch.nn.functional.logsigmoid(beta * (chosen - rejected - ratio))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_losses_and_gradients_stay_finite_at_the_ends():
    far, near = tensor(-1e5, -1e-9, -1.0), tensor(-1e-9, -1e5, -1.0)
    losses = {
        "dpo": lambda x, y: dpo_loss(x, y, near.clone(), far.clone(), 1e3, label_smoothing=0.1),
        "ipo": lambda x, y: ipo_loss(x, y, near.clone(), far.clone(), 1e-6),
        "kto": lambda x, y: (
            kto_loss(x, near, near > far, tensor(0.0)[0], 1e3)
            + kto_loss(y, far, near > far, tensor(1e6)[0], 1e3)
        ),
        "simpo": lambda x, y: simpo_loss(x, y, 1e3, 1.0),
        "orpo": lambda x, y: orpo_loss(x, y, 1.0),
    }
    for name, loss in losses.items():
        x, y = far.clone().requires_grad_(), near.clone().requires_grad_()
        value = loss(x, y)
        assert value.isfinite().all(), name
        assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (x, y))), name


def test_metrics_show_both_rewards_falling_while_the_margin_grows():
    found = preference_metrics(
        tensor(-9.0, -3.0), tensor(-15.0, -3.0), tensor(-8.0, -3.0), tensor(-8.0, -3.0), 0.5
    )
    assert found == {
        "chosen_reward": pytest.approx(-0.25),
        "rejected_reward": pytest.approx(-1.75),
        "margin": pytest.approx(1.5),
        "accuracy": 0.75,  # the second pair is a tie
    }


def test_metrics_count_each_pair_by_its_weight():
    sides = (
        tensor(-9.0, -3.0, -1.0),
        tensor(-15.0, -3.0, -2.0),
        tensor(-8.0, -3.0, -5.0),
        tensor(-8.0, -3.0, -1.5),
    )
    weights = tensor(1.0, 2.0, 5.0)
    found = preference_metrics(*sides, 0.5, weights=weights / 40)
    repeated = (torch.repeat_interleave(side, weights.long()) for side in sides)
    expected = preference_metrics(*repeated, 0.5)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found["accuracy"] == pytest.approx((1 + 2 / 2 + 5) / 8)
    assert found["chosen_reward"] == pytest.approx(0.5 * (-1 * 1 + 0 * 2 + 4 * 5) / 8)
    assert found == pytest.approx(preference_metrics(*sides, 0.5, weights=weights))
    first = preference_metrics(*(side[:1] for side in sides), 0.5)
    assert preference_metrics(*sides, 0.5, weights=tensor(3.0, 0.0, 0.0)) == pytest.approx(first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo_loss(*FOUR, 0.0), "beta is 0"),
        (lambda: dpo_loss(*FOUR, -0.1), "beta is -0.1"),
        (lambda: dpo_loss(*FOUR, math.nan), "beta is nan"),
        (lambda: dpo_loss(*FOUR, 0.1, label_smoothing=0.5), "label_smoothing is 0.5"),
        (lambda: dpo_loss(-CHOSEN, *FOUR[1:], 0.1), r"chosen_seq_logp\[0\] is 5"),
        (lambda: dpo_loss(CHOSEN, REJECTED - torch.inf, *FOUR[2:], 0.1), r"rejected_seq_logp\[0\] is -inf"),
        (
            lambda: dpo_loss(*FOUR[:3], REF_REJECTED.clone().requires_grad_(), 0.1),
            "ref_rejected_seq_logp requires",
        ),
        (lambda: dpo_loss(CHOSEN.float(), *FOUR[1:], 0.1), "dtypes differ"),
        (lambda: ipo_loss(*FOUR, 0.0), "beta is 0"),
        (lambda: kto_loss(CHOSEN, REJECTED, CHOSEN < -3, tensor(-0.1)[0], 0.1), "reference_point is -0.1"),
        (
            lambda: kto_loss(CHOSEN, REJECTED, CHOSEN < -3, tensor(0.1)[0], 0.1, desirable_weight=-1),
            "desirable_weight",
        ),
        (
            lambda: kto_loss(CHOSEN, REJECTED, CHOSEN < -3, torch.tensor(0.1), 0.1),
            "'reference_point': torch.f",
        ),
        (lambda: kto_loss(CHOSEN, REJECTED, CHOSEN < -3, tensor(math.nan)[0], 0.1), "reference_point is nan"),
        (
            lambda: kto_loss(CHOSEN, REJECTED, CHOSEN < -3, tensor(0.1)[0], 0.1, undesirable_weight=math.nan),
            "undesirable_weight",
        ),
        (
            lambda: kto_loss(CHOSEN, REJECTED.clone().requires_grad_(), CHOSEN < -3, tensor(0.1)[0], 0.1),
            "ref_seq_logp requires",
        ),
        (
            lambda: kto_loss(CHOSEN, REJECTED, CHOSEN < -3, tensor(0.1).requires_grad_()[0], 0.1),
            "reference_point requires",
        ),
        (lambda: kto_reference_point(CHOSEN, CHOSEN - math.inf), r"ref_mismatched_seq_logp\[0\] is -inf"),
        (lambda: kto_reference_point(CHOSEN[:0], CHOSEN[:0]), "no rows"),
        (lambda: simpo_loss(CHOSEN, REJECTED, 2.0, -1.0), "gamma is -1"),
        (lambda: simpo_loss(CHOSEN, REJECTED, 0.0, 1.0), "beta is 0"),
        (lambda: orpo_loss(tensor(0.0), tensor(-1.0), 0.1), r"chosen_mean_logp\[0\] is 0"),
        (lambda: orpo_loss(tensor(-1.0), tensor(5e-5), 0.1), r"rejected_mean_logp\[0\] is 5e-05"),
        (lambda: orpo_loss(CHOSEN, REJECTED, -0.1), "beta is -0.1"),
        (lambda: orpo_loss(CHOSEN, REJECTED, math.nan), "beta is nan"),
        (lambda: dpo_loss(*FOUR, 0.1, label_smoothing=math.nan), "label_smoothing is nan"),
        (lambda: dpo_loss(*FOUR, 0.1, label_smoothing=-0.1), "label_smoothing is -0.1"),
        (lambda: simpo_loss(CHOSEN, REJECTED.float(), 2.0, 1.0), "dtypes differ"),
        (lambda: bradley_terry(REWARD, REWARD * math.nan), r"other\[0\] is nan"),
        (lambda: preference_metrics(*(x[:0] for x in FOUR), 0.1), "no rows"),
        (lambda: preference_metrics(*FOUR, 0.1, weights=-torch.ones_like(FOUR[0])), "weights is -1"),
        (lambda: preference_metrics(*FOUR, 0.1, weights=FOUR[0] * torch.nan), "weights is nan"),
        (lambda: preference_metrics(*FOUR, 0.1, weights=FOUR[0] * -torch.inf), "weights is inf"),
        (lambda: preference_metrics(*FOUR, 0.1, weights=torch.zeros_like(FOUR[0])), "weights is 0"),
        (lambda: bradley_terry(REWARD * math.inf, REWARD), r"reward\[0\] is inf"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: dpo_loss(CHOSEN, REJECTED[:2], REF_CHOSEN, REF_REJECTED, 0.1),
        lambda: dpo_loss(CHOSEN[:, None], REJECTED[:, None], REF_CHOSEN[:, None], REF_REJECTED[:, None], 0.1),
        lambda: kto_loss(CHOSEN, REJECTED, torch.ones(3), tensor(0.1)[0], 0.1),
        lambda: simpo_loss(CHOSEN, REJECTED[:1], 1.0, 1.0),
    ],
)
def test_shapes_are_not_broadcast(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()
