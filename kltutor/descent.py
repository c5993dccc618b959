"""Adam for a stack of policies: each at its own rate, with its own longest gradient.

Adam works on each number by itself, so a stack is one large parameter to it, and its corrections for the
first steps are the same for all. Only the rate is each policy's own: Adam moves a displacement from 0 at
rate 1, which the rates then scale.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kltutor.finite import NonFiniteError, check_stack


class Descent:
    """The optimiser of a stack of policies, and of their critics if they have any.

    Attributes:
        modules: what is moved, by name: parameters with one entry a policy on their first axis.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        """Stand before the first step."""
        self.modules = modules
        self._start()

    def _start(self) -> None:
        parameters = [each for module in self.modules.values() for each in module.parameters()]
        self._moved = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        self._adam = torch.optim.Adam(list(self._moved.values()), lr=1.0)

    def slopes(self, losses: Sequence[Float[Tensor, ""]]) -> None:
        """Give every parameter the gradient of the sum of losses, each of which is of one policy only."""
        for parameter in self._moved:
            parameter.grad = None
        torch.stack(list(losses)).sum().backward()

    def check(self, step: int, *, gradient: bool) -> dict[int, NonFiniteError]:
        """Return the error of every policy whose parameters, or their gradients, are not finite."""
        found: dict[int, NonFiniteError] = {}
        for name, module in self.modules.items():
            found = check_stack(step, name, module, gradient=gradient) | found  # the first module's first
        return found

    @torch.no_grad()
    def shorten(self, most: Sequence[float | None]) -> list[float]:
        """Shorten gradients longer than their policy's most; return how long those of the policies were."""
        lengths = [self._shorten(module, most) for module in self.modules.values()]
        return lengths[0]

    @torch.no_grad()
    def step(self, rates: Sequence[tuple[float, ...]]) -> None:
        """Make a step of Adam at the rates of each policy, one for each module."""
        for parameter, moved in self._moved.items():
            moved.grad = parameter.grad
        self._adam.step()
        for module, own in zip(self.modules.values(), zip(*rates, strict=True), strict=False):
            for parameter in module.parameters():
                moved, scale = self._moved[parameter], parameter.new_tensor(own)
                parameter.add_(_spread(scale, parameter) * moved)
                moved.zero_()

    def keep(self, rows: list[int]) -> None:
        """Leave all policies but some out of parameters, which become new ones, and moments."""
        moments = [self._adam.state[moved] for moved in self._moved.values()]
        for module in self.modules.values():
            for name, parameter in list(module.named_parameters()):
                path, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(path), leaf, nn.Parameter(parameter.detach()[rows]))
        self._start()
        for moved, old in zip(self._moved.values(), moments, strict=True):
            self._adam.state[moved] = {name: x[rows] if x.ndim else x for name, x in old.items()}

    def _shorten(self, module: nn.Module, most: Sequence[float | None]) -> list[float]:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        each = torch.stack([gradient.flatten(1).norm(dim=-1) for gradient in gradients])
        lengths = each.norm(dim=0)
        if any(most):
            limit = lengths.new_tensor([one or torch.inf for one in most])
            factor = (limit / (lengths + 1e-6)).clamp_max(1)  # as `clip_grad_norm_`
            for gradient in gradients:
                gradient.mul_(_spread(factor, gradient))
        found: list[float] = lengths.tolist()
        return found


def _spread(each: Float[Tensor, " stack"], like: Float[Tensor, "stack ..."]) -> Float[Tensor, "stack ..."]:
    """Give one number a policy the axes of a parameter."""
    return each.view(-1, *(1,) * (like.ndim - 1))
