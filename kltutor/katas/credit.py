"""A kata on credit: advantages in time."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import masking, placement
from kltutor.katas.calls import Case
from kltutor.katas.inputs import token_cases, wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import scaled


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "batch time"]:
    """Return generalised advantages of every token, from the last to the first.

        δ_t = r_t + gamma·V_{t+1} - V_t        A_t = δ_t + gamma·gae_lambda·A_{t+1}

    t + 1 is the next action token of the row, across padding and gaps. After the last one V and A are 0.

    Args:
        rewards: one a token, in reward units.
        values: V of the state before each token, in reward units.
        mask: True at action tokens; what stands elsewhere must not matter, not even nan.
        gamma: discount, from 0 to 1.
        gae_lambda: from 0 to 1.

    Returns:
        Advantages in reward units, 0 where masked.
    """
    raise NotImplementedError


def _loop(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    gae_lambda: float,
    *,
    bootstrap: float = 1.0,
    at_end: Tensor | None = None,
) -> Tensor:
    """Return advantages as if all positions counted, then masked: for the answers that forget the mask."""
    after = torch.zeros_like(values[:, 0]) if at_end is None else at_end
    advantage, found = torch.zeros_like(after), torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        error = rewards[:, t] + bootstrap * gamma * after - values[:, t]
        advantage = error + gamma * gae_lambda * advantage
        found[:, t], after = advantage, values[:, t]
    return torch.where(mask, found, 0)


def _zeroed(rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)


def _turned(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Return the sum of discounted errors from the first token to this one."""
    errors = placement.gae(rewards, values, mask, gamma, 0.0)
    nothing = torch.zeros_like(errors)
    return placement.gae(errors.flip(-1), nothing, mask.flip(-1), gamma * gae_lambda, 1.0).flip(-1)


_EASY = {
    "rewards": wide([0.0, 0.5, 1.0]),
    "values": wide([0.4, 0.2, 0.6]),
    "mask": torch.ones(1, 3, dtype=torch.bool),
    "gamma": 0.9,
    "gae_lambda": 0.5,
}
_STEPS = [*token_cases("rewards", "values", gamma=0.9, gae_lambda=0.8)]

register(
    gae,
    level=3,
    section="7.1 PPO with the KL in the reward",
    reference=placement.gae,
    number=lambda value: value.reshape(-1)[0],
    cases=(
        Case("three tokens, no padding", _EASY),
        *_STEPS,
        *(
            Case(f"gamma {gamma:g}, lambda {lam:g}", _STEPS[0].inputs | {"gamma": gamma, "gae_lambda": lam})
            for gamma, lam in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
        ),
    ),
    misconceptions=(
        Misconception(
            "lambda-forgotten",
            "gae_lambda is missing from the recursion, so this is return minus value for every lambda: "
            "{got} where {right} is right.",
            lambda r, v, m, gamma, lam: placement.gae(r, v, m, gamma, 1.0),
        ),
        Misconception(
            "one-step",
            "This is δ alone, the case of lambda 0; the advantage adds gamma·gae_lambda·A of the next token.",
            lambda r, v, m, gamma, lam: placement.gae(r, v, m, gamma, 0.0),
        ),
        Misconception(
            "gamma-forgotten",
            "The recursion multiplies by gae_lambda alone; gamma·gae_lambda is right.",
            lambda r, v, m, gamma, lam: placement.gae(
                placement.gae(r, v, m, gamma, 0.0), torch.zeros_like(v), m, lam, 1.0
            ),
        ),
        Misconception(
            "undiscounted-value",
            "δ adds V of the next state without gamma.",
            lambda r, v, m, gamma, lam: placement.gae(
                placement.gae(r, v, m, 1.0, 0.0), torch.zeros_like(v), m, gamma * lam, 1.0
            ),
        ),
        Misconception(
            "returns",
            "These are returns, advantage plus value; the advantage is asked for.",
            lambda r, v, m, gamma, lam: placement.gae(r, v, m, gamma, lam) + v.masked_fill(~m, 0),
        ),
        Misconception(
            "no-next-value",
            "δ lacks V of the next state: r_t - V_t takes every token for the last.",
            lambda r, v, m, gamma, lam: placement.gae(
                r.masked_fill(~m, 0) - v.masked_fill(~m, 0), torch.zeros_like(v), m, gamma * lam, 1.0
            ),
        ),
        Misconception(
            "sign-of-delta",
            "The sign of δ is turned round: V_t is subtracted, r_t and V_{t+1} are added.",
            scaled(placement.gae, -1),
        ),
        Misconception(
            "from-the-front",
            "The recursion runs from the first token to the last, so a token is credited with what came "
            "before it.",
            _turned,
        ),
        Misconception(
            "bootstrapped-end",
            "After the last action token V is 0, the episode is over; here the last value is used once more.",
            lambda r, v, m, gamma, lam: placement.gae(
                r,
                v,
                m,
                gamma,
                lam,
                last_value=v.gather(-1, masking.last_action(m)[:, None])[:, 0],
            ),
        ),
        Misconception(
            "padding-bootstrapped",
            "The mask is applied at the end only: rewards and values of padding and gaps have entered what "
            "comes before them.",
            _loop,
        ),
        Misconception(
            "gaps-take-a-step",
            "Masked positions hold 0 but still take a step: V_{t+1} is 0 before a gap, and the discount "
            "counts it. The next action token is the next step.",
            lambda r, v, m, gamma, lam: _loop(*_zeroed(r, v, m), m, gamma, lam),
        ),
        Misconception(
            "mask-not-applied",
            "The mask is not used at all.",
            lambda r, v, m, gamma, lam: _loop(r, v, torch.ones_like(m), gamma, lam),
        ),
    ),
)
