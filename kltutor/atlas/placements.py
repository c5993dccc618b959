"""The ways to put an estimate of the KL into a policy-gradient update, and the mean gradient of each."""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kltutor import exact
from kltutor.exact.gradients import sampled_rows
from kltutor.masking import masked_sum
from kltutor.placement import Correction, Estimator, Level, importance_weight, kl_terms
from kltutor.tasks import Policy, Task

Where = Literal["reward", "loss"]
Samples = Literal["on-policy", "stale"]


class Placement(NamedTuple):
    """One way to put an estimate of the KL into a policy-gradient update."""

    estimator: Estimator
    where: Where
    level: Level
    samples: Samples
    correction: Correction = "none"


# Whose samples, and how they are corrected.
SAMPLES: tuple[tuple[Samples, Correction], ...] = (
    ("on-policy", "none"),
    ("stale", "none"),
    ("stale", "stopgrad"),
    ("stale", "differentiable"),
)

# In the reward a ratio weights the score function, and frozen or not makes no difference: it stands once.
PLACEMENTS = tuple(
    Placement(estimator, where, level, samples, correction)
    for where in get_args(Where)
    for level in get_args(Level)
    for estimator in get_args(Estimator)
    for samples, correction in SAMPLES
    if not (where == "reward" and correction == "differentiable")
)


def row_losses(
    placement: Placement,
    logp: Float[Tensor, "row time"],
    mask: Tensor,
    ref_logp: Float[Tensor, "row time"],
    old_logp: Float[Tensor, "row time"],
) -> Float[Tensor, " row"]:
    """Return the loss of each completion, whose gradient is what the placement adds to an update per beta.

    In the loss: Σ_t ρ_t·k_t. In the reward: -Σ_t ρ_t·r_t with r_t = -k_t held fixed, where differentiating
    ρ of the prefix gives the score function of all tokens that led to r_t; without correction the score
    function of the same tokens stands there without ρ. k is taken at the present policy; ρ is that of the
    prefix for a token, of the sequence for a sequence.

    Example:
        >>> import torch
        >>> mask, two = torch.tensor([[True, True]]), torch.tensor([[-1.0, -2.0]])
        >>> row_losses(Placement("k1", "loss", "token", "on-policy"), two, mask, two - 1, two)
        tensor([2.])
    """
    estimator, where, level, samples, correction = placement
    drawn_by = logp.detach() if samples == "on-policy" else old_logp
    if where == "loss":
        stale = {} if correction == "none" else {"old_logp": drawn_by}
        terms = kl_terms(logp, ref_logp, mask, estimator, level=level, correction=correction, **stale)  # type: ignore[arg-type]
        return masked_sum(terms, mask)
    costs = kl_terms(logp.detach(), ref_logp, mask, estimator, level=level)
    below = logp.detach() if correction == "none" else drawn_by  # itself: ρ is 1, its gradient the score
    weight = importance_weight(
        logp, below, mask, "prefix" if level == "token" else "sequence", "differentiable"
    )
    return masked_sum(weight * costs, mask)


def field(
    placement: Placement, policy: nn.Module, ref: Policy, old: Policy, task: Task
) -> exact.ExpectedGradient:
    """Return mean and variance of the gradient that the placement adds to a descent step, per unit of beta.

    Args:
        placement: which.
        policy: the policy that learns.
        ref: the reference.
        old: the policy that drew stale samples; an on-policy placement samples from `policy`.
        task: what to sum over.

    Example:
        >>> import torch
        >>> from kltutor import TabularPolicy, exact, tasks
        >>> task, seed = tasks.small(), torch.Generator().manual_seed(0)
        >>> policy, ref, old = (TabularPolicy.random(task, seed) for _ in range(3))
        >>> true = exact.gradient(lambda p: exact.kl(p, ref, task), policy)
        >>> found = field(Placement("k1", "reward", "token", "on-policy"), policy, ref, old, task)
        >>> torch.allclose(found.mean, true)
        True
    """
    given = tuple(exact.token_logps(p, task).detach().flatten(0, 1) for p in (ref, old))
    return exact.expected_gradient(
        lambda logp, mask, *others: row_losses(placement, logp, mask, *others),
        policy,
        task,
        sampler=old if placement.samples == "stale" else None,
        given=given,
    )


def mean_field(
    placement: Placement, policy: nn.Module, ref: Policy, old: Policy, task: Task
) -> Float[Tensor, " parameter"]:
    """Return the mean of `field` alone, by one backward pass: no gradient of any single completion.

    Example:
        >>> import torch
        >>> from kltutor import TabularPolicy, tasks
        >>> task, seed = tasks.small(), torch.Generator().manual_seed(0)
        >>> trio = [TabularPolicy.random(task, seed) for _ in range(3)]
        >>> place = Placement("k3", "loss", "token", "stale")
        >>> torch.allclose(mean_field(place, *trio, task), field(place, *trio, task).mean)
        True
    """
    sampler = old if placement.samples == "stale" else None
    ref_logp, old_logp = (exact.token_logps(p, task).detach().flatten(0, 1) for p in (ref, old))

    def objective(moving: nn.Module) -> Float[Tensor, ""]:
        rows, mask, weights = sampled_rows(moving, task, sampler, ())
        undrawn = (weights == 0)[:, None]  # no part in the mean, and no nan from it
        given = (ref_logp.masked_fill(undrawn, 0), old_logp.masked_fill(undrawn, 0))
        return (weights * row_losses(placement, rows, mask, *given)).sum()

    return exact.gradient(objective, policy)


def angle(
    gradient: Float[Tensor, "*batch parameter"], other: Float[Tensor, "*batch parameter"]
) -> Float[Tensor, "*batch"]:
    """Return the angle between two gradients in degrees, along the last axis; neither may be zero."""
    cosine = torch.nn.functional.cosine_similarity(gradient, other, dim=-1).clamp(-1, 1)  # rounding
    return cosine.arccos().rad2deg()
