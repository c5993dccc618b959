"""Calling somebody else's function, and saying what is wrong when it cannot be called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor.audit.worlds import INPUTS, Rows, worlds

Returns = Literal["token", "sequence", "scalar"]


@dataclass(frozen=True)
class Subject:
    """A function under audit and how to call it.

    Attributes:
        fn: the function.
        inputs: what its positional arguments are.
        returns: what it returns.
        detached: call it with tensors that do not require grad, as it takes no others.
        alone: call it with one completion at a time, since it couples the rows of a batch.
    """

    fn: Callable[..., Any]
    inputs: tuple[str, ...]
    returns: Returns
    detached: bool = False
    alone: bool = False

    @property
    def name(self) -> str:
        """Return the name of the function."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    @property
    def masks(self) -> bool:
        """Return whether the function is told which positions count."""
        return "mask" in self.inputs

    @property
    def single(self) -> bool:
        """Return whether it is called one completion at a time, which is slower."""
        return self.alone or self.returns == "scalar"

    def per_completion(self, rows: Rows, where: str) -> Float[Tensor, " row"]:
        """Return one value a completion, a sum over its tokens where the function returns one a token."""
        values = self.values(rows.inputs, rows.mask, where)
        return values if values.ndim == 1 else values.masked_fill(~rows.mask, 0).sum(-1)

    def values(self, inputs: Mapping[str, Tensor], mask: Bool[Tensor, "row time"], where: str) -> Tensor:
        """Return (row, time) or (row,) of what the function says, unpadded if it takes no mask.

        Without a mask it is called once for every length, with rows of that length; so padding never
        reaches it. A scalar function is called once for every row.
        """
        lengths = torch.full((len(mask),), mask.shape[1]) if self.masks else mask.sum(-1)
        found, order = [], []
        for length in lengths.unique().flip(0).tolist():
            chosen = (lengths == length).nonzero()[:, 0]
            parts = chosen.split(1) if self.single else (chosen,)
            for part in parts:
                value = self.call(
                    {name: self._cut(x[part], name, length) for name, x in inputs.items()}, where
                )
                if self.returns == "token":
                    value = torch.nn.functional.pad(value, (0, mask.shape[1] - length))
                found.append(value[None] if self.returns == "scalar" else value)
                order.append(part)
        return torch.cat(found)[torch.cat(order).argsort()]

    def call(self, inputs: Mapping[str, Tensor], where: str) -> Tensor:
        """Call the function once with a batch, and check what comes back.

        Raises:
            ValueError: it raises, or returns another shape than expected.
            TypeError: it returns something that is no tensor of floating numbers.
        """
        arguments = [inputs[name].detach() if self.detached else inputs[name] for name in self.inputs]
        shapes = ", ".join(f"{name} {tuple(inputs[name].shape)}" for name in self.inputs)
        place = f"{self.name}, called with {shapes} ({where}),"
        try:
            value = self.fn(*arguments)
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            raise ValueError(f"{place} raised {type(error).__name__}: {first}") from error
        if isinstance(value, np.ndarray | np.generic | float):
            value = torch.as_tensor(value)
        batch, time = next(iter(inputs.values())).shape[0], inputs["mask"].shape[1]
        expected = {"token": (batch, time), "sequence": (batch,), "scalar": ()}[self.returns]
        wanted = f"a {self.returns} value of shape {expected} is expected"
        if not isinstance(value, Tensor):
            raise TypeError(f"{place} returned {type(value).__name__}; {wanted}.")
        if value.shape != expected:
            raise ValueError(f"{place} returned shape {tuple(value.shape)}; {wanted}.")
        if not value.is_floating_point():
            raise TypeError(f"{place} returned {value.dtype}; floating numbers are expected.")
        return value

    @staticmethod
    def _cut(value: Tensor, name: str, length: int) -> Tensor:
        return value if "seq_" in name else value[:, :length]


def subject(fn: Callable[..., Any], inputs: Sequence[str], returns: Returns) -> Subject:
    """Return how to call a function: what it needs is found out by a few calls.

    Raises:
        ValueError: an input is unknown, neither logp, seq_logp nor logits is among the inputs; or the
            function raises, or returns another shape, nan, or different values when called again.
        TypeError: it returns something else than floating numbers.
    """
    unknown = [name for name in inputs if name not in INPUTS]
    if isinstance(inputs, str) or unknown or len(set(inputs)) != len(inputs):
        raise ValueError(
            f"inputs are {inputs!r}; names of positional arguments, each once, among {', '.join(INPUTS)} "
            "are expected."
        )
    if not {"logp", "seq_logp", "logits"} & set(inputs):
        raise ValueError(f"inputs are {inputs!r}; logp, seq_logp or logits must be one of them.")
    if returns == "token" and not any(name for name in inputs if "seq_" not in name and name != "mask"):
        raise ValueError(f"inputs are {inputs!r}, one number a completion; returns='sequence' is expected.")
    found = Subject(fn, tuple(inputs), returns)
    world = worlds()[1]
    rows = world.rows("fresh")
    try:
        found.per_completion(rows, world.name)
    except ValueError as error:
        found = Subject(fn, tuple(inputs), returns, detached=True)
        try:
            found.per_completion(rows, world.name)
        except (ValueError, TypeError):
            raise error from error.__cause__
    first, again = (found.per_completion(rows, world.name) for _ in range(2))
    if first.isnan().any():
        raise ValueError(f"{found.name} returned nan ({world.name}); a number is expected.")
    if not torch.equal(first, again):
        raise ValueError(
            f"{found.name} returned two different values for the same arguments ({world.name}); a function "
            "without randomness or memory is expected."
        )
    single = Subject(fn, found.inputs, returns, found.detached, alone=True)
    other = single.per_completion(rows, world.name)
    return found if _alike(first, other, rows.inputs["logits"], rows.weights.detach()) else single


def _alike(one: Tensor, other: Tensor, leaf: Tensor, weights: Tensor) -> bool:
    """Return whether values agree, and the gradients of their means."""
    agree = torch.allclose(one, other, rtol=1e-9, atol=1e-14)
    if not agree or not one.requires_grad:
        return agree
    slopes = []
    for values in (one, other):
        (slope,) = torch.autograd.grad(weights @ values.double(), leaf, allow_unused=True, retain_graph=True)
        slopes.append(torch.zeros_like(leaf) if slope is None else slope)
    return torch.allclose(slopes[0], slopes[1], rtol=1e-6, atol=1e-10)


def batch_reduction(subject: Subject) -> str:
    """Return how a scalar function reduces two completions of unlike lengths: "mean", "sum", ... .

    "token mean" weights each completion with its number of tokens, "mean" does not.
    """
    if subject.returns != "scalar" or not subject.masks:
        return ""
    rows = worlds()[1].rows("fresh")
    lengths = rows.mask.sum(-1)
    short, long = int(lengths.argmin()), int(lengths.argmax())
    one, two, both = (
        subject.call({name: x[pick] for name, x in rows.inputs.items()}, "two completions").item()
        for pick in ([short], [long], [short, long])
    )
    a, b = lengths[short].item(), lengths[long].item()
    for name, value in (
        ("mean", (one + two) / 2),
        ("token mean", (a * one + b * two) / (a + b)),
        ("sum", one + two),
    ):
        if abs(both - value) <= 1e-9 * max(abs(one), abs(two)):
            return name
    return "another reduction"
