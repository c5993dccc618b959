"""A kata on groups: the advantages of GRPO."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kltutor import policy_gradient
from kltutor.katas.calls import Case
from kltutor.katas.inputs import wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import scaled


def group_advantages(
    scores: Float[Tensor, " batch"], group: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return GRPO's advantages: (score - mean)/sd of each completion's group, the sd as of a population.

    Divide the squares by the size of the group, not by one less, and add no epsilon. A group whose scores
    are all equal gives exactly 0, and so does a group of one.

    Args:
        scores: one a completion, in reward units.
        group: which completions answer the same prompt: equal numbers. Groups may be interleaved and differ
            in size.

    Returns:
        One advantage a completion, without unit.
    """
    raise NotImplementedError


def _spread(scores: Tensor, group: Tensor, how: str) -> Tensor:
    """Return a measure of spread of each completion's group."""
    of = {
        "population": lambda x: x.std(correction=0),
        "sample": lambda x: x.std(),
        "variance": lambda x: x.var(correction=0),
        "absolute": lambda x: (x - x.mean()).abs().mean(),
    }[how]
    return torch.stack([of(scores[group == name]) for name in group])


def _per_group(scores: Tensor, group: Tensor, how: str, epsilon: float = 0.0) -> Tensor:
    """Return centred scores over the spread of the group, by the formula as one would write it."""
    centred = torch.stack([s - scores[group == name].mean() for s, name in zip(scores, group, strict=True)])
    return centred / (_spread(scores, group, how) + epsilon)


def _equal_is_zero(scores: Tensor, group: Tensor, found: Tensor) -> Tensor:
    return torch.where(policy_gradient.dr_grpo_advantages(scores, group) == 0, 0, found)


def _leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    size = (group[:, None] == group).sum(-1)
    return policy_gradient.dr_grpo_advantages(scores, group) * size / (size - 1).clamp_min(1)


def _blocks(scores: Tensor, group: Tensor) -> Tensor:
    """Return the right advantages of groups as they would be if each stood together, in order."""
    return policy_gradient.group_advantages(scores, group.sort().values)


def _group_case(label: str, scores: list[float], group: list[int], edge: bool = False) -> Case:
    return Case(label, {"scores": wide(*scores), "group": torch.tensor(group)}, edge)


def _epsilon(size: str) -> Misconception:
    return Misconception(
        f"epsilon-{size}",
        f"{size} is added to the standard deviation, so advantages shrink where the scores of a group lie "
        "close; no epsilon is asked for, but 0 where all scores are equal.",
        lambda s, g: _per_group(s, g, "population", float(size)),
    )


def _both_mistakes(size: str) -> Misconception:
    return Misconception(
        f"sample-sd-and-epsilon-{size}",
        "Two at once, and often met: the standard deviation is that of a sample (torch's default), and "
        f"{size} is added to it: {{got}} where {{right}} is right.",
        lambda s, g: _per_group(s, g, "sample", float(size)),
    )


register(
    group_advantages,
    level=2,
    section="5.2 GRPO in full",
    reference=policy_gradient.group_advantages,
    number=lambda value: value[0],
    cases=(
        _group_case("two groups of three", [1.0, 0.0, 3.0, 2.0, 2.5, 6.0], [0, 0, 0, 1, 1, 1]),
        _group_case("interleaved groups", [1.0, 0.2, 3.0, 0.4, -2.0, 0.9, 0.1], [7, 2, 7, 2, 7, 2, 2]),
        _group_case("scores that lie close", [0.5, 0.501, 0.502, 0.5005], [0, 0, 0, 0]),
        _group_case("equal scores", [0.5, 0.5, 0.5, 1.0, 2.0], [0, 0, 0, 1, 1], edge=True),
        _group_case("equal scores whose mean is rounded", [0.1, 0.1, 0.1], [0, 0, 0], edge=True),
        _group_case("a group of one", [0.3, 1.0, 2.0], [5, 1, 1], edge=True),
    ),
    misconceptions=(
        Misconception(
            "sample-sd",
            "This is the standard deviation of a sample, divided by G - 1 (torch's default): an advantage "
            "of {got} where {right} is right, and nan for a group of one. Use correction=0.",
            lambda s, g: _per_group(s, g, "sample"),
        ),
        Misconception(
            "not-divided",
            "The scores are centred but not divided by the standard deviation: that is Dr. GRPO, {got} where "
            "{right} is right.",
            policy_gradient.dr_grpo_advantages,
        ),
        Misconception(
            "leave-one-out",
            "This subtracts the mean of the others, which is RLOO.",
            _leave_one_out,
        ),
        Misconception(
            "whole-batch",
            "Mean and standard deviation are those of the whole batch, so easy prompts are rewarded as "
            "such; take those of the group.",
            lambda s, g: policy_gradient.group_advantages(s, torch.zeros_like(g)),
        ),
        Misconception(
            "batch-sd",
            "The mean is the group's, but the standard deviation that of the whole batch.",
            lambda s, g: policy_gradient.dr_grpo_advantages(s, g) / s.std(correction=0),
        ),
        Misconception(
            "variance",
            "It is divided by the variance, not by its root: {got} where {right} is right.",
            lambda s, g: _equal_is_zero(s, g, _per_group(s, g, "variance")),
        ),
        Misconception(
            "absolute-deviation",
            "It is divided by the mean absolute deviation; the standard deviation squares first.",
            lambda s, g: _equal_is_zero(s, g, _per_group(s, g, "absolute")),
        ),
        Misconception(
            "not-centred",
            "The mean of the group is not subtracted.",
            lambda s, g: _equal_is_zero(s, g, s / _spread(s, g, "population")),
        ),
        Misconception(
            "sign",
            "The sign is turned round: a score above the mean must get an advantage above 0.",
            scaled(policy_gradient.group_advantages, -1),
        ),
        Misconception(
            "groups-in-a-row",
            "The groups are taken as if each stood together; here they are interleaved, so go by the "
            "numbers in group.",
            _blocks,
        ),
        *map(_epsilon, ("1e-8", "1e-6", "1e-5", "1e-4")),
        *map(_both_mistakes, ("1e-8", "1e-6", "1e-5", "1e-4")),
        Misconception(
            "zero-over-zero",
            "A group of equal scores has standard deviation 0, and 0/0 is nan; it is to give 0.",
            lambda s, g: _per_group(s, g, "population"),
        ),
        Misconception(
            "rounded-mean",
            "The mean of three scores of 0.1 is 0.1 but for rounding, so the standard deviation is 1e-17, "
            "not 0, and the quotient near 1. Ask whether the largest score equals the smallest.",
            lambda s, g: _per_group(s, g, "population").nan_to_num(0.0),
        ),
    ),
)
