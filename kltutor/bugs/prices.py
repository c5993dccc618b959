"""Bugs of beta: a price per nat that is paid in another unit than it was set in."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor import exact
from kltutor.bugs import Code, bug
from kltutor.bugs.lab import MASK, POLICY, REF, SCORES, TASK, kl_to_ref, rows, seq_logp
from kltutor.masking import masked_mean, masked_sum
from kltutor.optimum import optimal_policy
from kltutor.policy_gradient import group_advantages

BETA = 1.0  # reward units per nat of the sequence


def price_of_the_mean(
    scores: Float[Tensor, " batch"],
    logp: Float[Tensor, "batch time"],
    ref_logp: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    beta: float,
) -> Float[Tensor, " batch"]:
    """Charge the mean over tokens, though beta is a price per nat of the sequence."""
    return scores - beta * masked_mean(logp - ref_logp, mask)


def price_of_the_sum(
    scores: Float[Tensor, " batch"],
    logp: Float[Tensor, "batch time"],
    ref_logp: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    beta: float,
) -> Float[Tensor, " batch"]:
    """Charge every nat of the sequence."""
    return scores - beta * masked_sum(logp - ref_logp, mask)


def _kl_of_optimum(scale: float = 1.0) -> float:
    return kl_to_ref(optimal_policy(seq_logp(REF), scale * TASK.reward, BETA)[0])


def _scaled() -> dict[str, float]:
    return {"the same with the reward times 10 and beta as it was, nats per sequence": _kl_of_optimum(10.0)}


@bug(
    "BUG-03",
    title="beta is a price per nat of the sequence, and is charged on the mean over tokens.",
    symptom="The policy ends many times as far from the reference, in nats per sequence, as beta allows.",
    cure="Charge the sum over tokens. When the reward is rescaled, rescale beta with it: its unit is reward "
    "per nat.",
    quantity="KL(policy ‖ ref) after training, nats per sequence",
    broken=price_of_the_mean,
    cured=price_of_the_sum,
    truth=_kl_of_optimum,
    also=_scaled,
    thread="BY571/SCoRe#4",
)
def kl_after_training(code: Code) -> float:
    """Return the KL of the policy at which the mean of what the code pays is largest."""
    lengths = TASK.mask.sum(-1, keepdim=True)

    def spread(table: Float[Tensor, "prompt completion"]) -> Float[Tensor, "row time"]:
        """Share a log-probability among the tokens: only its sum counts here."""
        shared: Tensor = table[:, :, None] / lengths * TASK.mask
        return shared.flatten(0, 1)

    def loss(logp: Float[Tensor, "prompt completion"]) -> Float[Tensor, ""]:
        paid = code(SCORES, spread(logp), spread(seq_logp(REF)), MASK, BETA)
        return -exact.expectation(paid.view_as(logp), logp, TASK)

    return kl_to_ref(exact.minimise(loss, seq_logp(REF)))


def priced_after_z_score(
    scores: Float[Tensor, " batch"],
    log_ratio: Float[Tensor, " batch"],
    group: Int[Tensor, " batch"],
    beta: float,
) -> Float[Tensor, " batch"]:
    """Set beta in reward units, and charge it on advantages that have none."""
    return group_advantages(scores, group) - beta * log_ratio


def priced_before_z_score(
    scores: Float[Tensor, " batch"],
    log_ratio: Float[Tensor, " batch"],
    group: Int[Tensor, " batch"],
    beta: float,
) -> Float[Tensor, " batch"]:
    """Charge beta while scores are still in reward units."""
    return group_advantages(scores - beta * log_ratio, group)


CHOSEN = replace(TASK, score=lambda prompt, said, ended: float(ended and said == ("warm", "sweet")))


def _price() -> float:
    return BETA


def _spread_of_scores() -> dict[str, float]:
    scores = CHOSEN.reward[0]
    return {
        "share of successes": scores.mean().item(),
        "standard deviation of the scores, reward units": scores.std(correction=0).item(),
    }


@bug(
    "BUG-07",
    title="beta·KL in reward units is set against normalised advantages.",
    symptom="A nat costs beta times the standard deviation of the scores, in reward units: next to nothing "
    "for a prompt that is nearly always answered right, or nearly always wrong.",
    cure="Subtract beta·KL from the scores before they are normalised, or leave the standard deviation out.",
    quantity="price of a nat, reward units",
    broken=priced_after_z_score,
    cured=priced_before_z_score,
    truth=_price,
    also=_spread_of_scores,
    thread="NovaSky-AI/SkyRL#1262",
)
def price_of_a_nat(code: Code) -> float:
    """Return what a nat costs in the code's advantages, over what a unit of reward is worth in them."""
    scores, log_ratio = CHOSEN.reward[0], (rows(POLICY) - rows(REF)).sum(-1)[: CHOSEN.size]
    advantages = code(scores, log_ratio, torch.zeros(len(scores), dtype=torch.long), BETA)
    columns = torch.stack([scores, log_ratio, torch.ones_like(scores)], 1)
    worth, cost, _ = torch.linalg.lstsq(columns, advantages).solution.tolist()
    return float(-cost / worth)
