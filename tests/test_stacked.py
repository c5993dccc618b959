"""A stack of runs gives the records that its runs give alone, and one that fails takes no other with it."""

import dataclasses

import pytest
import torch
from worlds import world

from kltutor import TabularPolicy, exact
from kltutor.finite import NonFiniteError
from kltutor.model import TinyGPT
from kltutor.run import Run
from kltutor.stacked import SHARED, Stack, stack_key
from kltutor.train import train
from kltutor.world import World

TASK = world(2)
GPT = {"policy": "gpt", "layers": 1, "heads": 2, "width": 8}
SAMPLING = ("reinforce", "rloo", "ppo", "grpo")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def surroundings(run):
    ref = TabularPolicy.random(TASK, seeded(11), 1.2)
    if run.policy == "gpt":
        size = {"layers": run.layers, "heads": run.heads, "width": run.width}
        ref = TinyGPT.for_task(TASK, generator=seeded(11), dtype=torch.float64, device="cpu", **size)
    return World.around(TASK, ref.requires_grad_(False), run)


def runs(*own, **options):
    """Runs of the world of three words and horizon 2, each with options of its own."""
    common = {"task": "given", "steps": 5, "exact_every": 4} | options
    return [Run(**(common | each)) for each in own]


def numbers(record):
    """All numbers of a record, by name, but the time, and the share of pairs of positive margin.

    That share is decided by rounding at the start, where all margins are 0.
    """
    found = record.to_dict()
    del found["seconds"]
    found["sampled"].pop("accuracy", None)
    for part in ("sampled", "exact"):
        found |= {f"{part}.{name}": value for name, value in (found.pop(part) or {}).items()}
    return found


def assert_same(one, other, tolerance):
    one, other = numbers(one), numbers(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if value is None or other[name] is None:
            assert value is other[name], name
        else:
            assert abs(value - other[name]) <= tolerance * max(1, abs(value)), (name, value, other[name])


def assert_as_alone(together, tolerance=1e-10):
    """Train runs stacked and one by one; the stack, which is over, comes back."""
    its = surroundings(together[0])
    stack = Stack(together, world=its)
    records = list(stack)
    assert not stack.failed
    assert len(records) == together[0].steps + 1
    for i, run in enumerate(together):
        training = train(run, world=its)
        for own, step in zip(training, records, strict=True):
            assert_same(own, step[i], tolerance)
        logps = (exact.prefix_logps(policy, TASK).detach() for policy in (training.policy, stack.policy(i)))
        torch.testing.assert_close(*logps, atol=10 * tolerance, rtol=0)
    return stack


REWARD = {"kl_placement": "reward", "kl_reduction": "sequence_sum"}
OWN = (
    {"beta": 0.1, "seed": 0, "rate": 0.05},
    {"beta": 0.7, "seed": 1, "rate": 0.01, "decay": "constant", "max_gradient_norm": 0.05},
    {"beta": 0.3, "seed": 2, "rate": 0.02, "exact_every": 3},
)


@pytest.mark.parametrize("policy", [{}, GPT], ids=["tabular", "gpt"])
@pytest.mark.parametrize("algorithm", SAMPLING)
def test_runs_that_sample_go_as_alone(algorithm, policy):
    own = list(OWN)
    own[2] = own[2] | {
        "reward": "proxy",
        "controller": {"class": "PIDBeta", "target_kl": 0.2, "kp": 0.3, "ki": 0.1, "horizon": 100.0},
    }
    options = {"algorithm": algorithm, "batch": 12, "group": 3, "data_size": 50} | policy
    if algorithm not in ("rloo", "grpo"):
        del options["group"]
    together = runs(*own, **options)
    stack = assert_as_alone(together)
    ends = [exact.seq_logp(stack.policy(i), TASK).detach() for i in range(3)]
    assert all((ends[i] - ends[i - 1]).abs().max() > 1e-3 for i in range(3))  # the runs differ


@pytest.mark.parametrize("policy", [{}, GPT], ids=["tabular", "gpt"])
def test_losses_of_unlike_options_share_a_stack(policy):
    own = (
        REWARD | {"kl_estimator": "k1"},
        REWARD | {"kl_estimator": "k3", "beta": 0.2, "seed": 3},
        REWARD | {"kl_estimator": "k3", "beta": 0.4, "seed": 4},
        {
            "kl_reduction": "sequence_sum",
            "kl_placement": "loss",
            "kl_estimator": "k2",
            "kl_level": "sequence",
            "kl_correction": "stopgrad",
        },
        {"kl_placement": "loss", "kl_estimator": "full", "seed": 5, "kl_reduction": "token_mean"},
        {
            "kl_placement": "loss",
            "kl_estimator": "k1",
            "kl_correction": "differentiable",
            "kl_ratio": "token",
        },
        {"kl_placement": "loss", "kl_estimator": "k3", "beta": 0.0, "reduction": "token_mean"},
        {"advantages": "dr_grpo", "clip_eps": 0.01, "group": 2, "reduction": "sequence_sum"},
        {"advantages": "dr_grpo", "clip_eps": 0.01, "group": 4, "reduction": "sequence_sum", "beta": 0.9},
    )
    assert_as_alone(runs(*own, algorithm="grpo", batch=8, epochs=2, minibatches=1, exact_every=5, **policy))


@pytest.mark.parametrize("policy", [{}, GPT], ids=["tabular", "gpt"])
def test_epochs_minibatches_and_critics_go_as_alone(policy):
    own = (
        {"value_rate": 0.5, "seed": 1},
        {"gamma": 0.9, "gae_lambda": 0.7, "seed": 2, "beta": 0.1},
        {"gamma": 0.9, "gae_lambda": 0.7, "seed": 3, "beta": 0.2, "max_gradient_norm": 0.01},
        {"kl_placement": "loss", "kl_estimator": "k3", "rate": 0.2, "seed": 4},
    )
    stack = assert_as_alone(runs(*own, algorithm="ppo", batch=12, epochs=2, minibatches=2, **policy))
    assert stack.step == 6


@pytest.mark.parametrize("policy", [{}, GPT], ids=["tabular", "gpt"])
@pytest.mark.parametrize("data", ["population", "fresh", "fixed"])
@pytest.mark.parametrize("algorithm", ["dpo", "ipo", "kto", "simpo", "orpo", "sft"])
def test_runs_that_learn_from_data_go_as_alone(algorithm, data, policy):
    size = {} if data == "population" else {"batch": 10}
    smoothed = {"label_smoothing": 0.1} if algorithm == "dpo" else {}
    own = [OWN[0], OWN[1] | smoothed, OWN[2]]
    assert_as_alone(runs(*own, algorithm=algorithm, data=data, data_size=30, **size, **policy))


@pytest.mark.parametrize("options", [{}, GPT, {"optimiser": "natural"}], ids=["tabular", "gpt", "natural"])
def test_exact_runs_go_as_alone(options):
    rule = {"class": "ZieglerBeta", "target_kl": 0.05, "horizon": 10.0, "unit": "nats per token"}
    assert_as_alone(runs(*OWN, {"reward": "proxy", "controller": rule}, algorithm="exact", **options))


def test_the_penalty_rule_hears_how_far_each_run_moved():
    rule = {"class": "PPOPenaltyBeta", "target_kl": 0.01, "lower": 0.01}
    own = [each | {"controller": rule} for each in OWN]
    assert_as_alone(runs(*own, algorithm="ppo", batch=12, epochs=2, minibatches=1))


def test_a_stack_of_one_and_other_dtypes():
    assert_as_alone(runs({}, algorithm="grpo", batch=8, group=4, **GPT))
    assert_as_alone(runs(*OWN, algorithm="ppo", batch=8, dtype="float32", **GPT), tolerance=1e-3)
    coarse = runs({}, {"seed": 1}, algorithm="rloo", batch=8, dtype="bfloat16", **GPT)
    its = surroundings(coarse[0])
    last = list(Stack(coarse, world=its))[-1]
    for run, record in zip(coarse, last, strict=True):
        *_, alone = train(run, world=its)
        assert abs(record.exact.objective - alone.exact.objective) < 0.05  # a few of its 8 bits


@pytest.mark.parametrize(
    ("algorithm", "bad", "policy"),
    [
        ("ppo", {"rate": 1e300}, GPT),
        ("ppo", {"value_rate": 1e300}, GPT),
        ("ppo", {"value_rate": 1e300}, {}),
        ("grpo", {"rate": 1e4}, GPT),
        ("grpo", {"rate": 1e4}, {}),
        ("rloo", {"rate": 1e300}, GPT),
        ("exact", {"rate": 1e300}, GPT),
        ("dpo", {"rate": 1e300}, GPT),
    ],
)
def test_a_run_that_fails_is_named_as_alone_and_stops_alone(algorithm, bad, policy):
    size = {"batch": 12} if algorithm != "exact" else {}
    size |= {"group": 4} if algorithm in ("rloo", "grpo") else {}
    size |= {"epochs": 2, "minibatches": 1} if algorithm in ("ppo", "grpo") else {}
    together = runs(OWN[0], OWN[2] | bad, OWN[1], algorithm=algorithm, **size, **policy)
    its = surroundings(together[0])
    stack, pair = Stack(together, world=its), Stack([together[0], together[2]], world=its)
    records = list(stack)
    with pytest.raises(NonFiniteError) as alone:
        list(train(together[1], world=its))
    (failed,) = stack.failed.values()
    assert list(stack.failed) == [1]
    assert (failed.step, failed.tensor, failed.cause.split(" (")[0]) == (
        alone.value.step,
        alone.value.tensor,
        alone.value.cause.split(" (")[0],
    )
    assert [step[1] is None for step in records] == [i >= failed.step for i in range(6)]
    for both, step in zip(pair, records, strict=True):
        assert_same(both[0], step[0], 1e-10)
        assert_same(both[1], step[2], 1e-10)
    with pytest.raises(ValueError, match="run 1 was stopped, step"):
        stack.policy(1)


def test_a_stack_whose_runs_have_all_failed_is_over():
    bad = {"rate": 1e300, "decay": "constant"}
    together = runs(bad, bad | {"seed": 1}, algorithm="exact", **GPT)
    stack = Stack(together, world=surroundings(together[0]))
    records = list(stack)
    assert records[-1] == (None, None)
    assert set(stack.failed) == {0, 1}
    assert len(records) < 6


def test_logits_that_become_nan_are_found_before_they_are_drawn_from():
    together = runs(*OWN, algorithm="rloo", batch=8)
    its = surroundings(together[0])
    stack, pair = Stack(together, world=its), Stack(together[1:], world=its)
    next(stack), next(pair)
    with torch.no_grad():
        stack._policy.logits[0, 0, 0, 0] = float("nan")
    records = list(stack)
    assert (stack.failed[0].step, stack.failed[0].tensor) == (1, "logits")
    for both, step in zip(pair, records, strict=True):
        for one, other in zip(both, step[1:], strict=True):
            assert_same(one, other, 1e-10)


def test_a_reference_that_is_wrong_is_no_run_s_failure():
    together = runs({}, {"seed": 1}, algorithm="rloo", batch=8)
    its = surroundings(together[0])
    stack = Stack(together, world=its)
    with torch.no_grad():
        stack._policy.logits[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="nan"):
        next(stack)


def test_keys_hold_what_shapes_the_program_and_nothing_else():
    base = Run(algorithm="ppo", policy="gpt", batch=8)
    free = {"beta": 0.1, "seed": 3, "rate": 0.3, "kl_estimator": "k3", "kl_placement": "loss", "gamma": 0.9}
    free |= {"clip_eps": 0.3, "value_rate": 0.1, "decay": "constant", "max_gradient_norm": 1.0}
    free |= {"reward": "proxy", "exact_every": 3, "optimum_beta": 1.0, "checkpoint_every": 3}
    free |= {"controller": {"class": "ZieglerBeta", "target_kl": 0.1, "horizon": 2560.0}}
    assert stack_key(dataclasses.replace(base, **free)) == stack_key(base)
    shared = {"task": "bandit", "layers": 3, "heads": 4, "width": 8, "dtype": "float32", "world_seed": 1}
    shared |= {"ref_scale": 2.0, "ref_steps": 7, "data_size": 5, "flip": 0.1, "steps": 3, "batch": 16}
    shared |= {"epochs": 5, "minibatches": 4, "device": "cuda"}
    for name, value in shared.items():
        other = dataclasses.replace(base, **{name: value})
        assert stack_key(other) != stack_key(base), name
        with pytest.raises(ValueError, match=rf"runs\[0\] and runs\[1\] differ in {name}, .*share their"):
            Stack([base, other])
    assert stack_key(Run(algorithm="exact", optimiser="natural")) != stack_key(Run(algorithm="exact"))
    assert stack_key(Run(algorithm="dpo", data="fixed")) != stack_key(Run(algorithm="dpo"))
    assert stack_key(Run(algorithm="ppo")) != stack_key(Run(algorithm="rloo"))
    assert set(shared) | {"algorithm", "policy", "optimiser", "data"} == set(SHARED)
    rule = {"class": "PPOPenaltyBeta", "target_kl": 0.01}
    with pytest.raises(ValueError, match="what the controller measures, 'policy‖ref' and 'old‖policy'"):
        Stack([base, dataclasses.replace(base, controller=rule)])
    assert hash(stack_key(base)) == hash(stack_key(dataclasses.replace(base, seed=9)))


def test_wrong_stacks_are_refused():
    with pytest.raises(ValueError, match="runs is empty"):
        Stack([])
    with pytest.raises(ValueError, match="ref is a TabularPolicy; a gpt starts as a copy of a TinyGPT"):
        Stack(runs({}, algorithm="rloo", **GPT), world=surroundings(Run()))
    stack = Stack(runs({}, {}, algorithm="rloo", batch=64), world=surroundings(Run()))
    for index in (-1, 2):
        with pytest.raises(ValueError, match=rf"run {index} does not exist"):
            stack.policy(index)
    copy = stack.policy(0).logits.detach().clone()
    next(stack)
    assert not torch.equal(stack.policy(0).logits, copy)


def test_a_stack_without_a_world_makes_the_one_its_runs_name():
    together = [Run(algorithm="exact", steps=2, beta=beta) for beta in (0.2, 0.9)]
    stack = Stack(together)
    for run, (first, *_) in zip(together, zip(*stack, strict=True), strict=True):
        assert_same(next(train(run)), first, 1e-10)


# Tables in a stack


def test_a_stack_of_tables_says_what_each_says():
    singles = [TabularPolicy.random(TASK, seeded(seed)) for seed in range(3)]
    stack = TabularPolicy.stack(singles)
    assert (stack.policies, singles[0].policies) == (3, None)
    rows = torch.stack(
        [torch.cat([TASK.prompt_tokens[[k % 2] * 4], TASK.tokens[k : k + 4]], -1) for k in range(3)]
    )
    together = stack(rows)
    for k, single in enumerate(singles):
        assert torch.equal(together[k], single(rows[k]))
        assert torch.equal(stack.policy(k).logits, single.logits)
    (slope,) = torch.autograd.grad(together[1].sum(), stack.logits)
    assert (slope[[0, 2]] == 0).all()
    assert (slope[1] != 0).any()


def test_wrong_stacks_of_tables_are_refused():
    single = TabularPolicy.random(TASK, seeded(0))
    stack = TabularPolicy.stack([single, single])
    rows = torch.cat([TASK.prompt_tokens, TASK.tokens[:2]], -1)
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 3\); \(2, batch, time\) is expected"):
        stack(rows)
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 2, 3\); \(batch, time\) is expected"):
        single(torch.stack([rows, rows]))
    other = TabularPolicy.random(world(3), seeded(0))
    for wrong in ([], [stack], [single, other]):
        with pytest.raises(ValueError, match="single policies, one or more and all of one task"):
            TabularPolicy.stack(wrong)
    with pytest.raises(ValueError, match="policy 2 was asked of a stack of 2"):
        stack.policy(2)
    with pytest.raises(ValueError, match="policy 0 was asked of a single policy"):
        single.policy(0)
    with pytest.raises(ValueError, match="one more axis in front for a stack"):
        TabularPolicy(TASK, torch.zeros(1, 2, *single.logits.shape))
