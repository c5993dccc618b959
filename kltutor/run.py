"""The configuration of a run: one flat record that names everything a trained policy depends on.

What is left out takes the default of its algorithm; what the algorithm has no use for is refused, so that a
`Run` says what happens and nothing else.
"""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import torch

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
        if not isinstance(name, str) or name not in CONTROLLERS:
            raise ValueError(f"controller has class {name!r}; one of {', '.join(CONTROLLERS)} is expected.")
        first, *taken = inspect.signature(CONTROLLERS[name]).parameters  # the first one is beta itself
        if first in settings:
            raise ValueError(f"controller has {first!r}, which is beta of the run. Leave it out there.")
        try:
            return cast(Controller, CONTROLLERS[name](self.beta, **settings))
        except TypeError as error:
            said = one_line(error).rstrip(".")
            raise ValueError(f"controller: {said}. Settings of {name} are {', '.join(taken)}.") from None
        except ValueError as error:
            raise ValueError(f"controller: {error}") from None

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


def one_line(error: Exception) -> str:
    """Return what an error says on one line; of a type error only what it says about the argument."""
    said = str(error).split("\n---")[0].splitlines()
    return " ".join(said[1:] or said)


def _check_numbers(run: Run) -> None:
    check_nonnegative(beta=run.beta, ref_scale=run.ref_scale, simpo_gamma=run.simpo_gamma)
    check_nonnegative(ref_steps=run.ref_steps)
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
    for name in ("seed", "world_seed"):
        if not 0 <= getattr(run, name) < 2**63:
            raise ValueError(f"{name} is {getattr(run, name)}; from 0 to 2**63 - 1 is expected.")
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
        listed = " or ".join(map(repr, choices))
        _refuse(run, "data", f"but {run.algorithm} learns from {listed}", "Set it so, or leave it out")
    if run.data != "population":
        fewest = 2 if run.algorithm == "kto" else 1  # KTO shows a completion to the prompt of another
        if run.batch < fewest:
            raise ValueError(f"batch is {run.batch}; at least {fewest} is expected.")
        parts = run.group * run.minibatches
        if run.batch % parts:
            why = f"which {run.minibatches} minibatches of whole groups of {run.group} do not divide"
            _refuse(run, "batch", why, f"Set a multiple of {parts}")
    if run.algorithm in ("rloo", "grpo") and run.group < 2:
        _refuse(run, "group", f"but {run.algorithm} compares completions to one prompt", "Set 2 or more")
    if run.reward == "proxy" and run.algorithm in (*PAIRWISE, "sft"):
        why = f"but {run.algorithm} learns from the data that a proxy is fitted to and sees no reward"
        _refuse(run, "reward", why, "Leave it out")


def _check_kl(run: Run) -> None:
    sampling = run.algorithm in SAMPLING
    if sampling and run.kl_placement == "none":
        _refuse(run, "kl_placement", f"but {run.algorithm} has a KL", "To do without it set beta=0 instead")
    for name in ("kl_level", "kl_reduction", "kl_correction", "kl_ratio"):
        if run.kl_placement != "loss" and getattr(run, name) != UNUSED[name]:
            _refuse(
                run, name, "which only a KL in the loss has", "Set kl_placement='loss', or leave this out"
            )
    if run.kl_estimator == "full":
        if run.kl_placement != "loss":
            why = "a sum that depends on the policy directly; as a reward, a number, it loses that gradient"
            _refuse(run, "kl_estimator", why, "Set kl_placement='loss'")
        for name in ("kl_level", "kl_correction"):
            if getattr(run, name) != UNUSED[name]:
                usual = f"Set {name}={UNUSED[name]!r}, or kl_estimator='k1', 'k2' or 'k3'"
                _refuse(run, name, "but the estimator 'full' is a sum at every prefix", usual)
    if run.kl_level == "sequence" and run.kl_reduction != "sequence_sum":
        remedy = "Set kl_reduction='sequence_sum', or kl_level='token'"
        _refuse(run, "kl_reduction", "but a sequence-level term is no mean over tokens", remedy)
    if run.kl_ratio is not None and run.kl_correction == "none":
        remedy = "Set kl_correction='stopgrad' or 'differentiable', or leave this out"
        _refuse(run, "kl_ratio", "which only a correction takes", remedy)
    if run.kl_level == "sequence" and run.kl_ratio not in (None, "sequence"):
        remedy = "Set kl_ratio='sequence', or leave it out"
        _refuse(run, "kl_ratio", "but a sequence-level term has the ratio of the sequence", remedy)
    rule = run.rule()
    if run.controller is not None and not sampling and run.algorithm != "exact":
        why = f"but {run.algorithm} samples nothing from which it could hear the KL"
        _refuse(run, "controller", why, "Leave it out")
    if rule.measures == "old‖policy" and not sampling:
        why = "which hears KL(old ‖ policy) of a batch, but exact ascent has none"
        _refuse(run, "controller", why, "Take another class, such as ZieglerBeta")


def _check_machine(run: Run) -> None:
    if run.optimiser == "natural" and run.policy != "tabular":
        why = f"which moves the logits of a table, but the policy is a {run.policy}"
        _refuse(run, "optimiser", why, "Set policy='tabular', or optimiser='adam'")
    if run.policy == "tabular" and run.dtype == "bfloat16":
        _refuse(run, "dtype", "in which only a gpt computes", "Set dtype='float32', or policy='gpt'")
    try:
        kind = torch.device(run.device).type
    except RuntimeError:
        _refuse(
            run, "device", "which names no device of torch", "Set device='cpu', 'cuda', 'cuda:1' or 'mps'"
        )
    if kind == "mps" and run.dtype == "float64":
        _refuse(run, "device", "which has no float64", "Set dtype='float32', or device='cpu'")


def _refuse(run: Run, name: str, why: str, remedy: str) -> NoReturn:
    """Raise the ValueError of an option: what came, what is wrong with it, what to do."""
    raise ValueError(f"{name} is {getattr(run, name)!r}, {why}. {remedy}.")
