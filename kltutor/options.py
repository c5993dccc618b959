"""What each algorithm has a use for, and what it takes where nothing is said."""

from typing import Any, Literal

Algorithm = Literal["exact", "reinforce", "rloo", "ppo", "grpo", "dpo", "ipo", "kto", "simpo", "orpo", "sft"]
Data = Literal["rollouts", "population", "fresh", "fixed"]
Named = Literal["bandit", "small", "phrases", "given"]
Placement = Literal["reward", "loss", "none"]
PolicyKind = Literal["tabular", "gpt"]
Precision = Literal["float64", "float32", "bfloat16"]

SAMPLING = ("reinforce", "rloo", "ppo", "grpo")
PAIRWISE = ("dpo", "ipo", "kto", "simpo", "orpo")

# The value of an option for an algorithm that has no use for it.
UNUSED: dict[str, Any] = {
    "batch": 0,
    "group": 1,
    "epochs": 1,
    "minibatches": 1,
    "kl_placement": "none",
    "kl_estimator": "k1",
    "kl_level": "token",
    "kl_reduction": "sequence_sum",
    "kl_correction": "none",
    "kl_ratio": None,
    "reduction": "sequence_sum",
    "advantages": "dr_grpo",
    "clip_eps": 0.0,
    "gamma": 1.0,
    "gae_lambda": 1.0,
    "value_rate": 0.0,
    "label_smoothing": 0.0,
    "simpo_gamma": 0.0,
    "optimiser": "adam",
    "layers": 0,
    "heads": 0,
    "width": 0,
    "ref_steps": 0,
}
_KL = {name: UNUSED[name] for name in UNUSED if name.startswith("kl_")} | {"kl_placement": "reward"}
_ADAM = {"rate": 0.05, "decay": "linear"}
_SAMPLED = _KL | _ADAM | {"data": "rollouts", "batch": 256, "steps": 200, "reduction": "sequence_sum"}
_SHOWN = {"data": "fresh", "batch": 2048, "steps": 150, "rate": 0.1, "decay": "linear"}
_CLIPPED = {"clip_eps": 0.2, "epochs": 1, "minibatches": 1}
_PUBLISHED_GRPO = {
    "advantages": "z_score",
    "reduction": "sequence_mean",
    "kl_placement": "loss",
    "kl_estimator": "k3",
    "kl_reduction": "sequence_mean",
}
DEFAULTS: dict[Algorithm, dict[str, Any]] = {
    "exact": _ADAM | {"data": "population", "steps": 100, "rate": 0.1, "optimiser": "adam"},
    "reinforce": _SAMPLED | {"gamma": 1.0},
    "rloo": _SAMPLED | {"group": 4},
    "ppo": _SAMPLED
    | _CLIPPED
    | {"epochs": 2, "minibatches": 2, "steps": 100, "gamma": 1.0, "gae_lambda": 1.0, "value_rate": 0.05},
    "grpo": _SAMPLED | _CLIPPED | _PUBLISHED_GRPO | {"group": 8},
    "dpo": _SHOWN | {"batch": 4096, "label_smoothing": 0.0},
    "ipo": _SHOWN,
    "kto": _SHOWN,
    "simpo": _SHOWN | {"simpo_gamma": 0.5},
    "orpo": _SHOWN,
    "sft": _SHOWN,
}
GPT: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "ref_steps": 300, "rate": 0.003}
# A completion that is drawn moves all others too: more of them, more steps, and a critic that keeps up.
GPT_OWN: dict[Algorithm, dict[str, Any]] = {
    "exact": {"steps": 300},
    "reinforce": {"batch": 512},
    "rloo": {"batch": 512},
    "ppo": {"batch": 512, "steps": 200, "minibatches": 1, "value_rate": 0.1},
    "grpo": {"batch": 512},
}


def used_by(algorithm: Algorithm, policy: PolicyKind, task: Named, data: Data | None) -> dict[str, Any]:
    """Return the options that such a run has a use for, with their defaults."""
    used = DEFAULTS[algorithm] | (GPT | GPT_OWN.get(algorithm, {}) if policy == "gpt" else {})
    if task == "phrases" and algorithm in SAMPLING:
        used |= {"batch": 4096, "steps": 200}  # 32 times as many completions: each is drawn less often
    unused = {"ref_steps"} if algorithm == "sft" else set()
    unused |= {"batch"} if (data or used["data"]) == "population" else set()
    return {name: value for name, value in used.items() if name not in unused}
