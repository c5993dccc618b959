"""The minimum of a loss over all policies there are, not over those some network can reach."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions, check_finite

FLAT = 1e-9  # scaled curvature, relative to the steepest direction, below which a direction is free
REACH = 2.0  # nats that a logit moves in one step at most
NOISE = 1e-14  # curvature of a completion, relative to the largest, that is rounding
LEVEL = 1e-12  # slope per nat, relative to the loss, that is rounding
HARDER = 10.0  # the damping grows and shrinks by this factor
EASED = 1e-4  # damping, relative to the curvature, that is no longer worth having


def minimise(
    loss: Callable[[Float[Tensor, "prompt completion"]], Tensor],
    seq_logp: Float[Tensor, "prompt completion"],
    *,
    steps: int = 100,
    settled: float = 1e-8,
) -> Float[Tensor, "prompt completion"]:
    """Return the log-probabilities of whole completions at which a loss is least, from a given start.

    Newton's method on one free logit for each completion, in coordinates scaled by the curvature of each, so
    that rare completions converge as fast as common ones. Where the loss has a maximum or a saddle in some
    direction the step goes down it; no step moves a logit by more than 2 nats, and one to where the loss
    raises a ValueError or is not finite is halved until it is. Directions that the loss does
    not see keep their start: a completion that is in no pair stays where it was.

    A small gradient proves nothing: the loss may fall for ever, ever more slowly. So the end is reached when
    a step moves no logit by more than `settled`, and to have come to where the loss no longer sees what it
    saw at the start is an error. A minimum at which a completion counts 1e-14 as much as another, or less,
    is refused by the same rule.

    Args:
        loss: from log-probabilities of every completion to every prompt to a scalar; twice differentiable.
        seq_logp: where to start, normalised over completions and finite, nats per sequence, float64.
        steps: largest number of steps.
        settled: largest move of a logit in the last step, nats.

    Raises:
        jaxtyping.TypeCheckError: a shape or dtype differs from the above.
        ValueError: seq_logp is not normalised or not finite, the loss is not a finite scalar, or it has no
            minimum in reach, or has not settled after all steps.

    Example:
        >>> def loss(logp):  # cross entropy: the minimum is the distribution itself
        ...     return -(torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64) * logp).sum()
        >>> minimise(loss, torch.full((1, 3), 1 / 3, dtype=torch.float64).log()).exp()
        tensor([[0.7000, 0.2000, 0.1000]], dtype=torch.float64)
    """
    check_distributions(seq_logp=seq_logp)
    check_finite(seq_logp=seq_logp)
    shape = seq_logp.shape

    def of(logits: Tensor) -> Tensor:
        return loss(logits.view(shape).log_softmax(-1))

    logits: Tensor = seq_logp.detach().flatten().clone()
    value = of(logits)
    if value.ndim or not value.isfinite():
        raise ValueError(
            f"loss returned shape {tuple(value.shape)}, {value.tolist()}; a finite scalar is expected."
        )
    damping, unseen = 0.0, torch.empty(0)
    for number in range(steps):
        slope = torch.autograd.functional.jacobian(of, logits)
        curvature = torch.autograd.functional.hessian(of, logits, vectorize=True)
        own = curvature.diagonal().abs()
        scale = torch.where(own > NOISE * own.max(), own, own.max().clamp_min(NOISE)).sqrt()
        values, vectors = torch.linalg.eigh(curvature / scale / scale[:, None])
        flat = values.abs() <= FLAT * values.abs().max().clamp_min(1)
        ways = vectors / scale[:, None]
        nat = ways.abs().amax(0)  # along each direction some logit moves by so many nats
        falling = slope @ ways
        dead = flat & (falling.abs() <= LEVEL * nat * value.abs().clamp_min(1))
        if number == 0:
            unseen = torch.linalg.qr(ways[:, dead]).Q
        part = 1.0
        while True:
            bold = torch.where(flat, falling.sign() / nat, falling / (values.abs() + damping))
            step = ways @ bold.masked_fill(dead, 0)
            step = step * (REACH / step.abs().max().clamp_min(REACH))
            reached = _if_defined(of, logits - part * step)
            if reached is None:  # shortened for this once, so that a step is never small for lack of room
                part /= 2
                if part < NOISE:
                    raise ValueError(
                        "the loss has not settled: no step leads to where it is a finite number."
                    )
                continue
            if reached <= value or step.abs().max() <= settled:
                break
            damping = max(EASED, damping * HARDER)
            if damping > 1 / NOISE:
                raise ValueError(f"the loss has not settled: no step goes down from {value.item():.6g}.")
        logits, value = logits - part * step, reached
        damping = damping / HARDER if damping > EASED else 0.0
        if step.abs().max() <= settled:
            lost = ways[:, dead] / ways[:, dead].norm(dim=0)
            if ((lost - unseen @ (unseen.T @ lost)).norm(dim=0) > 0.01).any():
                raise ValueError(
                    f"the loss has no minimum: after {number} steps it has lost curvature and slope along "
                    "a direction that it saw at the start."
                )
            return logits.view(shape).log_softmax(-1)
    raise ValueError(
        f"the loss has not settled: step {steps} still moves a logit by {step.abs().max():.2g} nats, and the "
        f"slope is {slope.abs().max():.2g}. It may have no minimum."
    )


def _if_defined(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor | None:
    """Return the loss; None where it refuses its argument or is not finite."""
    try:
        value = loss(logits)
    except ValueError:
        return None
    return value if value.isfinite() else None
