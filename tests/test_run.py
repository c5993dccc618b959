"""A `Run` names everything, survives JSON, and refuses what contradicts itself, saying why."""

import dataclasses
import json
from typing import get_args

import jaxtyping
import pytest

from kltutor import FixedBeta, PIDBeta, ZieglerBeta, options
from kltutor.run import Run

ALGORITHMS = get_args(options.Algorithm)
RULES = {
    "AnnealedBeta": {"end": 0.1, "episodes": 1000, "shape": "cosine"},
    "PPOPenaltyBeta": {"target_kl": 0.01, "lower": 1e-4},
    "ZieglerBeta": {"target_kl": 2.0, "horizon": 5000.0, "unit": "nats per token"},
    "PIDBeta": {"target_kl": 2.0, "kp": 0.1, "ki": 1.0, "horizon": 5000.0},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("policy", ["tabular", "gpt"])
@pytest.mark.parametrize("task", ["small", "phrases"])
def test_a_run_survives_json_and_replace_with_its_defaults_filled_in(algorithm, policy, task):
    run = Run(algorithm=algorithm, policy=policy, task=task)
    values = dataclasses.asdict(run)
    optional = {"optimum_beta", "controller", "kl_ratio", "max_gradient_norm"}
    assert {name for name, value in values.items() if value is None} == optional
    assert Run.from_json(run.to_json()) == run
    assert dataclasses.replace(run, seed=0) == run
    assert dataclasses.replace(run, seed=1) != run


def test_every_option_that_json_can_hold_survives_it():
    run = Run(
        algorithm="grpo",
        beta=0.1,
        optimum_beta=0.2,
        controller={"class": "ZieglerBeta", "target_kl": 2.0, "horizon": 5000.0},
        kl_correction="stopgrad",
        kl_ratio="sequence",
        epochs=2,
        max_gradient_norm=1.0,
    )
    again = Run.from_json(run.to_json())
    assert again == run
    assert again.rule() == ZieglerBeta(0.1, target_kl=2.0, horizon=5000.0)
    assert Run.from_json("{}") == Run()
    with pytest.raises(ValueError, match=r"a Run has no kl_coef, lr\. Check the spelling"):
        Run.from_json(json.dumps({"lr": 0.1, "kl_coef": 0.1, "beta": 0.1}))


def test_published_defaults():
    grpo, ppo = Run(algorithm="grpo"), Run()
    assert (grpo.kl_placement, grpo.kl_estimator, grpo.kl_level) == ("loss", "k3", "token")
    assert (grpo.advantages, grpo.reduction, grpo.kl_reduction) == (
        "z_score",
        "sequence_mean",
        "sequence_mean",
    )
    assert (ppo.algorithm, ppo.kl_placement, ppo.kl_estimator) == ("ppo", "reward", "k1")
    assert (ppo.gamma, ppo.gae_lambda, ppo.clip_eps, ppo.reduction) == (1.0, 1.0, 0.2, "sequence_sum")


def test_a_controller_starts_at_the_run_s_beta():
    assert Run(beta=0.3).rule() == FixedBeta(0.3)
    for name, settings in RULES.items():
        rule = Run(beta=0.3, controller={"class": name} | settings).rule()
        assert type(rule).__name__ == name
        assert rule.beta == 0.3
        assert rule.unit == settings.get(
            "unit", "nats per token" if name == "PPOPenaltyBeta" else "nats per sequence"
        )
    run = Run(beta=0.3, controller={"class": "PIDBeta"} | RULES["PIDBeta"])
    assert run.rule() is not run.rule()  # a run that is over leaves the next one its start
    assert isinstance(run.rule(), PIDBeta)


FIT = {"class": "ZieglerBeta", "target_kl": 2.0, "horizon": 10.0}
CONTRADICTIONS = [
    # the option has no use
    ({"algorithm": "dpo", "clip_eps": 0.3}, "clip_eps is 0.3, but dpo .* has no use for it"),
    ({"algorithm": "rloo", "epochs": 2}, "epochs is 2, but rloo"),
    ({"algorithm": "reinforce", "group": 4}, "group is 4, but reinforce"),
    ({"algorithm": "exact", "kl_estimator": "k3"}, "kl_estimator is 'k3', but exact"),
    ({"algorithm": "dpo", "kl_placement": "loss"}, "kl_placement is 'loss', but dpo"),
    ({"algorithm": "dpo", "data": "population", "batch": 8}, "batch is 8, but dpo .* on the population"),
    ({"algorithm": "ppo", "advantages": "z_score"}, "advantages is 'z_score', but ppo"),
    ({"algorithm": "grpo", "value_rate": 0.1}, "value_rate is 0.1, but grpo"),
    ({"algorithm": "ppo", "label_smoothing": 0.1}, "label_smoothing is 0.1, but ppo"),
    ({"algorithm": "dpo", "simpo_gamma": 0.1}, "simpo_gamma is 0.1, but dpo"),
    ({"layers": 2}, "layers is 2, but ppo with a tabular policy"),
    ({"algorithm": "dpo", "kl_ratio": "token"}, "kl_ratio is 'token', but dpo .* has no use for it"),
    ({"algorithm": "sft", "policy": "gpt", "ref_steps": 10}, "ref_steps is 10, but sft"),
    ({"algorithm": "ppo", "optimiser": "natural"}, "optimiser is 'natural', but ppo"),
    # numbers
    ({"beta": -0.1}, "beta is -0.1"),
    ({"beta": float("nan")}, "beta is nan"),
    ({"beta": float("inf")}, "beta is inf"),
    ({"algorithm": "dpo", "beta": 0.0}, "beta is 0.0; a finite number above 0"),
    ({"rate": 0.0}, "rate is 0.0"),
    ({"steps": 0}, "steps is 0; at least 1"),
    ({"seed": -1}, "seed is -1; from 0 to"),
    ({"world_seed": 2**63}, "world_seed is 9223372036854775808; from 0 to"),
    ({"policy": "gpt", "ref_steps": -1}, "ref_steps is -1"),
    ({"exact_every": 0}, "exact_every is 0"),
    ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ({"gamma": 1.5}, "gamma is 1.5; a number from 0 to 1"),
    ({"gae_lambda": float("nan")}, "gae_lambda is nan"),
    ({"flip": 0.5}, "flip is 0.5; from 0 to below 0.5"),
    ({"algorithm": "dpo", "label_smoothing": 0.5}, "label_smoothing is 0.5"),
    ({"clip_eps": 0.0}, "clip_eps is 0.0"),
    ({"value_rate": 0.0}, "value_rate is 0.0"),
    ({"optimum_beta": 0.0}, "optimum_beta is 0.0"),
    ({"max_gradient_norm": 0.0}, "max_gradient_norm is 0.0"),
    # data
    ({"algorithm": "ppo", "data": "fixed"}, "data is 'fixed', but ppo learns from 'rollouts'"),
    (
        {"algorithm": "dpo", "data": "rollouts"},
        "data is 'rollouts', but dpo learns from 'population' or 'fresh' or 'fixed'",
    ),
    ({"algorithm": "exact", "data": "fresh"}, "data is 'fresh', but exact learns from 'population'"),
    ({"batch": 0}, "batch is 0; at least 1"),
    ({"algorithm": "kto", "batch": 1}, "batch is 1; at least 2"),
    (
        {"algorithm": "rloo", "batch": 10, "group": 4},
        "batch is 10, which 1 minibatches of whole groups of 4 do not divide. Set a multiple of 4",
    ),
    ({"batch": 10, "minibatches": 4}, "batch is 10, which 4 minibatches"),
    (
        {"algorithm": "grpo", "batch": 24, "group": 4, "minibatches": 4},
        "batch is 24, which 4 minibatches of .* Set a multiple of 16",
    ),
    ({"algorithm": "rloo", "group": 1}, "group is 1, but rloo compares"),
    ({"algorithm": "grpo", "group": 1}, "group is 1, but grpo compares"),
    ({"algorithm": "dpo", "reward": "proxy"}, "reward is 'proxy', but dpo"),
    # KL
    ({"kl_placement": "none"}, "kl_placement is 'none', but ppo has a KL. To do without it set beta=0"),
    (
        {"kl_level": "sequence"},
        "kl_level is 'sequence', which only a KL in the loss has. Set kl_placement='loss'",
    ),
    ({"kl_correction": "stopgrad"}, "kl_correction is 'stopgrad', which"),
    ({"kl_reduction": "token_mean"}, "kl_reduction is 'token_mean', which"),
    ({"kl_ratio": "token"}, "kl_ratio is 'token', which"),
    ({"kl_estimator": "full"}, "kl_estimator is 'full', a sum that depends on the policy directly"),
    (
        {"kl_placement": "loss", "kl_estimator": "full", "kl_level": "sequence"},
        "kl_level is 'sequence', but .*'full' is a sum at every prefix",
    ),
    (
        {"kl_placement": "loss", "kl_estimator": "full", "kl_correction": "stopgrad"},
        "kl_correction is 'stopgrad', but .*'full' is a sum at every",
    ),
    (
        {"algorithm": "grpo", "kl_level": "sequence"},
        "kl_reduction is 'sequence_mean', but a sequence-level term",
    ),
    ({"kl_placement": "loss", "kl_ratio": "token"}, "kl_ratio is 'token', which only a correction takes"),
    (
        {"kl_placement": "loss", "kl_level": "sequence", "kl_correction": "stopgrad", "kl_ratio": "prefix"},
        "kl_ratio is 'prefix', but a sequence-level term has the ratio of the sequence",
    ),
    # controllers
    ({"controller": {"class": "Thermostat"}}, "class 'Thermostat'; one of FixedBeta"),
    ({"controller": {"target_kl": 1.0}}, "class None; one of"),
    (
        {"controller": {"class": "ZieglerBeta", "beta": 1.0}},
        "controller has 'beta', which is beta of the run",
    ),
    ({"controller": {"class": "AnnealedBeta", "start": 1.0}}, "controller has 'start', which is beta"),
    ({"controller": {"class": ["FixedBeta"]}}, r"class \['FixedBeta'\]; one of FixedBeta"),
    (
        {"controller": {"class": "ZieglerBeta", "speed": 1.0}},
        "controller: missing a required argument: 'target_kl'",
    ),
    ({"controller": FIT | {"speed": 1.0}}, "'speed'. Settings of ZieglerBeta are target_kl, horizon"),
    (
        {"controller": FIT | {"target_kl": "2"}},
        "controller: .*'target_kl'.* '2' .*float.* Settings of ZieglerBeta",
    ),
    (
        {"controller": FIT | {"target_kl": -2.0}},
        "controller: target_kl is -2.0; a finite number above 0",
    ),
    ({"beta": 0.0, "controller": {"class": "ZieglerBeta", "target_kl": 1.0, "horizon": 9.0}}, "beta is 0.0"),
    (
        {"algorithm": "dpo", "controller": {"class": "FixedBeta"}},
        "controller is .*FixedBeta.*, but dpo samples nothing",
    ),
    (
        {"algorithm": "exact", "controller": {"class": "PPOPenaltyBeta", "target_kl": 0.01}},
        "controller is .*, which hears KL",
    ),
    # machine
    ({"dtype": "bfloat16"}, "dtype is 'bfloat16', in which only a gpt computes"),
    ({"device": "mps"}, "device is 'mps', which has no float64. Set dtype='float32'"),
    ({"device": "mps:0"}, "device is 'mps:0', which has no float64"),
    ({"device": "gpu"}, "device is 'gpu', which names no device of torch. Set device='cpu'"),
    ({"device": "cuda:x"}, "device is 'cuda:x', which names no device"),
    (
        {"algorithm": "exact", "policy": "gpt", "optimiser": "natural"},
        "'natural', which moves the logits of a table, but the policy is a gpt",
    ),
]


@pytest.mark.parametrize(
    ("options", "message"), CONTRADICTIONS, ids=[message[:40] for _, message in CONTRADICTIONS]
)
def test_a_contradiction_is_refused_with_its_reason(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Run(**options)
    said = str(caught.value)
    assert said.split()[0].rstrip(":") in Run.__dataclass_fields__, "it begins with the option"
    assert "\n" not in said
    last = said.removesuffix(".").rsplit(". ")[-1]
    assert last.endswith("expected") or last.split()[0] in ("Leave", "Set", "Take", "To", "Settings"), last


@pytest.mark.parametrize(
    "options",
    [
        {"kl_placement": "loss", "kl_estimator": "full"},
        {"kl_placement": "loss", "kl_level": "sequence", "kl_correction": "stopgrad"},
        {"kl_placement": "loss", "kl_correction": "differentiable", "kl_ratio": "prefix"},
        {"kl_estimator": "k3"},
        {"beta": 0.0},
        {"algorithm": "exact", "beta": 0.0},
        {"algorithm": "exact", "optimiser": "natural"},
        {"algorithm": "exact", "controller": {"class": "AnnealedBeta"} | RULES["AnnealedBeta"]},
        {"algorithm": "dpo", "clip_eps": 0.0},  # what an unused option is worth anyway
        {"policy": "gpt", "dtype": "bfloat16"},
        {"device": "mps", "dtype": "float32"},
        {"device": "cuda:7"},  # of another machine: a run may be read on one that lacks it
        {"seed": 2**63 - 1, "world_seed": 0},
        {"controller": {"class": "ZieglerBeta", "target_kl": 2, "horizon": 10}},  # whole numbers, as JSON has
    ],
)
def test_what_only_looks_like_a_contradiction_is_allowed(options):
    assert Run.from_json(Run(**options).to_json()) == Run(**options)


def test_a_word_or_type_that_does_not_exist_is_refused():
    for wrong in (
        {"algorithm": "trpo"},
        {"policy": "mamba"},
        {"batch": None},
        {"kl_estimator": "k4"},
        {"task": "chess"},
        {"steps": 1.5},
        {"seed": "0"},
    ):
        with pytest.raises(jaxtyping.TypeCheckError, match=next(iter(wrong))):
            Run(**wrong)
