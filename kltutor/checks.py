"""Checks of values that an annotation cannot state; every error names the argument and the way out."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDING = 1e-4  # nats by which a float32 log-softmax may exceed 0


def first(bad: Bool[Tensor, "..."]) -> list[int]:
    """Return the index of the first True, for an error message."""
    return [int(i) for i in bad.nonzero()[0]]


def check_logps(**logps: Float[Tensor, "..."]) -> None:
    """Raise ValueError unless every tensor holds log-probabilities: at most 0, not nan."""
    for name, logp in logps.items():
        bad = ~(logp <= ROUNDING)  # so written, nan is bad too
        if bad.any():
            raise ValueError(
                f"{name}{first(bad)} is {logp[bad][0].item():.4g}, but a log-probability is at most 0. "
                "If these are logits, pass token_logps(logits, tokens) instead; if the position is "
                f"padding, fill it first: {name}.masked_fill(~mask, 0)."
            )


def check_pair(logp: Float[Tensor, "..."], ref_logp: Float[Tensor, "..."]) -> None:
    """Raise ValueError unless both hold log-probabilities of one dtype and none is -inf in both at once."""
    if logp.dtype != ref_logp.dtype:  # promotion would hide that one model was scored more coarsely
        raise ValueError(
            f"logp is {logp.dtype} and ref_logp {ref_logp.dtype}; convert both to the same dtype."
        )
    check_logps(logp=logp, ref_logp=ref_logp)
    bad = (logp == -torch.inf) & (ref_logp == -torch.inf)
    if bad.any():
        raise ValueError(
            f"logp{first(bad)} and ref_logp{first(bad)} are both -inf, so their log-ratio is undefined: "
            "neither model can produce this sample. Leave it out, or fill it with 0 if it is padding."
        )


def check_distributions(**logps: Float[Tensor, "*batch outcome"]) -> None:
    """Raise ValueError unless the probabilities along the last axis of every tensor sum to 1."""
    check_logps(**logps)
    for name, logp in logps.items():
        tolerance = 1e-8 if logp.dtype == torch.float64 else 1e-4
        log_mass = logp.logsumexp(-1)
        bad = ~(log_mass.abs() <= tolerance)
        if bad.any():
            mass = log_mass[bad][0].exp().item()
            raise ValueError(
                f"{name}{first(bad)} sums to {mass:.6g} along the last axis, off by {mass - 1:.2g}, but "
                "probabilities sum to 1. Normalise first: logits.log_softmax(-1)."
            )


def check_logits(**logits: Float[Tensor, "*batch vocab"]) -> None:
    """Raise ValueError where a logit is nan or +inf, or where a whole row is -inf."""
    for name, scores in logits.items():
        bad = scores.isnan() | (scores == torch.inf)
        if bad.any():
            raise ValueError(
                f"{name}{first(bad)} is {scores[bad][0].item()}; a finite number or -inf is expected."
            )
        empty = (scores == -torch.inf).all(-1)
        if empty.any():
            raise ValueError(f"{name}{first(empty)} bans every token; at least one finite logit is expected.")


def check_finite(**values: Float[Tensor, "..."]) -> None:
    """Raise ValueError where a value is nan or infinite."""
    for name, value in values.items():
        bad = ~value.isfinite()
        if bad.any():
            raise ValueError(f"{name}{first(bad)} is {value[bad][0].item()}; a finite value is expected.")


def check_rows(mask: Bool[Tensor, "*stack batch time"]) -> None:
    """Raise ValueError unless every row of the mask has a True."""
    empty = ~mask.any(-1)
    if empty.any():
        row = ", ".join(map(str, first(empty)))
        raise ValueError(
            f"mask row {row} has no True: a completion without an action token has no value. "
            "Drop such rows before this call."
        )


def check_tokens(tokens: Int[Tensor, "..."], size: int) -> None:
    """Raise ValueError unless every token indexes a vocabulary of the given size."""
    bad = (tokens < 0) | (tokens >= size)
    if bad.any():
        raise ValueError(
            f"tokens{first(bad)} is {int(tokens[bad][0])}, outside the vocabulary 0 to {size - 1}. "
            "Replace padding such as -100 by any valid token and mask the position out."
        )


def check_number(**numbers: float) -> None:
    """Raise ValueError unless every number is neither nan nor infinite."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}; a finite number is expected.")


def check_positive(**numbers: float) -> None:
    """Raise ValueError unless every number is finite and above 0."""
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{name} is {number}; a finite number above 0 is expected.")


def check_nonnegative(**numbers: float) -> None:
    """Raise ValueError unless every number is finite and at least 0."""
    for name, number in numbers.items():
        if not 0 <= number < float("inf"):
            raise ValueError(f"{name} is {number}; a finite number of at least 0 is expected.")


def check_device(device: str) -> None:
    """Raise ValueError unless torch can compute on a device of this machine."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"device is {device!r}, which torch cannot use: {reason}. Use device=cpu.") from None


def check_detached(**tensors: Tensor) -> None:
    """Raise ValueError where a tensor requires grad though nothing may be differentiated through it."""
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(
                f"{name} requires grad, but the gradient must not flow through it. Pass {name}.detach()."
            )
