"""The matrix products of a piece of work: how many FLOPs they are, and how long they take on their own."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.clock import take_turns

PRODUCTS = {"aten.mm": torch.mm, "aten.bmm": torch.bmm, "aten.addmm": torch.addmm}
ATTENTION = {  # products of q·kᵀ or weights·v that each computes: two forward, five backward
    "aten._scaled_dot_product_flash_attention_for_cpu": 2,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": 5,
}
Shapes = tuple[tuple[int, ...], ...]


class Record(TorchDispatchMode):
    """Counts the matrix products of what runs inside it, by their shapes."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.seen: Counter[tuple[str, Shapes]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Note a product and run it."""
        name = str(func.overloadpacket)
        if name in PRODUCTS or name in ATTENTION:
            self.seen[name, tuple(tuple(x.shape) for x in args if isinstance(x, Tensor))] += 1
        return func(*args, **(kwargs or {}))


def products_of(work: Callable[[], object]) -> Counter[tuple[str, Shapes]]:
    """Return the matrix products of a piece of work."""
    with Record() as record:
        work()
    return record.seen


def flops(products: Counter[tuple[str, Shapes]]) -> int:
    """Return their FLOPs: a multiplication and an addition count as two."""
    total = 0
    for (name, shapes), times in products.items():
        if name in ATTENTION:  # backward, the gradient of the output stands before query, key and value
            query, key = shapes[:2] if ATTENTION[name] == 2 else shapes[1:3]
            total += times * ATTENTION[name] * 2 * math.prod(query) * key[-2]
        else:
            left, right = shapes[-2:]
            total += times * 2 * math.prod(left) * right[-1]
    return total


def bare_seconds(products: Counter[tuple[str, Shapes]], repeats: int) -> float:
    """Return the seconds of the products alone, without attention: each shape timed, times its count."""
    work = {
        str(key): partial(PRODUCTS[key[0]], *map(torch.randn, key[1]))
        for key in products
        if key[0] in PRODUCTS
    }
    found = take_turns(work, repeats, each=20)
    return sum(times * found[str(key)].median for key, times in products.items() if key[0] in PRODUCTS)


def best_rate(repeats: int, size: int = 1024) -> float:
    """Return the FLOPs a second of a large product of square float32 matrices."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / take_turns({"large": lambda: left @ right}, repeats)["large"].median
