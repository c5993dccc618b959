"""The terms of the libraries under audit: as losses and as rewards, token by token or as one action."""

from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor.audit import Verdict, check
from kltutor.libraries.terms import Term

Placement = Literal["reward", "loss"]
Level = Literal["token", "action"]

INPUTS = ("logp", "ref_logp", "old_logp", "mask")
WHOLE = ("seq_logp", "ref_seq_logp", "old_seq_logp")


@cache
def verdict(term: Term, placement: Placement = "loss", level: Level = "token") -> Verdict:
    """Return what `check` finds out about a term.

    In the loss the gradient goes through the term. In the reward the term is a cost, held fixed, and its
    gradient is that of the score function, see `in_reward`.

    Args:
        term: a function of logp, ref_logp, old_logp and mask that returns one value a token.
        placement: where it stands.
        level: "token" as libraries use it; "action" takes a whole completion for one token, as in a bandit.

    Example:
        >>> from kltutor.libraries import terms
        >>> verdict(terms.k3).gradient, verdict(terms.k3, "reward", "action").gradient
        ('∇KL(ref‖π) per token', '∇(KL(π‖ref) - KL(ref‖π))')
    """
    placed = term if placement == "loss" else in_reward(term)
    if level == "token":
        return check(placed, inputs=INPUTS, returns="token")

    def of_one_action(
        logp: Float[Tensor, " batch"], ref_logp: Float[Tensor, " batch"], old_logp: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        mask = torch.ones(len(logp), 1, dtype=torch.bool)
        return placed(logp[:, None], ref_logp[:, None], old_logp[:, None], mask)[:, 0]

    of_one_action.__name__ = placed.__name__
    return check(of_one_action, inputs=WHOLE, returns="sequence")


def in_reward(term: Term) -> Term:
    """Return a loss that pulls as the term does when it is a cost in the reward.

    The cost is computed when the tokens are drawn and held fixed; each token answers for the undiscounted
    cost of itself and what follows, through the ratio policy/old of that token, whose gradient on fresh
    samples is the score. Advantages are neither clipped nor normalised.
    """

    def loss(
        logp: Float[Tensor, "batch time"],
        ref_logp: Float[Tensor, "batch time"],
        old_logp: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        cost = term(old_logp, ref_logp, old_logp, mask).masked_fill(~mask, 0)
        cost_to_go = cost.flip(-1).cumsum(-1).flip(-1)
        return torch.exp(logp - old_logp) * cost_to_go * mask

    loss.__name__ = term.__name__
    return loss
