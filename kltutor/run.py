"""The configuration of a run: one flat record that names everything a trained policy depends on.

What is left out takes the default of its algorithm; what the algorithm has no use for is refused, so that a
`Run` says what happens and nothing else.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from kltutor import tasks
from kltutor.checks import check_nonnegative, check_positive
from kltutor.controllers import PIDBeta, PPOPenaltyBeta, ZieglerBeta
from kltutor.masking import Reduction
from kltutor.options import (
    DEFAULTS,
    PAIRWISE,
    SAMPLING,
    UNUSED,
    Algorithm,
    Data,
    Named,
    Placement,
    PolicyKind,
    Precision,
    used_by,
)
from kltutor.placement import Correction, Level, Ratio
from kltutor.schedules import AnnealedBeta, Controller, FixedBeta
from kltutor.tasks import Task

TASKS = {"bandit": tasks.bandit, "small": tasks.small, "phrases": tasks.phrases}
CONTROLLERS: dict[str, type] = {
    rule.__name__: rule for rule in (FixedBeta, AnnealedBeta, PPOPenaltyBeta, ZieglerBeta, PIDBeta)
}
BY_DEFAULT: Any = None  # stands in a field until `__post_init__` fills it in


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a run depends on. An option left out takes the default of the algorithm.

    Attributes:
        task: by name; "given" is that of the `World` that `train` is handed.
        algorithm: "exact" climbs E[reward] - beta·KL itself, without samples; "sft" learns to write like
            the reference.
        policy: a free logit for every prefix, or a small transformer.
        reward: what is trained on, the gold reward or the proxy that was fitted to pairs.
        beta: reward units per nat; in the first update, if a controller moves it. For IPO it is τ, for ORPO
            λ; SimPO has no reference and means other units by it.
        optimum_beta: of the optimum that records compare with; None means the beta in force.
        controller: class and settings of the rule that moves beta, such as {"class": "ZieglerBeta",
            "target_kl": 2.0, "horizon": 2560}, less its beta. It hears the KL after each step, an exact step
            counting as one episode. None keeps beta.
        kl_placement: in the reward (a number) or in the loss (differentiated).
        kl_estimator: k1, k2, k3; in the loss also "full", the sum over the vocabulary at every prefix.
        kl_level, kl_reduction, kl_correction, kl_ratio: as in `kl_loss`; of a KL in the loss.
        batch: completions, or pairs, of one step.
        group: completions to one prompt.
        epochs, minibatches: passes over a batch, and parts of it, each an update.
        reduction: of the policy's loss over tokens, as in `reduce`.
        advantages: of GRPO, `group_advantages` or `dr_grpo_advantages`.
        clip_eps, gamma, gae_lambda: of PPO; GRPO clips too, REINFORCE discounts too.
        value_rate: Adam's rate for the values of PPO.
        data: "rollouts" of the policy; or completions of the reference: the whole "population" with exact
            weights, "fresh" draws at every step, or draws from a "fixed" sample of `data_size`.
        data_size: labelled pairs drawn from the reference once; the proxy is fitted to them.
        flip: probability that one of their labels is turned round.
        label_smoothing: of DPO. simpo_gamma: of SimPO.
        steps: number of steps. Records go from 0 to `steps`.
        rate: Adam's; for natural steps the step size in units of 1/beta, 1 solving a last token at once.
        decay: of the rate: none, or linearly to 0 over all steps.
        optimiser: Adam, or the natural steps of `exact.ascend` (exact, tabular).
        max_gradient_norm: longer gradients are shortened to it; None leaves them alone.
        layers, heads, width: of the transformer.
        ref_steps: of supervised training, after which the transformer is the reference.
        ref_scale: standard deviation of the tabular reference's logits.
        world_seed: of the reference and the data. seed: of everything that happens in training.
        device, dtype: where and in what; bfloat16 computes so over float32 parameters.
        exact_every: steps between exact measurements, besides the last step.
        checkpoint_every: steps between checkpoints, besides the last step.

    Raises:
        jaxtyping.TypeCheckError: a value is of another type, or no such choice exists.
        ValueError: a number is out of range, an option has no use, or two contradict each other.

    Example:
        >>> run = Run(algorithm="grpo", beta=0.1, batch=64)
        >>> run.kl_placement, run.kl_estimator, run.advantages
        ('loss', 'k3', 'z_score')
        >>> Run.from_json(run.to_json()) == run
        True
        >>> Run(algorithm="dpo", clip_eps=0.2)
        Traceback (most recent call last):
        ...
        ValueError: clip_eps is 0.2, but dpo with a tabular policy has no use for it. Leave it out.
    """

    task: Named = "small"
    algorithm: Algorithm = "ppo"
    policy: PolicyKind = "tabular"
    reward: Literal["gold", "proxy"] = "gold"
    beta: float = 0.5
    optimum_beta: float | None = None
    controller: dict[str, Any] | None = None
    kl_placement: Placement = BY_DEFAULT
    kl_estimator: Literal["k1", "k2", "k3", "full"] = BY_DEFAULT
    kl_level: Level = BY_DEFAULT
    kl_reduction: Reduction = BY_DEFAULT
    kl_correction: Correction = BY_DEFAULT
    kl_ratio: Ratio | None = None
    batch: int = BY_DEFAULT
    group: int = BY_DEFAULT
    epochs: int = BY_DEFAULT
    minibatches: int = BY_DEFAULT
    reduction: Reduction = BY_DEFAULT
    advantages: Literal["z_score", "dr_grpo"] = BY_DEFAULT
    clip_eps: float = BY_DEFAULT
    gamma: float = BY_DEFAULT
    gae_lambda: float = BY_DEFAULT
    value_rate: float = BY_DEFAULT
    data: Data = BY_DEFAULT
    data_size: int = 1000
    flip: float = 0.0
    label_smoothing: float = BY_DEFAULT
    simpo_gamma: float = BY_DEFAULT
    steps: int = BY_DEFAULT
    rate: float = BY_DEFAULT
    decay: Literal["constant", "linear"] = BY_DEFAULT
    optimiser: Literal["adam", "natural"] = BY_DEFAULT
    max_gradient_norm: float | None = None
    layers: int = BY_DEFAULT
    heads: int = BY_DEFAULT
    width: int = BY_DEFAULT
    ref_steps: int = BY_DEFAULT
    ref_scale: float = 1.0
    world_seed: int = 0
    seed: int = 0
    device: str = "cpu"
    dtype: Precision = "float64"
    exact_every: int = 20
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        """Fill in the defaults, then refuse what contradicts itself."""
        used = used_by(self.algorithm, self.policy, self.task, self.data)
        for name, neutral in UNUSED.items():
            given = getattr(self, name)
            if given is None:
                object.__setattr__(self, name, used.get(name, neutral))
            elif name not in used and given != neutral:
                what = f"{self.algorithm} with a {self.policy} policy"
                what += " on the population" if name == "batch" else ""
                raise ValueError(f"{name} is {given!r}, but {what} has no use for it. Leave it out.")
        for name in ("data", "steps", "rate", "decay"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, used[name])
        _check_numbers(self)
        _check_data(self)
        _check_kl(self)
        _check_machine(self)
        self.rule()

    def rule(self) -> Controller:
        """Return the controller at its start."""
        if self.controller is None:
            return FixedBeta(self.beta)
        settings = {name: value for name, value in self.controller.items() if name != "class"}
        name = self.controller.get("class")
        if name not in CONTROLLERS:
            raise ValueError(f"controller has class {name!r}; one of {', '.join(CONTROLLERS)} is expected.")
        first = "start" if name == "AnnealedBeta" else "beta"
        if first in settings:
            raise ValueError(f"controller has {first!r}, which is beta of the run. Leave it out there.")
        try:
            return cast(Controller, CONTROLLERS[name](**{first: self.beta}, **settings))
        except TypeError as error:
            raise ValueError(f"controller {self.controller} does not fit {name}: {error}.") from None

    def named_task(self) -> Task:
        """Return the task that is named; ValueError if it is "given"."""
        if self.task == "given":
            raise ValueError("task is 'given', so it comes with a World: pass one as world=.")
        return TASKS[self.task]()

    def to_json(self) -> str:
        """Return all fields, the defaults filled in, as JSON."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """Return the run of `to_json`; fields may be missing, none may be unknown."""
        fields = json.loads(text)
        unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"a Run has no {', '.join(sorted(unknown))}. Check the spelling.")
        return cls(**fields)


def _check_numbers(run: Run) -> None:
    check_nonnegative(beta=run.beta, ref_scale=run.ref_scale, simpo_gamma=run.simpo_gamma)
    check_positive(rate=run.rate)
    for name in ("optimum_beta", "max_gradient_norm"):
        if getattr(run, name) is not None:
            check_positive(**{name: getattr(run, name)})
    for name in ("steps", "data_size", "group", "epochs", "minibatches", "exact_every", "checkpoint_every"):
        if getattr(run, name) < 1:
            raise ValueError(f"{name} is {getattr(run, name)}; at least 1 is expected.")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(run, name) <= 1:
            raise ValueError(f"{name} is {getattr(run, name)}; a number from 0 to 1 is expected.")
    for name in ("flip", "label_smoothing"):
        if not 0 <= getattr(run, name) < 0.5:
            raise ValueError(f"{name} is {getattr(run, name)}; from 0 to below 0.5 is expected.")
    if "clip_eps" in DEFAULTS[run.algorithm]:
        check_positive(clip_eps=run.clip_eps)
    if run.algorithm == "ppo":
        check_positive(value_rate=run.value_rate)
    if run.algorithm in PAIRWISE or run.optimiser == "natural":
        check_positive(beta=run.beta)


def _check_data(run: Run) -> None:
    known = {"exact": ("population",)} | {name: ("rollouts",) for name in SAMPLING}
    choices = known.get(run.algorithm, ("population", "fresh", "fixed"))
    if run.data not in choices:
        raise ValueError(f"data is {run.data!r}; {run.algorithm} learns from {' or '.join(choices)}.")
    if run.data != "population":
        fewest = (
            2 if run.algorithm == "kto" else 1
        )  # KTO pairs the completion of one with the prompt of another
        if run.batch < fewest:
            raise ValueError(f"batch is {run.batch}; at least {fewest} is expected.")
        if run.batch % (run.group * run.minibatches):
            raise ValueError(
                f"batch is {run.batch}, which {run.minibatches} minibatches of whole groups of {run.group} "
                "do not divide."
            )
    if run.algorithm in ("rloo", "grpo") and run.group < 2:
        raise ValueError(f"group is 1; {run.algorithm} compares completions to one prompt, so at least 2.")
    if run.reward == "proxy" and run.algorithm in (*PAIRWISE, "sft"):
        raise ValueError(
            f"reward is 'proxy', but {run.algorithm} learns from the data that a proxy is fitted to and sees "
            "no reward. Leave it out."
        )


def _check_kl(run: Run) -> None:
    sampling = run.algorithm in SAMPLING
    if sampling and run.kl_placement == "none":
        raise ValueError("kl_placement is 'none'; to do without the KL set beta=0.")
    if run.kl_placement != "loss":
        for name in ("kl_level", "kl_reduction", "kl_correction", "kl_ratio"):
            if getattr(run, name) not in (None, UNUSED.get(name)):
                raise ValueError(f"{name} is {getattr(run, name)!r}, which a KL in the loss has only.")
        if run.kl_estimator == "full":
            raise ValueError(
                "kl_estimator is 'full', which depends on the policy directly; as a reward, a number, it "
                "would lose that gradient. Set kl_placement='loss'."
            )
    if run.kl_estimator == "full" and (run.kl_level == "sequence" or run.kl_correction != "none"):
        raise ValueError("kl_estimator 'full' is a sum at every prefix: level 'token', correction 'none'.")
    if run.kl_level == "sequence" and run.kl_reduction != "sequence_sum":
        raise ValueError(
            f"kl_reduction is {run.kl_reduction!r}; a sequence-level term is no mean over tokens, so "
            "'sequence_sum' is expected."
        )
    if run.kl_ratio is not None and run.kl_correction == "none":
        raise ValueError(f"kl_ratio is {run.kl_ratio!r}, which only a kl_correction uses.")
    if run.kl_level == "sequence" and run.kl_ratio not in (None, "sequence"):
        raise ValueError(f"kl_ratio is {run.kl_ratio!r}; a sequence-level term has that of the sequence.")
    rule = run.rule()
    if run.controller is not None and not sampling and run.algorithm != "exact":
        raise ValueError(f"{run.algorithm} samples nothing from which a controller could hear the KL.")
    if rule.measures == "old‖policy" and not sampling:
        raise ValueError("the controller measures KL(old ‖ policy), for which exact ascent has no batch.")


def _check_machine(run: Run) -> None:
    if run.optimiser == "natural" and run.policy != "tabular":
        raise ValueError("optimiser is 'natural', which needs a tabular policy.")
    if run.policy == "tabular" and run.dtype == "bfloat16":
        raise ValueError("dtype is 'bfloat16', in which only a gpt computes; a table is float64 or float32.")
    if run.device.startswith("mps") and run.dtype == "float64":
        raise ValueError("device mps has no float64; use dtype='float32', or device='cpu'.")
