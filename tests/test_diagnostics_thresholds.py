"""Every threshold from both sides, on logs without noise: just below it nothing, just above it a finding."""

import math

import numpy as np
import pytest

from kltutor.diagnostics import Log, diagnose
from kltutor.diagnostics.noise import ends, scatter, turns

STEPS, BATCH = 100, 100
STEP = np.arange(STEPS, dtype=float)
WAY = 1 - np.exp(-STEP / 15)
RAMP = STEP / (STEPS - 1)
TENTH = slice(40, 50)


def log(**columns):
    """A log without noise: a run that settles, with what is given in the place of its columns."""
    usual = {
        "step": STEP,
        "beta": np.full(STEPS, 0.3),
        "kl": 1.2 * WAY,
        "kl_sd": np.full(STEPS, 1.0),
        "reward": 1.2 * WAY,
        "reward_sd": np.full(STEPS, 1.0),
        "length": np.full(STEPS, 4.0),
        "entropy": 4 - WAY,
        "batch": np.full(STEPS, float(BATCH)),
        "gold": WAY,
    }
    held = usual | columns
    return Log.of(
        {name: np.broadcast_to(value, STEPS) for name, value in held.items() if value is not None}, "a log"
    )


def modes(**columns):
    return [found.mode for found in diagnose(log(**columns)).findings]


def dip(depth):
    """A KL whose mean over ten steps is so many standard errors below 0, the error of each step being 0.1."""
    kl = np.full(STEPS, 0.5)
    kl[0] = 0
    kl[TENTH] = -depth * 0.1 / math.sqrt(10)
    return {"kl": kl, "reward": 0.5 * WAY}


def unlike(ratio, size=0.6):
    """A mean of k3 - k1 whose sum over the steps is ten times `ratio` of the root of its sum of squares."""
    swing = math.sqrt(1 / ratio**2 - 1) * np.where(STEP % 2, 1, -1)
    return {"kl": 1.2 * WAY, "k3": 1.2 * WAY + size * (1 + swing)}


def falling(share):
    """A gold score that loses a share of what it had gained while reward and KL rise."""
    gold = np.where(STEP < 50, STEP / 50, 1 - share * np.clip((STEP - 50) / 40, 0, 1))
    return {"gold": gold, "kl": RAMP + 1e-3 * STEP, "reward": RAMP}


def far(times=1.6, climb=0.2, price=0.2, entropy=2.0, lost=0.5):
    """A KL that ends at so many times the entropy of the start, climbing by a share in the second half."""
    end = times * 4
    half = STEP[STEPS // 2 :]
    kl = np.concatenate([np.linspace(0, end * (1 - climb), STEPS // 2), np.empty(STEPS // 2)])
    kl[STEPS // 2 :] = end * (1 - climb * np.clip((half.max() - 5 - half) / 40, 0, 1))
    gold = np.minimum(STEP / 40, 1) - lost * np.clip((STEP - 40) / 50, 0, 1)
    return {
        "kl": kl,
        "entropy": np.linspace(4, entropy, STEPS),
        "reward": 6 * np.minimum(RAMP / 0.8, 1),
        "beta": price * 6 / end,
        "gold": gold,
    }


def swing(factor=4.0, turns=8, decay=0.0, deep=1.0):
    """A beta that swings by a factor from low to high so many times, with the KL against it."""
    phase = np.pi * (turns + 0.5) * RAMP
    size = np.exp(-decay * (turns + 0.5) * RAMP)
    return {
        "beta": 0.3 * np.exp(-size * math.log(factor) / 2 * np.cos(phase)),
        "kl": np.where(STEP == 0, 0, 2 + deep * np.cos(phase)),
        "kl_sd": 0.1,
        "reward": WAY,
    }


def growing(times):
    return {"length": np.concatenate([np.linspace(4, 4 * times, 80), np.full(20, 4 * times)]), "gold": None}


def ahead(lead):
    """A length that doubles with the reward, the gold score ahead by a part of the way on average."""
    way = np.minimum(STEP / 80, 1)
    gold = way + lead * 6 * way * (1 - way) / (1 - 0.1 * 0.1 * 6 / 6)
    return {"length": 4 + 4 * way, "reward": way, "gold": gold}


def stuck(kl=0.01, gain=0.02):
    return {"kl": kl * WAY, "reward": gain * RAMP, "gold": None}


def starting(errors=8.0, per_token=0.2):
    kl = np.full(STEPS, 4.0 * per_token)
    return {"kl": kl, "kl_sd": 4.0 * per_token / errors * math.sqrt(BATCH), "reward": 0 * RAMP}


EDGES = {
    "BELOW_ZERO": ("negative-kl", dip(4.5), dip(5.5)),
    "MATTERS": ("negative-kl", dip(5.5) | {"kl_sd": 0.05, "kl": dip(5.5)["kl"] * 0.1}, dip(5.5)),
    "UNLIKE": ("negative-kl", unlike(0.45), unlike(0.55)),
    "UNSEEN": ("negative-kl", unlike(0.9, 0.3), unlike(0.9, 0.38)),
    "STARTS_AWAY": ("wrong-reference", starting(errors=3.5), starting(errors=4.5)),
    "PRECISION": ("wrong-reference", starting(per_token=0.0009), starting(per_token=0.0011)),
    "BEYOND": ("runaway", far(times=1.45), far(times=1.55)),
    "CLIMBS": ("runaway", far(climb=0.05), far(climb=0.09)),
    "SPENT": ("runaway", far(climb=0.0, entropy=0.6), far(climb=0.0, entropy=0.2)),
    "CHEAP": ("runaway", far(price=0.48), far(price=0.42)),
    "FREE": ("runaway", far(climb=0.0, price=0.06), far(climb=0.0, price=0.04)),
    "TURNED": ("runaway", far(lost=0.08), far(lost=0.12)),
    "FALL": ("over-optimisation", falling(0.20), falling(0.25)),
    "RISES": ("over-optimisation", falling(0.5) | {"kl": np.where(STEP < 50, RAMP, 1 - RAMP)}, falling(0.5)),
    "LONGER": ("length-drift", growing(1.27), growing(1.33)),
    "UNPAID": ("length-drift", ahead(0.03), ahead(0.06)),
    "STUCK": ("collapse", stuck(kl=0.022), stuck(kl=0.018)),
    "FLAT": ("collapse", stuck(gain=0.13), stuck(gain=0.12)),
    "FACTOR": ("controller-oscillation", swing(factor=2.3), swing(factor=2.7)),
    "TURNS": ("controller-oscillation", swing(turns=3), swing(turns=6)),
    "ERRORS": ("controller-oscillation", swing() | {"kl_sd": 9.0}, swing() | {"kl_sd": 7.0}),
    "SHARE": ("controller-oscillation", swing(deep=0.25), swing(deep=0.4)),
    "SUSTAINED": ("controller-oscillation", swing(1e12, 6, decay=0.7), swing(1e12, 6, decay=0.1)),
    "AGREE": ("unit-mix-up", {"penalty": -0.3 * 1.2 * WAY * 1.04}, {"penalty": -0.3 * 1.2 * WAY * 1.06}),
}


@pytest.mark.parametrize("name", EDGES)
def test_a_threshold_parts_what_is_near_it(name):
    mode, below, above = EDGES[name]
    assert mode not in modes(**below)
    assert mode in modes(**above)


JITTER = np.where(STEP % 2, 1.0, -1.0)
NOISY = {
    "a gold score": ("over-optimisation", falling(0.5), lambda c: {"gold": c["gold"] + 0.8 * JITTER}),
    "a climb": ("runaway", far(climb=0.1), lambda c: {"kl": c["kl"] + 3 * JITTER * (STEP > 0)}),
    "a length": ("length-drift", growing(1.4), lambda c: {"length": c["length"] + 0.8 * JITTER}),
    "a KL below 0": ("negative-kl", dip(6), lambda c: {"kl_sd": 2.0}),
    "a KL at the start": ("wrong-reference", starting(8), lambda c: {"kl_sd": 8.0}),
}


@pytest.mark.parametrize("what", NOISY)
def test_the_same_change_in_more_noise_is_no_finding(what):
    mode, clear, drown = NOISY[what]
    assert mode in modes(**clear)
    assert mode not in modes(**(clear | drown(clear)))


def test_a_gold_score_that_never_gained_can_fall_too():
    assert modes(gold=-RAMP, reward=RAMP, kl=RAMP) == ["over-optimisation"]


def test_length_that_the_gold_score_gains_nothing_by_is_drift():
    assert modes(length=4 + 2 * RAMP, reward=RAMP, gold=0 * RAMP) == ["length-drift"]
    little = ahead(0.06) | {"length": 4 + 1.4 * np.minimum(STEP / 80, 1)}
    assert modes(**little) == []  # 0.06 of 35 %: 2 % of the first length


def test_a_kl_far_below_0_is_no_policy_that_stayed():
    assert modes(kl=-2 * RAMP, reward=0 * RAMP) == ["negative-kl"]
    (found,) = diagnose(log(kl=-0.5 * RAMP, kl_sd=0.0)).findings[:1]
    assert (found.mode, found.measure) == ("negative-kl", math.inf)
    assert found.to_dict()["measure"] is None


def test_scatter_is_the_noise_on_a_line_and_not_its_slope():
    noise = np.random.default_rng(0).normal(0, 0.3, 20_000)  # the median's error is below 1 %
    assert scatter(noise) == pytest.approx(0.3, rel=0.03)
    assert scatter(noise + 5 * np.arange(20_000)) == pytest.approx(0.3, rel=0.03)
    assert scatter(7 * STEP) < 1e-12
    jump = np.where(STEP < 50, 0.0, 100.0)
    assert scatter(jump) == 0
    assert math.isnan(scatter(STEP[:4]))


def test_ends_are_means_of_a_fifth_with_their_standard_error():
    rng = np.random.default_rng(1)
    found = [ends(2 * RAMP + rng.normal(0, 0.5, STEPS)) for _ in range(400)]
    change = np.array([each.change for each in found])
    assert change.mean() == pytest.approx(1.6, abs=0.03)  # 0.158 / 20
    assert change.std() == pytest.approx(0.5 * math.sqrt(2 / 20), rel=0.15)
    assert np.median([each.error for each in found]) == pytest.approx(change.std(), rel=0.15)
    assert math.isnan(ends(STEP[:5]).rise)


def test_turns_are_the_ends_of_swings_that_are_large_enough():
    curve = np.array([0.0, 3, 1, 2.5, 0.5, 4, 0, 0.4, 0.2])
    assert turns(curve, np.full(9, 2.0)) == [0, 1, 4, 5]
    assert turns(curve, np.full(9, 3.2)) == [0, 5]
    assert turns(curve, np.full(9, 5.0)) == []


def test_the_run_that_all_edges_start_from_is_healthy():
    assert modes() == []


def test_the_least_kl_decides_where_it_meets_the_logged_one():
    """A gain of one standard deviation, rewards of at most four: Bennett's bound is 0.2529 nats."""
    reward = np.where(STEP < 3, 0.0, 1.0)
    u = 4.0
    bound = ((1 + u) * math.log1p(u) - u) / 16
    assert bound == pytest.approx(0.2529, abs=1e-3)
    steady = {"reward": reward, "batch": 1e12, "gold": reward}
    kl = np.where(STEP < 3, 0.0, bound)
    assert modes(kl=kl * 1.02, **steady) == []
    assert modes(kl=kl * 0.98, **steady) == ["moving-reference"]


def test_a_token_mean_is_told_from_a_factor_that_happens_to_be_near():
    length = 4 + 2 * np.sin(STEP)
    kl = 1.2 * WAY
    of_token = {"kl": kl, "kl_token": kl / length, "length": length}
    (found,) = diagnose(log(**of_token, penalty=-0.3 * kl / length)).findings
    assert found.cause == "mean over tokens for their sum"
    (found,) = diagnose(log(**of_token, penalty=-0.3 * kl / 4)).findings
    assert found.cause == "a factor of 0.25"
