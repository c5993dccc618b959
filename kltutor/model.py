"""TinyGPT: a small causal transformer, and a stack of several that train in one program.

Pre-norm blocks, learned positions, attention by `scaled_dot_product_attention`, linear maps without biases. A
single model reads tokens (batch, time). A stack of M has the same parameters with one more leading axis,
reads (M, batch, time), and computes what M single ones would.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kltutor.blocks import Block, Norm, ParameterSource, compilable, linear, look_up, one_each
from kltutor.checks import check_tokens
from kltutor.tasks import Task

# Keys and values of every layer, each (policies × batch, heads, time, width / heads).
Cache = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class GPTShape:
    """The size of a TinyGPT.

    Attributes:
        inputs: how many different tokens it can read.
        outputs: how many it can write: the first of those it reads. The others occur in prompts only.
        length: the largest number of tokens of a row.
        layers: number of blocks.
        heads: attention heads of a block; they share the width.
        width: size of the hidden state.
        tied: whether the head is the embedding of the tokens it writes.
    """

    inputs: int
    outputs: int
    length: int
    layers: int = 1
    heads: int = 2
    width: int = 32
    tied: bool = False

    def __post_init__(self) -> None:
        """Refuse a shape that no model has."""
        for field in fields(self):
            if getattr(self, field.name) < 1 and field.name != "tied":
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; at least 1 is expected.")
        if self.outputs > self.inputs:
            raise ValueError(
                f"outputs is {self.outputs} and inputs {self.inputs}, but a model reads what it wrote; "
                "outputs may not exceed inputs."
            )
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide width {self.width}.")


class TinyGPT(nn.Module):
    """A policy: tokens (batch, time) to logits (batch, time, outputs), where logits[:, t] predict token t+1.

    With `policies=M` it is a stack: tokens (M, batch, time), logits (M, batch, time, outputs). Under
    `torch.autocast` it computes in the lower precision and returns logits in the dtype of its parameters.
    """

    def __init__(
        self,
        shape: GPTShape,
        *,
        generator: torch.Generator | Sequence[torch.Generator],
        dtype: torch.dtype,
        device: torch.device | str,
        policies: int | None = None,
    ) -> None:
        """Draw all parameters.

        They are drawn on the CPU in float64 and rounded afterwards, so a seed means one model on every
        device, and element i of a stack is the single model that generators[i] gives.

        Args:
            shape: its size.
            generator: on the CPU; for a stack a sequence of them, one a policy.
            dtype: torch.float32 or torch.float64.
            device: where it lives.
            policies: how many policies the stack holds; None for a single model without that axis.

        Raises:
            ValueError: dtype is another, or float64 on mps, which has none; the generators are not one a
                policy, not all different, or not on the CPU.
        """
        super().__init__()
        new = ParameterSource(one_each(generator, policies), policies, dtype, torch.device(device))
        self.shape = shape
        self.policies = policies
        self.token = new.normal(shape.inputs, shape.width, scale=1.0)
        self.position = new.normal(shape.length, shape.width, scale=1.0)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.layers, new) for _ in range(shape.layers)
        )
        self.norm = Norm(shape.width, new)
        scale = 1 / math.sqrt(shape.width)
        self.head = None if shape.tied else new.normal(shape.outputs, shape.width, scale=scale)

    @classmethod
    def for_task(
        cls,
        task: Task,
        *,
        generator: torch.Generator | Sequence[torch.Generator],
        dtype: torch.dtype,
        device: torch.device | str,
        policies: int | None = None,
        layers: int = 1,
        heads: int = 2,
        width: int = 32,
        tied: bool = False,
    ) -> "TinyGPT":
        """Return a model that reads the prompts of a task and writes its completions.

        Example:
            >>> from kltutor import exact, tasks
            >>> task, seed = tasks.small(), torch.Generator().manual_seed(0)
            >>> model = TinyGPT.for_task(task, generator=seed, dtype=torch.float64, device="cpu")
            >>> exact.seq_logp(model, task).exp().sum(-1).detach()
            tensor([1.0000, 1.0000], dtype=torch.float64)
        """
        prompts, words = task.prompt_tokens, len(task.words)
        inputs, length = max(words, int(prompts.max()) + 1), prompts.shape[1] + task.horizon
        shape = GPTShape(inputs, words, length, layers, heads, width, tied)
        return cls(shape, generator=generator, dtype=dtype, device=device, policies=policies)

    @classmethod
    def stack(cls, models: Sequence["TinyGPT"]) -> "TinyGPT":
        """Return a stack of copies of single models of one shape.

        Raises:
            ValueError: there is none, one is a stack, or shapes, dtypes or devices differ.
        """
        kinds = {(model.shape, model.policies, model.token.dtype, model.token.device) for model in models}
        if len(kinds) != 1 or models[0].policies is not None:
            raise ValueError(
                f"models are of {len(kinds)} kinds; single ones of one shape, dtype and device are expected."
            )
        each = [dict(model.named_parameters()) for model in models]
        return models[0]._with(len(models), {k: torch.stack([one[k] for one in each]) for k in each[0]})

    def policy(self, index: int) -> "TinyGPT":
        """Return a copy of one policy of the stack as a single model; training the stack does not move it.

        Raises:
            ValueError: this is no stack, or it has no policy of that index.
        """
        if self.policies is None or not 0 <= index < self.policies:
            held = "a single model" if self.policies is None else f"a stack of {self.policies}"
            raise ValueError(f"policy {index} was asked of {held}.")
        return self._with(None, {name: value[index] for name, value in self.named_parameters()})

    @compilable
    def forward(self, tokens: Int[Tensor, "*stack batch time"]) -> Float[Tensor, "*stack batch time vocab"]:
        """Return the logits of the next token at every position; errors as `hidden`."""
        return self.logits(self.hidden(tokens))

    @compilable
    def hidden(self, tokens: Int[Tensor, "*stack batch time"]) -> Float[Tensor, "*stack batch time width"]:
        """Return the last hidden state at every position, which `logits` and a `ValueHead` read.

        Raises:
            ValueError: the axes are not those of this model, the rows are too long, or (not while compiling)
                a token is not one that the model reads.
        """
        if not torch.compiler.is_compiling():
            check_tokens(tokens, self.shape.inputs)
        return self.extend(tokens, None)[0]

    @compilable
    def logits(
        self, hidden: Float[Tensor, "*stack batch time width"]
    ) -> Float[Tensor, "*stack batch time vocab"]:
        """Return the logits of the next token from hidden states."""
        if self.head is None:  # by the width, or a new model would repeat what it has just read
            logits: Tensor = linear(hidden, self.token[..., : self.shape.outputs, :]) / self.shape.width
        else:
            logits = linear(hidden, self.head)
        return logits.to(self.token.dtype)

    @compilable
    def extend(
        self, tokens: Int[Tensor, "*stack batch time"], cache: Cache | None
    ) -> tuple[Float[Tensor, "*stack batch time width"], Cache]:
        """Return the hidden states of tokens that follow those in the cache, and the cache with them added.

        Token ids are not checked here. After the first call, give one token at a time.

        Raises:
            ValueError: the axes are not those of this model, the rows are too long, or several tokens follow
                a cache.
        """
        past = 0 if cache is None else cache[0][0].shape[-2]
        if tokens.shape[:-2] != (() if self.policies is None else (self.policies,)):
            axes = "(batch, time)" if self.policies is None else f"({self.policies}, batch, time)"
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; {axes} is expected.")
        if past + tokens.shape[-1] > self.shape.length:
            raise ValueError(
                f"rows are {past + tokens.shape[-1]} tokens long; at most {self.shape.length} are possible."
            )
        if past and tokens.shape[-1] != 1:
            raise ValueError(f"{tokens.shape[-1]} tokens follow the cache; one at a time is expected.")
        positions = self.position[..., past : past + tokens.shape[-1], :].unsqueeze(-3)
        state = look_up(self.token, tokens) + positions
        grown = []
        for i, block in enumerate(self.blocks):
            state, kept = block(state, None if cache is None else cache[i])
            grown.append(kept)
        return self.norm(state), tuple(grown)

    def _with(self, policies: int | None, values: dict[str, Tensor]) -> "TinyGPT":
        """Return a model like this one with copies of other parameters."""
        result = copy.deepcopy(self)
        result.policies = policies
        for name, value in values.items():
            module, _, leaf = name.rpartition(".")
            setattr(result.get_submodule(module), leaf, nn.Parameter(value.detach().clone()))
        return result


class ValueHead(nn.Module):
    """Values from the last hidden state, one a position: what is still to come after the tokens so far.

    It starts at zero everywhere, so it needs no generator. Position t of a row values the state before token
    t+1 is chosen, as the logits there do.
    """

    def __init__(
        self, width: int, *, dtype: torch.dtype, device: torch.device | str, policies: int | None = None
    ) -> None:
        """Start at zero; `policies` as in `TinyGPT`."""
        super().__init__()
        new = ParameterSource([], policies, dtype, torch.device(device))
        self.weight = new.full(1, width, value=0.0)
        self.bias = new.full(1, value=0.0)

    @compilable
    def forward(self, hidden: Float[Tensor, "*stack batch time width"]) -> Float[Tensor, "*stack batch time"]:
        """Return the value of every position."""
        value: Tensor = linear(hidden, self.weight)
        return value.squeeze(-1) + self.bias.unsqueeze(-1)
