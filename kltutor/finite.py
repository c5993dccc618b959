"""Stopping a run that has left the numbers, with the step, the tensor and the likely cause."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kltutor.rollout import Now, Rollout
from kltutor.run import Run

FAST = "the rate is too high for this beta and batch; lower rate or set max_gradient_norm"
LOST = (
    "the policy hardly says any more what the reference says, and k3 grows as ref/policy; raise beta, lower "
    "rate, or use k1 in the reward"
)


class NonFiniteError(ArithmeticError):
    """A tensor of a run is nan or infinite.

    Attributes:
        step: in which step it was found.
        tensor: which one.
        cause: the likely one.
    """

    def __init__(self, step: int, tensor: str, cause: str) -> None:
        """Say what was found, where, and why it is likely to be."""
        super().__init__(f"step {step}: {tensor} is not finite. Likely cause: {cause}.")
        self.step, self.tensor, self.cause = step, tensor, cause


def check_now(step: int, run: Run, beta: float, rollout: Rollout, now: Now) -> None:
    """Raise NonFiniteError unless log-probabilities, values, and what k3 takes of them, are finite.

    Ratios policy/old need no look: they are at most 1/old, and old has drawn these tokens.
    """
    with torch.no_grad():
        _check(step, "logp", now.logp, FAST)
        if now.values is not None:
            _check(step, "values", now.values, "the critic has diverged; lower value_rate")
        if run.kl_estimator == "k3" and beta > 0:
            lost = rollout.ref_logp - now.logp
            _check(step, "ratio ref/policy in k3", lost.exp(), LOST)
            if run.kl_level == "sequence":
                _check(step, "ratio ref/policy in k3", lost.sum(-1).exp(), LOST)


def check_loss(step: int, loss: Tensor) -> None:
    """Raise NonFiniteError unless a loss is finite."""
    _check(step, "loss", loss.detach(), FAST)


def check_module(step: int, name: str, module: nn.Module, *, gradient: bool) -> None:
    """Raise NonFiniteError unless all parameters of a module, or all of their gradients, are finite."""
    for own, parameter in module.named_parameters():
        value = parameter.grad if gradient else parameter.detach()
        if value is not None:
            _check(step, f"{'gradient of ' if gradient else ''}{name}.{own}", value, FAST)


def check_stack(step: int, name: str, module: nn.Module, *, gradient: bool) -> dict[int, NonFiniteError]:
    """Return what `check_module` would raise for each policy of a stack; nothing where all is finite."""
    values = {own: each.grad if gradient else each.detach() for own, each in module.named_parameters()}
    finite = {own: each.isfinite().flatten(1).all(-1) for own, each in values.items() if each is not None}
    whole = torch.stack(list(finite.values()), -1)  # (policy, parameter)
    found = {}
    for policy in (~whole.all(-1)).nonzero().flatten().tolist():
        own = list(finite)[int((~whole[policy]).int().argmax())]  # the first
        tensor = f"{'gradient of ' if gradient else ''}{name}.{own}"
        found[policy] = NonFiniteError(step, tensor, FAST)
    return found


@contextmanager
def logits_stay_finite(step: int, *, moved: bool = False) -> Iterator[None]:
    """Turn the refusal of a policy that returns nan once it has moved into a NonFiniteError.

    Until then the policy is as it was given, and the ValueError says what is wrong with it. After the first
    step it has moved, and within it where `moved` says so.
    """
    try:
        yield
    except ValueError as error:
        if step == 0 and not moved:
            raise
        raise NonFiniteError(step, "logits", f"{FAST} ({error})") from error


def _check(step: int, name: str, value: Tensor, cause: str) -> None:
    if not value.isfinite().all():
        raise NonFiniteError(step, name, cause)
