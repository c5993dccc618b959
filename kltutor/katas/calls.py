"""Calling somebody's function on a case, and whether two functions did the same there."""

import inspect
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Code = Callable[..., Any]  # each kata has a signature of its own

RELATIVE, ABSOLUTE = 1e-7, 1e-9  # more is a mistake, less is rounding in float64
CLOSE = 1e-6  # less is rounding in float32, or a small number added


@dataclass(frozen=True)
class Case:
    """What a function is called with.

    Attributes:
        label: what is special about it, a few words.
        inputs: its arguments by name, in order; tensors of floating numbers are float64.
        edge: a trap that is not the point of the kata, such as nan at masked positions. A mistake made
            everywhere is told before one that is made only here.
        gradient: compare gradients too.
    """

    label: str
    inputs: dict[str, Any]
    edge: bool = False
    gradient: bool = True

    @property
    def size(self) -> int:
        """Return how many numbers its tensors hold."""
        return sum(value.numel() for value in self.inputs.values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class Outcome:
    """What a function did on a case.

    Attributes:
        values: what it returned, one tensor each; empty after a fault.
        slopes: gradient of a fixed weighted sum of the values in each input to differentiate, by name.
        error: the type of error it raised, or what it returned in place of numbers; empty if all went well.
        fault: the same in a sentence that names the line.
    """

    values: tuple[Tensor, ...] = ()
    slopes: tuple[tuple[str, Tensor], ...] = ()
    error: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Difference:
    """Where two outcomes differ: a sentence, and the two things that do.

    Attributes:
        says: what came, and what is expected.
        got: the whole that came; None after a fault.
        expected: the whole that is expected.
    """

    says: str
    got: Tensor | None = None
    expected: Tensor | None = None


def call(fn: Code, case: Case, differentiable: Sequence[str]) -> Outcome:
    """Return what a function does on a case. It gets copies, and may print or warn what it likes."""
    inputs = {name: _copy(value) for name, value in case.inputs.items()}
    leaves = {name: inputs[name].requires_grad_() for name in differentiable if case.gradient}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            returned = fn(*inputs.values())
            found = tuple(map(_tensor, returned if isinstance(returned, tuple) else (returned,)))
            slopes = _slopes(found, leaves)
        except (Exception, SystemExit) as error:
            reason = (str(error).strip() or "no message").splitlines()[0]
            where = line_of(error, fn)
            return Outcome(
                error=type(error).__name__,
                fault=str(error)
                if isinstance(error, _NoNumbersError)
                else f"{where} {_raised(error, reason)}",
            )
    for name, value in inputs.items():
        if isinstance(value, Tensor) and not torch.equal(_plain(value), _plain(case.inputs[name])):
            return Outcome(error="write", fault=f"it writes into its argument {name}; copy it first")
    return Outcome(tuple(value.detach() for value in found), tuple(slopes.items()))


def difference(got: Outcome, expected: Outcome) -> Difference | None:
    """Return where an outcome differs from the one expected; None where only rounding is between them."""
    if got.error or expected.error:
        return None if got.error == expected.error else Difference(got.fault or "a value came, not an error")
    if len(got.values) != len(expected.values):
        return Difference(
            f"it returned {_count(len(got.values))}; {_count(len(expected.values))} is expected"
        )
    for i, (value, right) in enumerate(zip(got.values, expected.values, strict=True)):
        name = "its value" if len(expected.values) == 1 else f"its value number {i + 1}"
        if value.shape != right.shape:
            return Difference(
                f"{name} has shape {tuple(value.shape)}; {tuple(right.shape)} is expected", value, right
            )
        if value.dtype != right.dtype and (value.is_floating_point() or right.is_floating_point()):
            return Difference(f"{name} is {value.dtype}; {right.dtype} is expected", value, right)
        if where := _first(value, right):
            return Difference(f"{name}{where}", value, right)
    for (name, slope), (_, right) in zip(got.slopes, expected.slopes, strict=True):
        if where := _first(slope, right):
            return Difference(f"the values are right, but the gradient in {name}{where}", slope, right)
    return None


def line_of(error: BaseException, fn: Code | None = None, path: Path | None = None) -> str:
    """Return the line of the function's own file in which an error arose, such as "line 7".

    Errors that arise in a library count as those of the line that called it.
    """
    code = getattr(inspect.unwrap(fn), "__code__", None) if fn else None
    file = str(path) if path else code.co_filename if code else ""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]}" if lines else "it"


class _NoNumbersError(Exception):
    """What was returned is no number and no tensor."""


def _raised(error: BaseException, reason: str) -> str:
    return f"raised {type(error).__name__}: {reason}"


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _plain(value: Tensor) -> Tensor:
    """Return a tensor in which two nan are equal."""
    return value.detach().nan_to_num(nan=-123.0) if value.is_floating_point() else value


def _tensor(value: Any) -> Tensor:
    if isinstance(value, np.ndarray | np.generic | float | int) and not isinstance(value, bool):
        value = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float | int) else None)
    if not isinstance(value, Tensor):
        raise _NoNumbersError(f"it returned {type(value).__name__}; numbers are expected")
    return value


def _slopes(found: Sequence[Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of all values: 0 where none comes back."""
    live = [value for value in found if value.requires_grad]
    if not live or not leaves:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    weights = [torch.cos(1 + torch.arange(value.numel())).to(value).reshape(value.shape) for value in live]
    slopes = torch.autograd.grad(live, list(leaves.values()), weights, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)
    }


def _first(value: Tensor, right: Tensor) -> str:
    """Return where two tensors of one shape first differ, and how; empty if they do not."""
    far = ~torch.isclose(value.double(), right.double(), rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
    if not far.any():
        return ""
    where = tuple(far.nonzero()[0].tolist())
    place = str(list(where)) if where else ""
    came, due = value[where].item(), right[where].item()
    digits = next(d for d in (4, 7, 12, 17) if f"{came:.{d}g}" != f"{due:.{d}g}")
    close = torch.allclose(value.double(), right.double(), rtol=CLOSE, atol=CLOSE, equal_nan=True)
    hint = ", so close that it may be float32, or an epsilon" if close else ""
    return f"{place} is {came:.{digits}g}; {due:.{digits}g} is expected{hint}"


def _count(number: int) -> str:
    return "one value" if number == 1 else f"a tuple of {number} values"
