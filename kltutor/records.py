"""What a run reports: exact quantities beside those that a practitioner would have logged."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kltutor import exact
from kltutor.algorithms import Comparison, shaped_rewards
from kltutor.estimators import k3
from kltutor.masking import masked_sum, reduce
from kltutor.optimum import optimal_policy
from kltutor.placement import gae
from kltutor.preference import preference_metrics
from kltutor.rollout import Now, Rollout
from kltutor.run import Run
from kltutor.tasks import Policy
from kltutor.world import World


@dataclass(frozen=True)
class Exact:
    """Sums over all completions, in float64.

    Attributes:
        kl: KL(policy ‖ ref), nats per sequence.
        gold: E[gold reward]. proxy: E[proxy reward].
        objective: J = E[reward trained on] - beta·KL(policy ‖ ref).
        kl_to_optimum: KL(policy ‖ π*), nats per sequence, with the optimum of J; None if beta is 0.
        length: E[length] in tokens.
        entropy: of the completions, nats per sequence.
    """

    kl: float
    gold: float
    proxy: float
    objective: float
    kl_to_optimum: float | None
    length: float
    entropy: float


@dataclass(frozen=True)
class Record:
    """The state after `step` updates, and the update that is made from there.

    Attributes:
        step: how many steps have been made.
        episodes: completions that have been learnt from, this step's included.
        seconds: since the start, the time before a checkpoint included; the one field that no seed fixes.
        beta: in force in this step.
        rate: of the optimiser in this step.
        loss: its mean over the updates of this step; None in the last record, which makes none.
        gradient_norm: likewise, of the policy's parameters, before it is shortened.
        sampled: what the batch of this step says, by name; empty where there is none.
        exact: on steps that `exact_every` divides, and the last; else None.
    """

    step: int
    episodes: int
    seconds: float
    beta: float
    rate: float
    loss: float | None
    gradient_norm: float | None
    sampled: dict[str, float]
    exact: Exact | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record in types that JSON can hold."""
        return dataclasses.asdict(self)


# Title and unit of what is exact and of what batches say, where the reward trained on is called "reward".
QUANTITIES = {
    "kl_to_optimum": ("KL(π ‖ π*)", "nats per sequence"),
    "kl": ("KL(π ‖ ref)", "nats per sequence"),
    "kl_token": ("KL(π ‖ ref) / E[length]", "nats per token"),
    "kl_sd": ("sum of k1, standard deviation", "nats per sequence"),
    "k3": ("sum of k3 of the tokens", "nats per sequence"),
    "penalty": ("what the KL adds to the reward", "reward units"),
    "gold": ("E[gold reward]", "reward units"),
    "proxy": ("E[proxy reward]", "reward units"),
    "objective": ("J = E[reward] − beta · KL", "reward units"),
    "length": ("E[length]", "tokens"),
    "entropy": ("entropy", "nats per sequence"),
    "reward_sd": ("reward, standard deviation", "reward units"),
    "kl_step": ("KL(old ‖ new) of the step", "nats"),
    "clip_fraction": ("clipped", "share of tokens"),
    "value_error": ("error of the values", "squared reward units"),
    "chosen_reward": ("implicit reward, chosen", "reward units"),
    "rejected_reward": ("implicit reward, rejected", "reward units"),
    "margin": ("margin", "reward units"),
    "accuracy": ("accuracy", "share of pairs"),
}


@torch.no_grad()
def measure(run: Run, world: World, policy: Policy, beta: float) -> Exact:
    """Return the exact quantities of a policy at a coefficient of the KL."""
    task, ref_logp = world.task, world.ref_seq_logp
    logp = exact.seq_logp(policy, task).cpu()

    def mean(values: Tensor) -> float:
        return exact.expectation(values, logp, task).item()

    from_ref, reward = exact.mean_kl(logp, ref_logp, task).item(), world.reward(run)
    against = run.optimum_beta or beta
    best = optimal_policy(ref_logp, reward, against)[0] if against > 0 else None
    return Exact(
        kl=from_ref,
        gold=mean(task.reward),
        proxy=mean(world.proxy),
        objective=mean(reward) - beta * from_ref,
        kl_to_optimum=None if best is None else exact.mean_kl(logp, best, task).item(),
        length=mean(task.mask.sum(-1).double().expand_as(logp)),
        entropy=-mean(logp),
    )


@torch.no_grad()
def rollout_metrics(run: Run, beta: float, rollout: Rollout) -> dict[str, float]:
    """Return what a batch says before it is learnt from.

    ``kl`` is the mean over completions of the sum of k1, nats per sequence, and ``kl_sd`` the standard
    deviation of that sum; ``kl_token`` the mean of k1 over tokens; ``k3`` the mean of the sum of the tokens'
    k3. ``penalty`` is what the KL really added to the reward of a completion, where it is placed there:
    -beta·kl with k1. ``reward`` is the mean score before any KL, ``length`` in tokens, ``entropy`` in nats
    per sequence.
    """
    log_ratio = rollout.logp - rollout.ref_logp
    sums = masked_sum(log_ratio, rollout.mask)
    found = {
        "kl": sums.mean().item(),
        "kl_token": reduce(log_ratio, rollout.mask, "token_mean").item(),
        "kl_sd": sums.std(correction=0).item(),
        "k3": reduce(k3(rollout.logp, rollout.ref_logp), rollout.mask, "sequence_sum").item(),
    }
    if run.kl_placement == "reward":
        returns = masked_sum(shaped_rewards(run, beta, rollout), rollout.mask)
        found["penalty"] = (returns - rollout.scores).mean().item()
    return found | {
        "reward": rollout.scores.mean().item(),
        "reward_sd": rollout.scores.std(correction=0).item(),
        "length": rollout.mask.sum(-1).double().mean().item(),
        "entropy": -masked_sum(rollout.logp, rollout.mask).mean().item(),
    }


@torch.no_grad()
def update_metrics(run: Run, beta: float, rollout: Rollout, now: Now) -> dict[str, float]:
    """Return what one update shows: ``clip_fraction``, and ``value_error`` in squared reward units."""
    found = {}
    if run.clip_eps:
        outside = ((now.logp - rollout.logp).exp() - 1).abs() > run.clip_eps
        found["clip_fraction"] = reduce(outside.to(now.logp), rollout.mask, "token_mean").item()
    if now.values is not None:
        rewards = shaped_rewards(run, beta, rollout)
        to_go = gae(rewards, torch.zeros_like(rewards), rollout.mask, run.gamma, 1.0)
        found["value_error"] = reduce((now.values - to_go).square(), rollout.mask, "token_mean").item()
    return found


@torch.no_grad()
def pair_metrics(beta: float, pairs: Comparison) -> dict[str, float]:
    """Return `preference_metrics` of the pairs, nothing if none counts."""
    if not pairs.weights.any():
        return {}
    chosen, rejected = pairs.chosen, pairs.rejected
    sides = chosen.seq_logp, rejected.seq_logp, chosen.ref_seq_logp, rejected.ref_seq_logp
    return preference_metrics(*sides, beta, weights=pairs.weights)
