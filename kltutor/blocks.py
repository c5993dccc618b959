"""The parts of TinyGPT, for one policy or a stack: parameters and their draws, linear maps, norms, blocks.

What a stack holds has one more leading axis, one entry a policy. Modules and functions marked `no_type_check`
run inside compiled programs and take shapes on trust: `TinyGPT` has checked the tokens.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast, no_type_check

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Method = TypeVar("Method", bound=Callable[..., object])


def compilable(method: Method) -> Method:
    """Leave the check of the signature, which torch.compile cannot trace, out of compiled programs."""
    plain = inspect.unwrap(method)

    @functools.wraps(method)
    @no_type_check
    def call(*args, **kwargs):
        return (plain if torch.compiler.is_compiling() else method)(*args, **kwargs)

    return cast(Method, call)


def one_each(
    generator: torch.Generator | Sequence[torch.Generator], policies: int | None
) -> list[torch.Generator]:
    """Return one generator a policy, or raise ValueError."""
    single = isinstance(generator, torch.Generator)
    each = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if single != (policies is None) or (policies is not None and len(each) != policies):
        wanted = "one generator" if policies is None else f"a sequence of {policies} generators"
        given = "one generator" if single else f"a sequence of {len(each)}"
        raise ValueError(f"generator is {given}; {wanted} is expected when policies is {policies}.")
    if len({id(one) for one in each}) != len(each):
        raise ValueError("generator holds one object twice; each policy needs its own.")
    for one in each:
        if one.device.type != "cpu":
            raise ValueError(
                f"generator is on {one.device}; one on the CPU is expected, so that a seed means the same "
                "numbers on every device."
            )
    return each


class ParameterSource:
    """Where parameters come from: for a stack, one draw from each generator, on a new leading axis."""

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        policies: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Refuse what could not be computed with."""
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype is {dtype}; torch.float32 or torch.float64 is expected. For bfloat16, keep float32 "
                "parameters and run under torch.autocast(device_type, torch.bfloat16)."
            )
        if device.type == "mps" and dtype == torch.float64:
            raise ValueError("device mps has no float64; use dtype=torch.float32, or device='cpu'.")
        if policies is not None and policies < 1:
            raise ValueError(f"policies is {policies}; at least 1, or None for a single model, is expected.")
        self.generators, self.policies, self.dtype, self.device = generators, policies, dtype, device

    def normal(self, *dims: int, scale: float) -> nn.Parameter:
        """Draw a parameter of independent normal entries."""
        draws = [torch.randn(dims, generator=each, dtype=torch.float64) for each in self.generators]
        value = draws[0] if self.policies is None else torch.stack(draws)
        return nn.Parameter((scale * value).to(self.device, self.dtype))

    def full(self, *dims: int, value: float) -> nn.Parameter:
        """Return a parameter that starts at one value."""
        lead = () if self.policies is None else (self.policies,)
        return nn.Parameter(torch.full((*lead, *dims), value, dtype=self.dtype, device=self.device))


@no_type_check
def linear(values: Tensor, weight: Tensor) -> Tensor:
    """Apply a weight (out, in), or one a policy on a leading axis, to the last axis."""
    if weight.ndim == 2:
        return F.linear(values, weight)
    return torch.bmm(values.flatten(1, -2), weight.mT).unflatten(1, values.shape[1:-1])


@no_type_check
def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Return rows of a table (row, width), or of one a policy on a leading axis."""
    if table.ndim == 2:
        return F.embedding(index, table)
    start = torch.arange(len(table), device=table.device) * table.shape[1]
    return F.embedding(index + start[:, None, None], table.flatten(0, 1))


@no_type_check
class Norm(nn.Module):
    """Layer normalisation with a gain and a shift."""

    def __init__(self, width: int, new: ParameterSource) -> None:
        """Start as the plain normalisation."""
        super().__init__()
        self.gain = new.full(width, value=1.0)
        self.shift = new.full(width, value=0.0)

    def forward(self, state: Tensor) -> Tensor:
        """Return the normalised state."""
        if self.gain.ndim == 1:  # one kernel instead of three
            return F.layer_norm(state, state.shape[-1:], self.gain, self.shift)
        gain, shift = self.gain[..., None, None, :], self.shift[..., None, None, :]
        return F.layer_norm(state, state.shape[-1:]) * gain + shift


@no_type_check
class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to what it read."""

    def __init__(self, width: int, heads: int, layers: int, new: ParameterSource) -> None:
        """Draw the weights of one of so many layers."""
        super().__init__()
        scale = 1 / math.sqrt(2 * layers)  # the sum over blocks keeps its size
        self.heads = heads
        self.attention_norm = Norm(width, new)
        self.query_key_value = new.normal(3 * width, width, scale=1 / math.sqrt(width))
        self.attended = new.normal(width, width, scale=scale / math.sqrt(width))
        self.mlp_norm = Norm(width, new)
        self.up = new.normal(4 * width, width, scale=1 / math.sqrt(width))
        self.down = new.normal(width, 4 * width, scale=scale / math.sqrt(4 * width))

    def forward(
        self, state: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the new state, and keys and values of all tokens so far; `past` holds the earlier ones."""
        time, width = state.shape[-2:]
        mixed = linear(self.attention_norm(state), self.query_key_value)
        split = mixed.reshape(-1, time, 3, self.heads, width // self.heads)  # policies folded into rows
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            key, value = torch.cat([past[0], key], -2), torch.cat([past[1], value], -2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        state = state + linear(seen.transpose(1, 2).reshape(state.shape), self.attended)
        state = state + linear(F.gelu(linear(self.mlp_norm(state), self.up)), self.down)
        return state, (key, value)
