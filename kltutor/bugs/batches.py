"""Bugs of a batch's odd members: a completion without tokens, a group without differences."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.masking import last_action
from kltutor.policy_gradient import group_advantages


def counted_from_the_end(
    scores: Float[Tensor, " batch"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Put the score at the last token, by counting tokens."""
    rewards = torch.zeros_like(mask, dtype=scores.dtype)
    last = mask.sum(-1) - 1
    rewards[torch.arange(len(mask)), last] = scores
    return rewards


def at_the_last_action(
    scores: Float[Tensor, " batch"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Put the score at the last token of rows that have one."""
    rewards = torch.zeros_like(mask, dtype=scores.dtype)
    said = mask.any(-1).nonzero()[:, 0]
    rewards[said, last_action(mask[said])] = scores[said]
    return rewards


GROUP = 8


def _answers(empty: int) -> tuple[Float[Tensor, " batch"], Bool[Tensor, "batch time"]]:
    """Return the scores and the mask of a group of answers to one prompt, some of them empty and paid 1."""
    mask = torch.arange(4) < torch.tensor([1, 2, 3, 4, 3, 2, 1, 4])[:, None]
    mask[:empty] = False
    return (torch.arange(GROUP) < empty).double(), mask


def _nothing() -> float:
    return 0.0


def _of_the_others(code: Code, empty: int) -> float:
    """Return the advantage, score minus group mean, of an answer that scored 0."""
    total = code(*_answers(empty)).sum(-1)
    return float((total - total.mean())[-1])


def _first_position() -> dict[str, float]:
    mask = _answers(1)[1]
    return {
        "where argmax of the cumulative sum puts it, position": float(mask[0].long().cumsum(0).argmax()),
        "where counting puts it, position": float(mask.shape[1] + mask[0].sum() - 1),
    }


@bug(
    "BUG-26",
    title="A completion without tokens has its reward at index -1.",
    symptom="Rewards stand on padding, where no policy chose anything; in a group they move the baseline of "
    "all other answers, in reward units.",
    why="A row without a True sums to 0, and index -1 is the row's last place: padding. Nothing "
    "fails, and the group's mean reads it. The other common recipe, `argmax` of a cumulative sum, "
    "finds place 0, in the prompt.",
    cure="Place scores only in rows with a True in their mask, and let the rest raise or be left out.",
    quantity="sum of the rewards at masked positions, reward units",
    broken=counted_from_the_end,
    cured=at_the_last_action,
    truth=_nothing,
    line="last = mask.sum(-1) - 1",
    finding="Empty answers push the others down",
    plot=Plot(
        x="empty answers in a group of 8",
        y="advantage of the others [reward units]",
        points=lambda: list(range(GROUP)),
        at=lambda code: [_of_the_others(code, empty) for empty in range(GROUP)],
    ),
    also=_first_position,
    thread="verl-project/verl#6310",
)
def reward_on_padding(code: Code) -> float:
    """Return what stands where no token is, in a batch with two empty answers."""
    scores, mask = _answers(2)
    return float(code(scores, mask)[~mask].sum())


def z_score(scores: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Guard the division with a number far below the rounding of the mean."""
    centred = scores - sum(scores) / len(scores)
    spread = centred.square().mean().sqrt()
    return centred / (spread + 1e-8)


def z_score_of_unlike(scores: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Give a group of equal scores the advantage 0, and divide the others by their spread."""
    return group_advantages(scores, torch.zeros(len(scores), dtype=torch.long))


def _largest(code: Code, size: int) -> float:
    return float(code(torch.full((size,), 0.7)).abs().max())


def _with_more_care() -> dict[str, float]:
    scores = torch.full((GROUP,), 0.7)
    centred = scores - sum(scores) / GROUP
    return {
        "the same with 1e-4 in the place of 1e-8, no unit": (
            centred / (centred.square().mean().sqrt() + 1e-4)
        )
        .abs()
        .max()
        .item(),
        "the same of rewards of 1, no unit": z_score(torch.ones(GROUP)).abs().max().item(),
    }


@bug(
    "BUG-27",
    title="Equal rewards are divided by a standard deviation that is rounding.",
    symptom="A group whose rewards are all 0.7 has advantages near 1, of one sign, against which beta, in "
    "reward units per nat, is nothing; groups of 0 and of 1 are harmless.",
    why="float32 has no 0.7, so the mean of eight is off by a rounding, and every centred score by "
    "the same 6e-8. So is their root mean square. Divided by it plus 1e-8 they come to 0.86.",
    cure="Give a group whose largest and least score are equal the advantage 0. A guard of 1e-4 in the place "
    "of 1e-8 leaves a thousandth of it.",
    quantity="largest advantage in a group of 8 equal rewards in float32, no unit",
    broken=z_score,
    cured=z_score_of_unlike,
    truth=_nothing,
    line="return centred / (spread + 1e-8)",
    finding="Advantages made of rounding",
    plot=Plot(
        x="size of the group, all rewards 0.7",
        y="largest advantage [no unit]",
        points=lambda: list(range(2, 33)),
        at=lambda code: [_largest(code, size) for size in range(2, 33)],
    ),
    also=_with_more_care,
    thread="verl-project/verl#4597",
)
def largest_advantage(code: Code) -> float:
    """Return the largest advantage among answers that all scored the same."""
    return _largest(code, GROUP)
