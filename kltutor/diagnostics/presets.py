"""What libraries call the columns of a log, in which unit and with which sign, as read in their source."""

from dataclasses import dataclass

# Heads that a tracker or an export puts before a name.
HEADS = ("train/",)


@dataclass(frozen=True)
class Preset:
    """The names of one trainer.

    Attributes:
        what: trainer and version, and where its names were read.
        names: of each canonical column, the names that may hold it, the first that a file has counting.
        signs: names of which at least one marks a file as this trainer's, no other preset having it.
        differences: a canonical column as one name less another.
        remarks: what a reader of a report should know of the units.
    """

    what: str
    names: dict[str, tuple[str, ...]]
    signs: tuple[str, ...]
    differences: dict[str, tuple[str, str]]
    remarks: tuple[str, ...]


def _shared(*remarks: str, kl: str, what: str) -> Preset:
    """Return a preset of TRL's trainers that sample groups; they share all names and differ in the KL."""
    names = {
        "step": ("step", "global_step"),
        "reward": ("reward",),
        kl: ("kl",),
        "length": ("completions/mean_length",),
        "entropy_token": ("entropy",),
        "clip_fraction": ("clip_ratio/region_mean",),
    }
    # `reward_std` was the spread within groups in earlier versions, and is that over all completions now.
    return Preset(what, names, (), {}, ("entropy is a mean over tokens", *remarks))


PRESETS = {
    "trl-grpo": _shared(
        "kl is the token mean of k3 against the reference, never negative; it is logged only if beta is not "
        "0",
        "no KL between old and new policy is logged, nor beta",
        kl="k3_token",
        what="TRL GRPOTrainer 1.16.0, trl/trainer/grpo_trainer.py",
    ),
    "trl-rloo": _shared(
        "kl is the token mean of k1, old policy against the reference; it is logged only if beta is not 0",
        "beta is not logged",
        kl="kl_token",
        what="TRL RLOOTrainer 1.16.0, trl/trainer/rloo_trainer.py",
    ),
    "trl-ppo": Preset(
        what="TRL PPOTrainer, experimental until it was removed, trl/experimental/ppo/ppo_trainer.py",
        names={
            "step": ("step", "global_step"),
            "episodes": ("episode",),
            "reward": ("objective/scores",),
            "kl": ("objective/kl",),
            "penalty": ("objective/non_score_reward",),
            "kl_step": ("policy/approxkl_avg",),
            "clip_fraction": ("policy/clipfrac_avg",),
        },
        signs=("objective/non_score_reward", "objective/scores"),
        differences={},
        remarks=(
            "objective/kl is a sum over tokens, of k1 unless kl_estimator was k3",
            "policy/approxkl_avg is k2 of a step, a mean that counts padding",
            "objective/entropy is left out: it counts -1 for every position of padding",
        ),
    ),
    "verl": Preset(
        what="verl 0.9.1, verl/trainer/ppo/ray_trainer.py, metric_utils.py, core_algos.py",
        names={
            "step": ("step", "training/global_step"),
            "beta": ("actor/reward_kl_penalty_coeff", "actor/kl_coef"),
            "reward": ("critic/score/mean",),
            "kl_token": ("actor/reward_kl_penalty",),
            "k3_token": ("actor/kl_loss",),
            "length": ("response_length/mean",),
            "entropy_token": ("actor/entropy",),
            "kl_step": ("actor/ppo_kl",),
            "clip_fraction": ("actor/pg_clipfrac",),
        },
        signs=("actor/reward_kl_penalty", "actor/ppo_kl", "critic/score/mean"),
        differences={"penalty": ("critic/rewards/mean", "critic/score/mean")},
        remarks=(
            "actor/ppo_kl is old against new policy, a token mean of k1, and no KL from the reference",
            "actor/reward_kl_penalty is a mean over sequences of the token mean, of k1 unless kl_penalty was "
            "set otherwise",
            "actor/kl_loss is k3 unless kl_loss_type was set otherwise, each token clamped to ±10",
            "penalty is critic/rewards/mean less critic/score/mean",
        ),
    ),
    "openrlhf": Preset(
        what="OpenRLHF 0.11.2, openrlhf/trainer/ppo_trainer.py, ray/ppo_actor.py, experience_maker.py",
        names={
            "step": ("step", "global_step"),
            "reward": ("rollout/reward_mean", "reward"),
            "reward_sd": ("rollout/reward_std",),
            "kl_token": ("logprobs_diff",),
            "length": ("rollout/response_length_mean", "response_length"),
            "entropy_token": ("entropy_loss",),
            "kl_step": ("ppo_kl",),
            "clip_fraction": ("ppo_clip_ratio",),
            "batch": ("rollout/num_samples",),
        },
        signs=("logprobs_diff", "ppo_clip_ratio", "ppo_kl"),
        differences={},
        remarks=(
            "logprobs_diff is log π - log ref, a mean over sequences of the token mean; kl is left out, "
            "since its estimator is a setting and its values are clamped to ±10",
            "ppo_kl is old against new policy, a token mean of k1, and no KL from the reference",
            "beta is not logged",
        ),
    ),
}


def recognise(names: set[str], kl_goes_negative: bool) -> str | None:
    """Return the preset whose names a file has, or None if none or several fit.

    Args:
        names: of the file's columns, without heads.
        kl_goes_negative: a column "kl" has a value below 0, which k3 never has.
    """
    found = [name for name, preset in PRESETS.items() if names & set(preset.signs)]
    if not found and {"kl", "completions/mean_length"} <= names and kl_goes_negative:
        return "trl-rloo"
    return found[0] if len(found) == 1 else None
