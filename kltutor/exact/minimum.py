"""The minimum of a loss over all policies there are, not over those some network can reach."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions, check_finite

FLAT = 1e-9  # curvature, relative to the steepest direction, below which a direction is free
NOISE = 1e-14  # slope per nat along a free direction that is rounding
EASIER, HARDER = 1 / 10, 10.0


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
    direction the step goes down it. Directions without curvature keep their start: a completion
    that the loss does not see keeps its log-probability relative to the others.

    A small gradient proves nothing: the loss may fall for ever, ever more slowly. So the end is reached when
    a Newton step moves no logit by more than `settled`, and a direction that loses its curvature while the
    loss still falls along it is an error.

    Args:
        loss: from log-probabilities of every completion to every prompt to a scalar; twice differentiable.
        seq_logp: where to start, normalised over completions and finite, nats per sequence, float64.
        steps: largest number of steps.
        settled: largest move of a logit in the last step, nats.

    Raises:
        jaxtyping.TypeCheckError: a shape or dtype differs from the above.
        ValueError: seq_logp is not normalised or not finite, the loss is not a finite scalar, or it has no
            minimum: it falls along a direction without curvature, or has not settled after all steps.

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
    damping = 0.0
    for _ in range(steps):
        slope = torch.autograd.functional.jacobian(of, logits)
        curvature = torch.autograd.functional.hessian(of, logits, vectorize=True)
        own = curvature.diagonal().abs()
        scale = torch.where(own > FLAT * own.max(), own, own.max()).sqrt()
        values, vectors = torch.linalg.eigh(curvature / scale / scale[:, None])
        bent = values.abs() > FLAT * values.abs().max()
        free = vectors[:, ~bent] / scale[:, None]
        falling = (slope @ (free / free.abs().amax(0))).abs()  # per nat
        if (falling > NOISE * value.abs().clamp_min(1)).any():
            raise ValueError(
                f"the loss has no minimum in reach: along some direction it has lost its curvature and still "
                f"falls by {falling.max():.2g} a nat."
            )
        along = torch.where(bent, vectors.T @ (slope / scale), 0)
        while True:
            step = vectors @ (along / (values.abs() + damping + ~bent)) / scale
            reached = of(logits - step)
            if reached <= value or step.abs().max() <= settled:
                break
            damping = max(1e-4, damping * HARDER)
        logits, value = logits - step, reached
        damping = damping * EASIER if damping > 1e-4 else 0.0
        if step.abs().max() <= settled:
            return logits.view(shape).log_softmax(-1)
    raise ValueError(
        f"the loss has not settled: step {steps} still moves a logit by {step.abs().max():.2g} nats, and the "
        f"slope is {slope.abs().max():.2g}. It may have no minimum."
    )
