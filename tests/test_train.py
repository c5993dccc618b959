"""Training ends where theory says, reports what is so, stops at what is not a number, and resumes exactly."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from worlds import world

from kltutor import (
    PIDBeta,
    PPOPenaltyBeta,
    TabularPolicy,
    ZieglerBeta,
    checkpoints,
    exact,
    optimal_policy,
    preference_metrics,
)
from kltutor.finite import NonFiniteError
from kltutor.model import TinyGPT
from kltutor.offline import Offline
from kltutor.records import measure, pair_metrics
from kltutor.rollout import roll_out
from kltutor.run import Run
from kltutor.train import make_world, resume, train
from kltutor.world import World

TASK = world(2)
TINY = {"layers": 1, "heads": 1, "width": 8, "ref_steps": 5}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def surroundings(run, ref=None):
    return World.around(TASK, ref or TabularPolicy.random(TASK, seeded(1), 1.2), run)


def small(**options):
    """A run of the world of three words and horizon 2, and that world."""
    run = Run(task="given", **({"steps": 6, "exact_every": 1} | options))
    return run, surroundings(run)


def distance(policy, other, task):
    logps = (exact.seq_logp(each, task).detach() for each in (policy, other))
    return exact.mean_kl(*logps, task).item()


# Where it ends


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "exact"},
        {"algorithm": "exact", "optimiser": "natural", "rate": 1.0, "steps": 6},
        {"algorithm": "dpo", "data": "population"},
        {"algorithm": "dpo", "seed": 1, "world_seed": 1},
        {"algorithm": "ppo"},
        {"algorithm": "exact", "policy": "gpt", "world_seed": 2},
    ],
    ids=["exact", "natural", "dpo", "fresh dpo", "ppo", "gpt"],
)
def test_default_runs_of_the_small_task_end_at_the_optimum(options):
    training = train(Run(**options))
    records = list(training)
    assert records[0].exact.kl_to_optimum > 0.9
    assert records[-1].exact.kl_to_optimum < 0.01
    task, ref = training.world.task, training.world.ref
    best = TabularPolicy(task, exact.token_optimum(ref, task, 0.5, kl_discount=1.0).detach())
    assert math.isclose(distance(training.policy, best, task), records[-1].exact.kl_to_optimum, abs_tol=1e-12)


def test_grpo_with_k3_in_the_loss_ends_at_its_own_fixed_point_and_not_at_the_optimum():
    run = Run(
        algorithm="grpo",
        group=4,
        batch=512,
        steps=300,
        exact_every=300,
        advantages="dr_grpo",
        reduction="sequence_sum",
        kl_reduction="sequence_sum",
    )
    training = train(run)
    last = list(training)[-1].exact
    task, ref, shrunk = training.world.task, training.world.ref, 1 - 1 / run.group
    rests = {
        beta: TabularPolicy(task, exact.token_optimum(ref, task, beta, tilt="rational"))
        for beta in (run.beta / shrunk, run.beta, run.beta * shrunk)
    }
    found = {beta: distance(training.policy, rest, task) for beta, rest in rests.items()}
    assert found[run.beta / shrunk] < 0.006
    assert min(found[run.beta], found[run.beta * shrunk], last.kl_to_optimum) > 0.02


def test_on_the_proxy_it_ends_at_the_optimum_of_the_proxy():
    run, its = small(algorithm="exact", reward="proxy", steps=200, exact_every=200, data_size=50)
    training = train(run, world=its)
    last = list(training)[-1].exact
    assert last.kl_to_optimum < 1e-4
    gold = measure(dataclasses.replace(run, reward="gold"), its, training.policy, run.beta)
    assert gold.kl_to_optimum > 0.01
    assert gold.proxy == last.proxy == last.objective + run.beta * last.kl
    assert gold.gold == last.gold == gold.objective + run.beta * gold.kl
    sampled, _ = small(algorithm="rloo", reward="proxy", steps=1)
    (record, _) = train(sampled, world=its)
    assert abs(record.sampled["reward"] - record.exact.proxy) < 0.3  # 256 draws, 5 standard errors
    assert abs(record.exact.proxy - record.exact.gold) > 0.5


def test_without_samples_the_steps_are_those_of_the_control():
    run, its = small(algorithm="exact", optimiser="natural", rate=0.7, decay="constant", steps=3)
    training = train(run, world=its)
    list(training)

    def objective(policy):
        logp = exact.seq_logp(policy, TASK)
        return exact.expectation(TASK.reward, logp, TASK) - 0.5 * exact.kl(policy, its.ref, TASK)

    control = exact.ascend(its.ref, objective, TASK, steps=3, step_size=0.7 / 0.5)
    assert distance(training.policy, control, TASK) < 1e-14


# What it reports


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "exact", "dpo"])
def test_a_record_is_exact_about_the_policy_before_its_update(algorithm):
    run, its = small(algorithm=algorithm, steps=4, exact_every=3)
    training = train(run, world=its)
    records = []
    for step in range(5):
        now = measure(run, its, training.policy, run.beta)
        records.append(next(training))
        assert records[-1].step == step
        assert records[-1].exact == (now if step in (0, 3, 4) else None)
    with pytest.raises(StopIteration):
        next(training)
    assert abs(records[0].exact.kl) < 1e-12
    last = records[-1]
    assert (last.loss, last.gradient_norm, last.sampled) == (None, None, {})
    assert all(record.loss is not None and record.gradient_norm > 0 for record in records[:-1])
    seconds = [record.seconds for record in records]
    assert sorted(seconds) == seconds


def test_exact_quantities_are_sums_over_all_completions():
    run, its = small(algorithm="exact", beta=0.3, optimum_beta=0.7, reward="proxy")
    policy = TabularPolicy.random(TASK, seeded(2))
    found = measure(run, its, policy, 0.4)
    logp, ref = exact.seq_logp(policy, TASK).detach(), its.ref_seq_logp
    total = dict.fromkeys(("kl", "gold", "proxy", "kl_to_optimum", "length", "entropy"), 0.0)
    best, _ = optimal_policy(ref, its.proxy, 0.7)
    for x, asked in enumerate(TASK.prompt_probs):
        for y, sequence in enumerate(TASK.sequences):
            weight = asked * logp[x, y].exp().item()
            total["kl"] += weight * (logp - ref)[x, y].item()
            total["gold"] += weight * TASK.reward[x, y].item()
            total["proxy"] += weight * its.proxy[x, y].item()
            total["kl_to_optimum"] += weight * (logp - best)[x, y].item()
            total["length"] += weight * len(sequence)
            total["entropy"] -= weight * logp[x, y].item()
    total["objective"] = total["proxy"] - 0.4 * total["kl"]
    for name, value in total.items():
        assert math.isclose(getattr(found, name), value, abs_tol=1e-12), name
    assert measure(dataclasses.replace(run, optimum_beta=None), its, policy, 0.0).kl_to_optimum is None


def test_sampled_quantities_agree_with_the_exact_ones_beside_them():
    """Each within 5 standard errors of the exact value: refused by chance with probability below 1e-5."""
    run, its = small(algorithm="rloo", batch=20_000, steps=3, rate=0.3)
    task = its.task
    training = train(run, world=its)
    for _ in range(3):
        logp = exact.seq_logp(training.policy, task).detach()
        ratio = logp - its.ref_seq_logp
        record = next(training)
        for name, values in (
            ("kl", ratio),
            ("reward", task.reward),
            ("length", task.mask.sum(-1).double().expand_as(logp)),
            ("entropy", -logp),
        ):
            mean = exact.expectation(values, logp, task).item()
            error = (exact.variance(values, logp, task).item() / run.batch) ** 0.5
            assert abs(record.sampled[name] - mean) <= 5 * error + 1e-12, name
        per_token = record.exact.kl / record.exact.length
        assert abs(record.sampled["kl_token"] - per_token) < 0.02
        spread = exact.variance(task.reward, logp, task).item() ** 0.5
        assert abs(record.sampled["reward_sd"] - spread) < 0.03
    assert record.exact.kl > 0.1  # it did move


def test_metrics_of_pairs_are_those_of_preference_metrics():
    run, its = small(algorithm="dpo", batch=64)
    comparison = Offline(run, its).compare(TabularPolicy.random(TASK, seeded(2)), seeded(3))
    counted = comparison.weights > 0
    assert not counted.all()  # a completion beside itself is no pair
    arguments = [
        side[counted].detach()
        for side in (
            comparison.chosen.seq_logp,
            comparison.rejected.seq_logp,
            comparison.chosen.ref_seq_logp,
            comparison.rejected.ref_seq_logp,
        )
    ]
    expected = preference_metrics(*arguments, 0.5)
    found = pair_metrics(0.5, comparison)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(found[name], value, abs_tol=1e-12), name
    nothing = comparison._replace(weights=torch.zeros(64).double())
    assert pair_metrics(0.5, nothing) == {}


def test_what_an_update_shows():
    run, its = small(algorithm="ppo", batch=64, epochs=4, minibatches=1, rate=0.5, clip_eps=0.01, steps=2)
    first, *_ = train(run, world=its)
    assert 0.3 < first.sampled["clip_fraction"] < 0.76  # the first of four updates clips nothing
    once, _ = train(dataclasses.replace(run, epochs=1, steps=1), world=its)
    assert once.sampled["clip_fraction"] == 0
    rollout = roll_out(run, its, its.ref, None, seeded(run.seed))
    errors = []
    for row in range(64):
        to_go = rollout.scores[row].item()
        for t in reversed(range(int(rollout.mask[row].sum()))):
            to_go -= run.beta * (rollout.logp - rollout.ref_logp)[row, t].item()
            errors.append(to_go**2)  # the critic starts at zero
    assert math.isclose(once.sampled["value_error"], sum(errors) / len(errors), rel_tol=1e-9)


def test_long_gradients_are_shortened_and_reported_as_they_were():
    run, its = small(algorithm="exact", steps=1, beta=0.0)
    free, short = (
        train(dataclasses.replace(run, max_gradient_norm=most), world=its) for most in (None, 1e-3)
    )
    reports = [next(training).gradient_norm for training in (free, short)]
    true = exact.gradient(
        lambda p: exact.expectation(TASK.reward, exact.seq_logp(p, TASK), TASK), its.ref
    ).norm()
    assert math.isclose(reports[0], true.item(), rel_tol=1e-12)
    assert reports[0] == reports[1]
    norms = [
        sum(p.grad.square().sum() for p in training.policy.parameters()).sqrt().item()
        for training in (free, short)
    ]
    assert math.isclose(norms[0], reports[0], rel_tol=1e-12)
    assert math.isclose(norms[1], 1e-3, rel_tol=1e-2)


def test_the_rate_falls_linearly_to_zero_after_the_last_step():
    run, its = small(algorithm="ppo", batch=8, steps=4, rate=0.08, value_rate=0.4)
    training, rates = train(run, world=its), []
    for _ in range(4):
        record = next(training)
        inside = [group["lr"] for group in training.learner.optimiser.param_groups]
        assert math.isclose(inside[0], record.rate)
        assert math.isclose(inside[1], 5 * record.rate)
        rates.append(record.rate)
    assert all(math.isclose(rate, 0.02 * (4 - i)) for i, rate in enumerate(rates))
    flat = train(dataclasses.replace(run, decay="constant"), world=its)
    assert [record.rate for record in flat] == [0.08] * 5


# What moves beta


def test_a_controller_hears_the_kl_it_measures_in_its_unit_and_moves_beta_for_the_next_step():
    for algorithm in ("rloo", "exact"):
        for unit in ("nats per sequence", "nats per token"):
            settings = {"target_kl": 0.3, "kp": 0.5, "ki": 1.0, "horizon": 1000.0, "unit": unit}
            run, its = small(algorithm=algorithm, controller={"class": "PIDBeta"} | settings)
            records = list(train(run, world=its))
            rule, betas = PIDBeta(run.beta, **settings), [run.beta]
            for record in records[:-1]:
                said = {"nats per sequence": "kl", "nats per token": "kl_token"}[unit]
                kl = record.sampled[said] if algorithm == "rloo" else record.exact.kl
                if algorithm == "exact" and unit == "nats per token":
                    kl /= record.exact.length
                betas.append(rule.update(kl, n=run.batch or 1))
            for record, beta in zip(records, betas, strict=True):
                assert math.isclose(record.beta, beta, rel_tol=1e-12)
            assert len(set(betas)) > 4


def test_the_penalty_rule_hears_how_far_the_update_moved_the_policy():
    rule = {"class": "PPOPenaltyBeta", "target_kl": 0.01}
    once = {"minibatches": 1, "epochs": 1, "decay": "constant"}
    run, its = small(algorithm="ppo", batch=20_000, controller=rule, **once)
    training = train(run, world=its)
    twin, before = PPOPenaltyBeta(run.beta, target_kl=0.01), its.ref
    for _ in range(4):
        old = exact.prefix_logps(before, TASK).detach()
        record = next(training)
        assert record.beta == twin.beta
        new = exact.prefix_logps(training.policy, TASK).detach()
        asked = torch.tensor(TASK.prompt_probs).double()[:, None]
        visits = asked * exact.prefix_reach(before, TASK).detach()
        apart = (visits * (old.exp() * (old - new)).sum(-1)).sum() / visits.sum()  # per visited state
        assert math.isclose(record.sampled["kl_step"], apart.item(), rel_tol=0.05)
        twin.update(record.sampled["kl_step"], n=run.batch)
        before = TabularPolicy(TASK, new)


def test_a_controller_reaches_its_target():
    rule = {"class": "ZieglerBeta", "target_kl": 0.4, "horizon": 20.0}
    run, its = small(
        algorithm="exact", controller=rule, beta=2.0, steps=400, exact_every=400, decay="constant"
    )
    last = list(train(run, world=its))[-1]
    assert abs(last.exact.kl - 0.4) < 0.02
    assert isinstance(run.rule(), ZieglerBeta)
    assert last.exact.kl_to_optimum < 0.01  # of the beta that is then in force
    assert last.beta < 1.5


# Where it stops


@pytest.mark.parametrize(
    ("options", "tensor", "cause"),
    [
        ({"algorithm": "exact", "rate": 1e308, "decay": "constant"}, r"policy\.logits", "rate is too high"),
        ({"algorithm": "ppo", "value_rate": 1e308, "batch": 64}, "critic|values", "diverged|rate"),
        (
            {"algorithm": "grpo", "epochs": 2, "rate": 1e4, "batch": 64},
            "ratio ref/policy in k3",
            "k3 grows as ref/policy",
        ),
    ],
)
def test_a_run_that_leaves_the_numbers_stops_with_step_tensor_and_cause(options, tensor, cause):
    run, its = small(steps=50, **options)
    with pytest.raises(NonFiniteError, match=rf"step \d+: .*({tensor}).* is not finite.*({cause})") as caught:
        list(train(run, world=its))
    assert 0 <= caught.value.step < 50
    assert isinstance(caught.value, ArithmeticError)


def test_a_reference_that_is_not_finite_is_refused_before_any_step():
    bad = TabularPolicy(TASK, torch.full((2, 3, 3), float("nan")).double())
    with pytest.raises(ValueError, match="nan"):
        surroundings(Run(), bad)


def test_a_reference_that_bans_a_token_is_no_start_for_a_table():
    logits = TabularPolicy.random(TASK, seeded(1)).logits.detach().clone()
    logits[0, 1, 2] = -torch.inf
    run, _ = small(algorithm="rloo", batch=16)
    with pytest.raises(ValueError, match="gives some token probability 0"):
        train(run, world=surroundings(run, TabularPolicy(TASK, logits)))


def test_logits_that_become_nan_are_named():
    run, its = small(algorithm="rloo", batch=8)
    training = train(run, world=its)
    next(training)
    with torch.no_grad():
        training.policy.logits[:] = float("nan")
    with pytest.raises(NonFiniteError, match="step 1: logits is not finite"):
        next(training)


# Seeds


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dpo"])
def test_a_seed_decides_a_run(algorithm):
    run, its = small(algorithm=algorithm, batch=16)
    parameters = []
    for seed in (0, 0, 1):
        training = train(dataclasses.replace(run, seed=seed), world=its)
        list(training)
        parameters.append(training.policy.logits.detach())
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])
    assert torch.equal(its.ref.logits, surroundings(run).ref.logits)  # which nothing trains


# Transformers


def test_a_transformer_starts_at_a_reference_that_learnt_to_write_like_the_table():
    run = Run(policy="gpt", algorithm="ppo", steps=2, batch=16, **(TINY | {"ref_steps": 60, "width": 32}))
    its = make_world(run)
    table = make_world(dataclasses.replace(Run(), seed=3)).ref
    untrained = make_world(dataclasses.replace(run, ref_steps=0))
    assert exact.kl(table, its.ref, its.task) < exact.kl(table, untrained.ref, its.task) / 5
    training = train(run, world=its)
    assert isinstance(training.policy, TinyGPT)
    before = [parameter.clone() for parameter in its.ref.parameters()]
    records = list(training)
    assert abs(records[0].exact.kl) < 1e-12
    assert records[-1].exact.kl > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(before, its.ref.parameters(), strict=True))
    with pytest.raises(ValueError, match="ref is a TabularPolicy; a gpt starts as a copy of a TinyGPT"):
        train(run, world=make_world(Run()))


@pytest.mark.parametrize("algorithm", ["exact", "reinforce", "grpo", "dpo", "kto", "sft"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_transformer_learns_in_every_dtype(algorithm, dtype):
    run = Run(policy="gpt", algorithm=algorithm, steps=3, exact_every=3, dtype=dtype, **_shape(algorithm))
    first, *middle, last = list(train(run))
    assert last.exact.kl_to_optimum != first.exact.kl_to_optimum
    assert all(math.isfinite(value) for value in dataclasses.asdict(last.exact).values())
    coarse = [record.loss == torch.tensor(record.loss).bfloat16().item() for record in (first, *middle)]
    assert not all(coarse)  # losses and their sums are never taken in the lower precision


def _shape(algorithm):
    size = {} if algorithm == "exact" else {"batch": 16}
    return size | {name: value for name, value in TINY.items() if name != "ref_steps" or algorithm != "sft"}


# Going on

PLANS = {
    "ppo with a controller": {
        "algorithm": "ppo",
        "controller": {"class": "PIDBeta", "target_kl": 0.3, "kp": 0.5, "ki": 1.0, "horizon": 1000.0},
    },
    "grpo on the proxy": {"algorithm": "grpo", "reward": "proxy", "minibatches": 2, "epochs": 2},
    "rloo annealed": {
        "algorithm": "rloo",
        "controller": {"class": "AnnealedBeta", "end": 0.1, "episodes": 100},
    },
    "dpo on fixed data": {"algorithm": "dpo", "data": "fixed"},
    "dpo on the population": {"algorithm": "dpo", "data": "population"},
    "kto": {"algorithm": "kto"},
    "sft": {"algorithm": "sft"},
    "exact": {"algorithm": "exact"},
    "natural": {"algorithm": "exact", "optimiser": "natural"},
    "a transformer": {"algorithm": "ppo", "policy": "gpt"} | TINY,
    "a transformer in bfloat16": {"algorithm": "grpo", "policy": "gpt", "dtype": "bfloat16"} | TINY,
}


def timeless(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def state_of(training):
    return training.learner.tensors(), training.controller.state(), training.step


def same(first, second):
    (tensors, *numbers), (others, *theirs) = first, second
    assert numbers == theirs
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("name", PLANS)
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(name, tmp_path):
    plan = PLANS[name]
    batch = {} if plan.get("data") == "population" or plan["algorithm"] == "exact" else {"batch": 16}
    often = {"steps": 7, "checkpoint_every": 3, "exact_every": 2}
    run = Run(task="bandit" if "policy" in plan else "small", **often, **plan, **batch)
    whole = train(run, folder=tmp_path / "whole")
    expected = [record.to_dict() for record in whole]
    stopped = train(run, folder=tmp_path / "stopped")
    for _ in range(5):  # the checkpoint is from after the third
        next(stopped)
    rest = resume(tmp_path / "stopped")
    assert rest.step == 3
    assert timeless(record.to_dict() for record in rest) == timeless(expected[3:])
    same(state_of(rest), state_of(whole))
    for folder in ("whole", "stopped"):
        assert timeless(checkpoints.read_log(tmp_path / folder / "log.jsonl")) == timeless(expected)
    assert list(resume(tmp_path / "stopped")) == []
    same(state_of(resume(tmp_path / "stopped")), state_of(whole))
    assert rest.seconds > rest.spent > 0


def test_a_run_can_be_resumed_before_its_first_record(tmp_path):
    run, its = small(algorithm="rloo", batch=16)
    train(run, world=its, folder=tmp_path)
    assert [record.step for record in resume(tmp_path, world=its)] == list(range(7))


def test_folders_and_worlds_that_do_not_belong_together_are_refused(tmp_path):
    run, its = small(algorithm="rloo", batch=16, checkpoint_every=2)
    with pytest.raises(FileNotFoundError):
        resume(tmp_path)
    checkpoints.save(tmp_path / "checkpoint.safetensors", {}, {"step": 3})
    with pytest.raises(ValueError, match=r"no run of this version of the package \(KeyError: 'run'\)"):
        resume(tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    for _ in zip(train(run, world=its, folder=tmp_path), range(3), strict=False):
        pass
    with pytest.raises(ValueError, match="holds a run, which `resume` continues"):
        train(run, world=its, folder=tmp_path)
    with pytest.raises(ValueError, match="task is 'given', so it comes with a World"):
        resume(tmp_path)
    other = surroundings(run, TabularPolicy.random(TASK, seeded(50)))
    with pytest.raises(ValueError, match="is of another world"):
        resume(tmp_path, world=other)
    with pytest.raises(ValueError, match="no folder to save in"):
        train(run, world=its).save()
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds 0 bytes, but"):
        resume(tmp_path, world=its)


def wounds():
    """Ways in which a checkpoint of an older version, or of another program, may differ: each breaks it."""

    def state(**changes):
        return lambda tensors, state: (tensors, state | changes)

    def without(name):
        return lambda tensors, state: (
            {key: value for key, value in tensors.items() if key != name},
            {key: value for key, value in state.items() if key != name},
        )

    def tensor(name, change):
        return lambda tensors, state: (tensors | {name: change(tensors[name])}, state)

    run = dataclasses.asdict(Run(task="bandit", algorithm="ppo", policy="gpt", batch=16, steps=4, **TINY))
    yield "no run", without("run")
    yield "an option that is gone", state(run=run | {"kl_coef": 0.1})
    yield "an option of another type", state(run=run | {"steps": "four"})
    yield "an option out of range", state(run=run | {"beta": -1.0})
    yield "another width", state(run=run | {"width": 16})
    yield "another algorithm", state(run=run | {"algorithm": "grpo", "group": 8} | GRPO)
    for name in ("world", "controller", "step", "seconds", "log", "generator"):
        yield f"no {name}", without(name)
    yield "an older log", state(log=1234)
    yield "another world's numbers", state(world=[1.0])
    yield "no numbers of the world", state(world=None)
    yield "no critic", without("critic.weight")
    yield "no moments", without("optimiser.0.exp_avg")
    yield (
        "no moments at all",
        lambda tensors, state: (
            {name: value for name, value in tensors.items() if not name.startswith("optimiser")},
            state,
        ),
    )
    yield "moments of another shape", tensor("optimiser.0.exp_avg", lambda value: value[:1])
    yield "parameters of another dtype", tensor("policy.token", lambda value: value.float())
    yield "a parameter too many", lambda tensors, state: (tensors | {"policy.x": torch.ones(1)}, state)
    yield "no reference", without("ref.token")


GRPO = {name: None for name in ("value_rate", "gamma", "gae_lambda", "minibatches", "epochs", "advantages")}


@pytest.mark.parametrize(("what", "wound"), list(wounds()), ids=[what for what, _ in wounds()])
def test_a_checkpoint_that_does_not_fit_is_refused_with_what_to_do_and_nothing_is_touched(
    what, wound, tmp_path, fitting
):
    tensors, state = wound(*checkpoints.load(fitting / "checkpoint.safetensors"))
    checkpoints.save(tmp_path / "checkpoint.safetensors", tensors, state)
    log = (fitting / "log.jsonl").read_bytes() + b'{"step"'
    (tmp_path / "log.jsonl").write_bytes(log)
    with pytest.raises(ValueError, match=r"no run of this version.*start the run again|is of another world"):
        resume(tmp_path)
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.fixture(scope="module")
def fitting(tmp_path_factory):
    """A folder with two of four steps of a transformer with a critic."""
    folder = tmp_path_factory.mktemp("fitting")
    run = Run(task="bandit", algorithm="ppo", policy="gpt", batch=16, steps=4, checkpoint_every=2, **TINY)
    for _ in zip(train(run, folder=folder), range(2), strict=False):
        pass
    assert resume(folder).step == 2
    return folder


def test_a_log_of_another_run_is_refused(tmp_path):
    run, its = small(algorithm="rloo", batch=16)
    for seed in (0, 1):
        list(train(dataclasses.replace(run, seed=seed), world=its, folder=tmp_path / str(seed)))
    foreign = (tmp_path / "1" / "log.jsonl").read_bytes() * 2  # long enough
    (tmp_path / "0" / "log.jsonl").write_bytes(foreign)
    with pytest.raises(ValueError, match="differ from those that were there"):
        resume(tmp_path / "0", world=its)
    assert (tmp_path / "0" / "log.jsonl").read_bytes() == foreign


@pytest.mark.parametrize("policy", ["tabular", "gpt"])
def test_a_device_that_the_machine_lacks_is_refused_before_any_work(policy, tmp_path):
    run = Run(policy=policy, device="cuda:99")
    with pytest.raises(ValueError, match=r"^device is 'cuda:99', which torch cannot use: .*device=cpu"):
        train(run, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    train(Run(task="bandit", algorithm="exact", steps=1), folder=tmp_path / "old")
    path = tmp_path / "old" / "checkpoint.safetensors"
    tensors, state = checkpoints.load(path)
    checkpoints.save(path, tensors, state | {"run": state["run"] | {"device": "cuda:99"}})
    with pytest.raises(ValueError, match=r"^device is 'cuda:99'"):
        resume(tmp_path / "old")


SCRIPT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from kltutor.run import Run
from kltutor.train import train
for record in train(Run.from_json(sys.argv[1]), folder=Path(sys.argv[2])):
    pass
"""


def test_a_killed_process_loses_no_more_than_the_steps_since_its_checkpoint(tmp_path):
    run = Run(batch=16, steps=4000, checkpoint_every=2, exact_every=50)
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, run.to_json(), str(folder)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "log.jsonl").exists() and (folder / "log.jsonl").read_bytes().count(b"\n") > 20:
            break
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    logged = len(checkpoints.read_log(folder / "log.jsonl"))
    rest = resume(folder)
    assert logged - run.checkpoint_every <= rest.step <= logged + 1
    found = [next(rest) for _ in range(10)]
    whole = train(run)
    expected = [next(whole) for _ in range(rest.step)]
    assert timeless(r.to_dict() for r in found) == timeless(r.to_dict() for r in expected[-10:])
    same(state_of(rest), state_of(whole))
    lines = checkpoints.read_log(folder / "log.jsonl")
    assert timeless(lines) == timeless(r.to_dict() for r in expected)
    assert set(os.listdir(folder)) <= {"log.jsonl", "checkpoint.safetensors", "checkpoint.safetensors.part"}


def test_before_the_first_step_bad_logits_are_an_error_of_what_was_given():
    run, its = small(algorithm="rloo", batch=8)
    training = train(run, world=its)
    with torch.no_grad():
        training.policy.logits[:] = float("nan")
    with pytest.raises(ValueError, match="nan"):
        next(training)


def test_minibatches_share_out_the_batch_and_never_a_group():
    run, its = small(algorithm="grpo", batch=24, group=4, minibatches=3)
    learner = train(run, world=its).learner
    rollout = roll_out(run, its, its.ref, None, seeded(0))._replace(scores=torch.arange(24.0).double())
    epochs = [learner._parts(rollout) for _ in range(2)]
    for parts in epochs:
        assert [len(part.scores) for part in parts] == [8, 8, 8]
        assert torch.cat([part.scores for part in parts]).sort().values.tolist() == list(range(24))
        for part in parts:
            assert part.group.unique(return_counts=True)[1].tolist() == [4, 4]
    orders = [torch.cat([part.scores for part in parts]).tolist() for parts in epochs]
    assert orders[0] != orders[1] != list(range(24))


def test_a_resumed_transformer_takes_its_reference_from_the_checkpoint(tmp_path):
    run = Run(task="bandit", algorithm="rloo", policy="gpt", batch=16, steps=2, **TINY)
    train(run, folder=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    tensors, state = checkpoints.load(path)
    moved = {name: value + 1e-9 if name.startswith("ref.") else value for name, value in tensors.items()}
    checkpoints.save(path, moved, state)
    ref = resume(tmp_path).world.ref
    for name, value in ref.named_parameters():
        assert torch.equal(value, moved[f"ref.{name}"])
        assert not value.requires_grad
