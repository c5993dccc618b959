"""Bugs of beta: a price per nat that is paid in another unit than it was set in."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor import exact
from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
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


def betas() -> list[float]:
    """Return the coefficients of a plot, reward units per nat."""
    return [1.0, 1.4, 2.0, 4.0]


def _scaled() -> dict[str, float]:
    return {"the same with the reward times 10 and beta as it was, nats per sequence": _kl_of_optimum(10.0)}


def _kl_after_training(code: Code, beta: float) -> float:
    lengths = TASK.mask.sum(-1, keepdim=True)

    def spread(table: Float[Tensor, "prompt completion"]) -> Float[Tensor, "row time"]:
        """Share a log-probability among the tokens: only its sum counts here."""
        shared: Tensor = table[:, :, None] / lengths * TASK.mask
        return shared.flatten(0, 1)

    def loss(logp: Float[Tensor, "prompt completion"]) -> Float[Tensor, ""]:
        paid = code(SCORES, spread(logp), spread(seq_logp(REF)), MASK, beta)
        return -exact.expectation(paid.view_as(logp), logp, TASK)

    return kl_to_ref(exact.minimise(loss, seq_logp(REF)))


@bug(
    "BUG-03",
    title="beta is a price per nat of the sequence, and is charged on the mean over tokens.",
    symptom="The policy ends many times as far from the reference, in nats per sequence, as beta allows.",
    why="The mean divides a completion's log-ratio by its length, so a nat of a long completion costs "
    "a fraction of what it should.",
    cure="Charge the sum over tokens. When the reward is rescaled, rescale beta with it: its unit is reward "
    "per nat.",
    quantity="KL(policy ‖ ref) after training, nats per sequence",
    broken=price_of_the_mean,
    cured=price_of_the_sum,
    truth=_kl_of_optimum,
    line="return scores - beta * masked_mean(logp - ref_logp, mask)",
    finding="The leash is as many times longer as tokens",
    plot=Plot(
        x="beta [reward units per nat]",
        y="KL(policy ‖ ref) after training [nats per sequence]",
        points=betas,
        at=lambda code: [_kl_after_training(code, beta) for beta in betas()],
        x_scale="log",
    ),
    also=_scaled,
    thread="BY571/SCoRe#4",
)
def kl_after_training(code: Code) -> float:
    """Return the KL of the policy at which the mean of what the code pays is largest."""
    return _kl_after_training(code, BETA)


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


def _price_of_a_nat(code: Code, scores: Float[Tensor, " completion"]) -> float:
    log_ratio = (rows(POLICY) - rows(REF)).sum(-1)[: len(scores)]
    advantages = code(scores, log_ratio, torch.zeros(len(scores), dtype=torch.long), BETA)
    columns = torch.stack([scores, log_ratio, torch.ones_like(scores)], 1)
    worth, cost, _ = torch.linalg.lstsq(columns, advantages).solution.tolist()
    return float(-cost / worth)


def _successes() -> list[int]:
    return [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 38, 39]


def _prices(code: Code) -> list[float]:
    scores = (torch.arange(CHOSEN.size) < torch.tensor(_successes())[:, None]).double()
    return [_price_of_a_nat(code, row) for row in scores]


@bug(
    "BUG-07",
    title="beta·KL in reward units is set against normalised advantages.",
    symptom="A nat costs beta times the standard deviation of the scores, in reward units: next to nothing "
    "for a prompt that is nearly always answered right, or nearly always wrong.",
    why="A z-score has no unit, since the standard deviation was divided out, and beta times a "
    "log-ratio still has one. So the price of a nat depends on how much the answers to a prompt "
    "differ.",
    cure="Subtract beta·KL from the scores before they are normalised, or leave the standard deviation out.",
    quantity="price of a nat, reward units",
    broken=priced_after_z_score,
    cured=priced_before_z_score,
    truth=_price,
    line="return group_advantages(scores, group) - beta * log_ratio",
    finding="Cheapest where nearly all answers agree",
    plot=Plot(
        x="share of right answers [no unit]",
        y="price of a nat [reward units]",
        points=lambda: [count / CHOSEN.size for count in _successes()],
        at=_prices,
    ),
    also=_spread_of_scores,
    thread="NovaSky-AI/SkyRL#1262",
)
def price_of_a_nat(code: Code) -> float:
    """Return what a nat costs in the code's advantages, over what a unit of reward is worth in them."""
    return _price_of_a_nat(code, CHOSEN.reward[0])


def mean_logp(logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Average over tokens, so that long completions do not count for more."""
    total = (logp * mask).sum(-1)
    return total / mask.sum(-1)


def total_logp(
    logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Return the log-probability of the completion."""
    total = (logp * mask).sum(-1)
    return total


def _after_dpo(code: Code, beta: float) -> float:
    """Return the KL of the policy at which DPO is least, on all pairs, labelled by Bradley and Terry."""
    lengths, ref = TASK.mask.sum(-1, keepdim=True), seq_logp(REF)
    wins = torch.sigmoid(TASK.reward[:, :, None] - TASK.reward[:, None])

    def of(table: Float[Tensor, "prompt completion"]) -> Float[Tensor, "prompt completion"]:
        """Share a log-probability among the tokens, and let the code put it together again."""
        shared = table[:, :, None] / lengths * TASK.mask
        logp: Tensor = code(shared.flatten(0, 1), MASK).view_as(table)
        return logp

    def loss(logp: Float[Tensor, "prompt completion"]) -> Float[Tensor, ""]:
        margin = beta * (of(logp) - of(ref))
        margins = margin[:, :, None] - margin[:, None]
        return -(wins * F.logsigmoid(margins)).mean()

    return kl_to_ref(exact.minimise(loss, ref))


@bug(
    "BUG-25",
    title="DPO is fed log-probabilities per token.",
    symptom="At the beta that is meant per nat of the sequence the policy ends many times too far from the "
    "reference, in nats, and the long completions furthest.",
    why="Divided by the length, a log-probability is per token, and beta a price of the mean nat. DPO "
    "then makes the margins that it wants from log-ratios as many times larger as the completion "
    "has tokens.",
    cure="DPO compares probabilities of completions: sum over the tokens. Only SimPO and ORPO are made for "
    "means.",
    quantity="KL(policy ‖ ref) where the loss is least, nats per sequence",
    broken=mean_logp,
    cured=total_logp,
    truth=_kl_of_optimum,
    line="return total / mask.sum(-1)",
    finding="Further away at every beta",
    plot=Plot(
        x="beta [reward units per nat]",
        y="KL(policy ‖ ref) after DPO [nats per sequence]",
        points=betas,
        at=lambda code: [_after_dpo(code, beta) for beta in betas()],
        x_scale="log",
    ),
    thread="jingyaogong/minimind#298",
)
def kl_after_dpo(code: Code) -> float:
    """Return how far from the reference DPO ends, on the log-probabilities that the code makes."""
    return _after_dpo(code, BETA)
