"""That each fault of `failures.wiring` is the one it is named after, and changes nothing else."""

import dataclasses
import math
import re
from functools import partial

import pytest
import torch

from kltutor import exact
from kltutor.failures import play, produce, wiring
from kltutor.learner import Learner
from kltutor.policy_gradient import rloo_advantages
from kltutor.run import Run
from kltutor.tasks import TabularPolicy
from kltutor.train import make_world, train

RUN = Run(algorithm="rloo", beta=0.4, steps=30, batch=256, rate=0.1, exact_every=10)
TURNS = {  # after how many seeds the routes come round again, and how many they are
    "moving-reference": (3, 3),
    "controller-oscillation": (2, 2),
    "negative-kl": (8, 6),
    "unit-mix-up": (4, 4),
}
Z = 5.5  # standard errors; 30 comparisons err by chance in fewer than 2 of a million suites


@pytest.fixture(scope="module")
def world():
    return make_world(RUN)


def plain(record):
    return dataclasses.replace(record, seconds=0.0)


def trained(learner):
    """Return a training with another learner, and its records."""
    training = train(learner.run, world=learner.world)
    training.learner = learner
    return training, list(training)


def said(records, name):
    return torch.tensor([record.sampled[name] for record in records if record.sampled], dtype=torch.float64)


def test_a_learner_without_a_fault_makes_the_very_records_of_train(world):
    run = Run(algorithm="ppo", steps=15, batch=256)
    made = wiring._play_with(Learner(run, world), "none").records
    assert list(map(plain, made)) == list(map(plain, play(run, world).records))
    honest = trained(wiring._Elsewhere(run, world, lambda policy, _: policy))[
        1
    ]  # one policy draws and scores
    for name in ("kl", "value_error"):
        torch.testing.assert_close(said(honest, name), said(made, name), rtol=0, atol=1e-9)


@pytest.fixture
def cast(monkeypatch):
    """Return what a scene would train, without training it: the learner if it is no plain one, run, route."""

    class Cast(Exception):
        """Stops a scene before it trains."""

    def plainly(run, world, *, route):
        raise Cast(None, run, world, route)

    def otherwise(learner, route):
        raise Cast(learner, learner.run, learner.world, route)

    monkeypatch.setattr(wiring, "play", plainly)
    monkeypatch.setattr(wiring, "_play_with", otherwise)

    def found(mode, seed, *, cured=False):
        with pytest.raises(Cast) as caught:
            produce(mode, seed, cured=cured)
        return caught.value.args

    return found


@pytest.mark.parametrize("mode", TURNS)
def test_a_cured_run_differs_by_its_cure_alone(mode, cast):
    for seed in range(4):
        learner, run, world, route = cast(mode, seed)
        healed, same, there, cure = cast(mode, seed, cured=True)
        assert healed is None  # no learner but that of `train`
        assert world.fingerprint() == there.fingerprint()
        assert route != cure
        if mode == "controller-oscillation":
            assert learner is None
            horizon = same.controller["horizon"]
            assert horizon == pytest.approx(15 * run.controller["horizon"])
            assert dataclasses.replace(run, controller=run.controller | {"horizon": horizon}) == same
        else:
            assert learner is not None
            assert run == same


@pytest.mark.parametrize("mode", TURNS)
def test_seeds_take_every_route_in_turns_and_are_unlike(mode, cast):
    seen = [cast(mode, seed) for seed in range(24)]
    seen = [(run, route) for _, run, _, route in seen]
    runs = [run for run, _ in seen]
    kinds = [re.sub(r"[,\d].*", "<1" if " 0." in route else "", route) for _, route in seen]
    turns, ways = TURNS[mode]
    assert kinds == kinds[:turns] * (24 // turns)
    assert len(set(kinds[:turns])) == ways
    assert len({run.beta for run in runs}) == len({run.seed for run in runs}) == 24
    scale = [0.5 if run.algorithm == "grpo" and run.advantages == "z_score" else 1.0 for run in runs]
    assert all(0.2 <= run.beta / each <= 0.6 for run, each in zip(runs, scale, strict=True))
    assert {run.task for run in runs} == {"small", "given"}
    assert len({run.algorithm for run in runs}) >= 2


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])  # with the KL in the loss, and in the reward
def test_a_shared_reference_logs_zero_while_the_policy_leaves(world, algorithm):
    run = Run(algorithm=algorithm, beta=0.4, steps=50, batch=256, rate=0.1, exact_every=50)
    made = trained(wiring._Following(run, world, None))[1]
    for name in ("kl", "kl_sd", "k3"):
        assert said(made, name).abs().max() < 1e-12
    assert made[-1].exact.kl > 1.3 * play(run, world).records[-1].exact.kl > 0.3


@pytest.mark.parametrize(
    ("follow", "moved"),
    [
        (partial(wiring.average, share=0.1), lambda step, ref, policy: 0.9 * ref + 0.1 * policy),
        (partial(wiring.reset, every=7), lambda step, ref, policy: ref if step % 7 else policy),
    ],
)
def test_the_logged_kl_is_that_to_the_reference_that_follows(world, follow, moved):
    learner = wiring._Following(RUN, world, follow)
    training = train(RUN, world=world)
    training.learner = learner
    ref, policy = learner.policy.logits.detach().clone(), learner.policy
    for step in range(RUN.steps):
        now = policy.logits.detach().clone()
        ref = moved(step, ref, now) if step else ref
        there, here = TabularPolicy(world.task, ref), TabularPolicy(world.task, now)
        record = next(training)
        truth = exact.kl(here, there, world.task).item()
        error = record.sampled["kl_sd"] / math.sqrt(RUN.batch)
        assert abs(record.sampled["kl"] - truth) <= Z * error + 1e-12
        torch.testing.assert_close(learner.ref.logits, ref, rtol=0, atol=1e-12)
        if record.exact is not None:  # is measured from the first reference, whatever the log says
            assert record.exact.kl == pytest.approx(exact.kl(here, world.ref, world.task).item(), abs=1e-12)
    assert record.sampled["kl"] < 0.5 * exact.kl(policy, world.ref, world.task).item()


def test_a_tempered_policy_is_the_power_of_it_cut_to_the_largest(world):
    policy = world.ref
    shown = torch.cat([world.task.prompt_tokens, torch.ones(2, 1, dtype=torch.long)], -1)
    with torch.no_grad():
        probs = policy(shown).softmax(-1)
        cold = wiring.Tempered(policy, 0.6)(shown).softmax(-1)
        cut = wiring.Tempered(policy, 1.0, 2)(shown).softmax(-1)
    power = probs ** (1 / 0.6)
    torch.testing.assert_close(cold, power / power.sum(-1, keepdim=True))
    kept = probs * (probs >= probs.sort(-1, descending=True).values[..., 1:2])
    torch.testing.assert_close(cut[:, -1], (kept / kept.sum(-1, keepdim=True))[:, -1])
    assert ((cut[:, -1] > 0).sum(-1) == 2).all()


@pytest.mark.parametrize(
    "engine",
    [
        wiring.first_weights,
        partial(wiring.tempered, temperature=0.6),
        partial(wiring.tempered, temperature=1.5),
        partial(wiring.tempered, temperature=1.0, top_k=2),
    ],
)
def test_k1_of_another_sampler_is_a_difference_of_two_kls(world, engine):
    run = dataclasses.replace(RUN, batch=2048, steps=8, rate=0.2, exact_every=100)
    learner = wiring._Elsewhere(run, world, engine)
    training = train(run, world=world)
    training.learner = learner
    logged, truths = [], []
    for _ in range(run.steps):
        with torch.no_grad():
            drawn, here, ref = (
                exact.seq_logp(each, world.task) for each in (learner.engine, learner.policy, world.ref)
            )
            # KL(drawn ‖ ref) - KL(drawn ‖ policy), and not KL(policy ‖ ref)
            log_ratio = torch.where(drawn > -math.inf, here - ref, 0)
            truths.append(exact.expectation(log_ratio, drawn, world.task).item())
        record = next(training)
        logged.append(record.sampled["kl"])
        error = record.sampled["kl_sd"] / math.sqrt(run.batch)
        assert abs(logged[-1] - truths[-1]) <= Z * error + 1e-12
    right = exact.kl(learner.policy, world.ref, world.task).item()
    assert abs(truths[-1] - right) > 0.3 * right
    if engine is wiring.first_weights:
        assert min(logged) < -0.1


@pytest.fixture
def rollout():
    """Return completions of two tokens and of one, at log-ratios that sum to 2.5 and 1 nats."""
    logp = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=torch.float64)
    ref = torch.tensor([[-1.5, -4.0], [-1.5, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    blank = torch.zeros(2, dtype=torch.float64)
    return wiring.Rollout(
        blank.long(), mask.long(), mask, logp, blank, blank.long(), ref, ref[..., None], None
    )


def test_charges_are_what_they_are_called(rollout):
    assert wiring.per_nat(rollout, 2.0).tolist() == [-5.0, -2.0]
    assert wiring.per_nat(rollout, 2.0, times=1.0).tolist() == [5.0, 2.0]
    assert wiring.per_mean(rollout, 2.0).tolist() == [-2.5, -2.0]


def test_routes_do_what_their_names_say(cast, rollout):
    charged = {
        ("negative-kl", 0): ("sign swapped in charge and log", [2.5, 1.0]),
        ("negative-kl", 2): ("sign swapped in the log", [-2.5, -1.0]),
        ("unit-mix-up", 0): ("mean over tokens", [-1.25, -1.0]),
        ("unit-mix-up", 1): ("bits", [-2.5 / math.log(2), -1 / math.log(2)]),
        ("unit-mix-up", 2): ("charged twice", [-5.0, -2.0]),
        ("unit-mix-up", 3): ("never charged", [0.0, 0.0]),
    }
    for (mode, seed), (name, charges) in charged.items():
        learner, *_, route = cast(mode, seed)
        assert route == name
        assert learner.charge(rollout, 1.0).tolist() == pytest.approx(charges)
        assert learner.swapped == (mode == "negative-kl")
    for seed in (3, 5, 7):  # negative-kl: a low temperature, the top 2, a high temperature
        learner, *_, route = cast("negative-kl", seed)
        said = float(route.split()[-1])
        there = learner.engine.top_k if seed == 5 else learner.engine.temperature
        assert there == pytest.approx(said, abs=0.005)
    for seed in (1, 2):  # moving-reference: an average, a reset
        learner, *_, route = cast("moving-reference", seed)
        ((name, value),) = learner.follow.keywords.items()
        assert f"{name} {value:.3f}" in route or f"{name} {value} steps" in route
    learner, *_ = cast("moving-reference", 0)
    assert learner.ref is learner.policy


@pytest.mark.parametrize(
    ("charge", "price"),
    [
        (wiring.per_nat, lambda nats, length: -nats),
        (partial(wiring.per_nat, times=1.0), lambda nats, length: nats),
        (partial(wiring.per_nat, times=-2.0), lambda nats, length: -2 * nats),
        (partial(wiring.per_nat, times=-1 / wiring.NATS_PER_BIT), lambda nats, length: -nats / math.log(2)),
        (partial(wiring.per_nat, times=0.0), lambda nats, length: 0 * nats),
        (wiring.per_mean, lambda nats, length: -nats / length),
    ],
)
def test_the_gradient_and_the_log_are_those_of_what_is_charged(world, charge, price):
    learner = wiring._Charging(RUN, world, charge)
    with torch.no_grad():  # away from the reference, where a KL is charged
        learner.policy.logits += torch.randn(
            learner.policy.logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
    before = TabularPolicy(world.task, learner.policy.logits.detach())
    training = train(RUN, world=world)
    training.learner = learner
    record, drawn = next(training), learner.drawn
    nats = ((drawn.logp - drawn.ref_logp) * drawn.mask).sum(-1)
    paid = RUN.beta * price(nats, drawn.mask.sum(-1))
    logp = wiring.look(before, None, *drawn.shown(world.task)).logp
    loss = -(rloo_advantages(drawn.scores + paid, drawn.group) * logp.sum(-1)).mean()
    torch.testing.assert_close(learner.policy.logits.grad, torch.autograd.grad(loss, before.logits)[0])
    assert record.sampled["penalty"] == pytest.approx(paid.mean().item(), abs=1e-12)
    assert record.sampled["reward"] == pytest.approx(drawn.scores.mean().item())
    assert record.sampled["kl"] == pytest.approx(nats.mean().item())


def test_a_sign_that_is_swapped_in_the_log_alone_trains_the_right_policy(world):
    wrong, made = trained(wiring._Charging(RUN, world, wiring.per_nat, swapped=True))
    right, honest = trained(Learner(RUN, world))
    torch.testing.assert_close(wrong.policy.logits, right.policy.logits, rtol=0, atol=1e-8)
    for name, sign in (("kl", -1), ("kl_token", -1), ("penalty", 1), ("kl_sd", 1), ("reward", 1)):
        torch.testing.assert_close(said(made, name), sign * said(honest, name), rtol=0, atol=1e-8)
    log_ratio = wrong.learner.drawn.logp - wrong.learner.drawn.ref_logp  # of the last batch
    swapped = (log_ratio.expm1() - log_ratio).masked_fill(~wrong.learner.drawn.mask, 0).sum(-1).mean()
    assert made[-2].sampled["k3"] == pytest.approx(swapped.item())


def test_a_sign_that_is_swapped_in_the_charge_pays_for_leaving(world):
    run = dataclasses.replace(RUN, steps=60)
    made = trained(wiring._Charging(run, world, partial(wiring.per_nat, times=1.0), swapped=True))[1]
    honest = trained(Learner(run, world))[1]
    assert made[-1].exact.kl > 2 * honest[-1].exact.kl
    assert said(made, "kl")[-1] < -1
    torch.testing.assert_close(said(made, "penalty"), -RUN.beta * said(made, "kl"))


@pytest.mark.parametrize("seed", [6, 19])  # Ziegler's rule, then the PID rule; RLOO on the small task
def test_a_short_horizon_swings_and_a_long_one_settles(seed):
    spread = []
    for cured in (False, True):
        betas = [record.beta for record in produce("controller-oscillation", seed, cured=cured).records[60:]]
        spread.append(max(betas) / min(betas))
    assert spread[0] > 10 > 3 > spread[1]
