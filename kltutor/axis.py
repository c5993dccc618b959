"""The leading axis of a stack: putting tuples of tensors onto it, and taking them off again."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def alike(options: Mapping[int, tuple[Any, ...]]) -> list[tuple[list[int], list[int]]]:
    """Return runs of equal options, and which rows of the stack they are."""
    found: defaultdict[tuple[Any, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for row, (run, own) in enumerate(options.items()):
        found[own][0].append(run)
        found[own][1].append(row)
    return list(found.values())


def join(requests: Sequence[Any]) -> Any:
    """Return requests as one, tensors on a leading axis; what is no tensor as the first has it."""
    first = requests[0]
    if isinstance(first, Tensor):
        return torch.stack(list(requests))
    if isinstance(first, tuple):
        return type(first)(*(join(parts) for parts in zip(*requests, strict=True)))
    return first


def pick(stacked: Any, rows: list[int], size: int) -> Any:
    """Return some rows of a stack of so many: of a tensor, or of each in a tuple."""
    if stacked is None or len(rows) == size:
        return stacked
    if isinstance(stacked, Tensor):
        return stacked[rows]
    parts = [pick(part, rows, size) for part in stacked]
    return type(stacked)(*parts) if hasattr(stacked, "_fields") else tuple(parts)


def split(stacked: Any) -> list[Any]:
    """Return a stacked tuple of tensors as one tuple a row, None where that stands."""
    parts = [part if part is None else part.unbind() for part in stacked]
    size = len(next(part for part in parts if part is not None))
    rows = zip(*([None] * size if part is None else part for part in parts), strict=True)
    return [type(stacked)(*row) for row in rows]
