"""Worlds small enough to list: prompts, words, a horizon, a gold reward; and tabular policies in them.

A completion is a sequence of at most `horizon` tokens that stops after the end token. One that reaches the
horizon unended is an outcome like the others. With V tokens and horizon T there are
1 + (V-1) + ... + (V-1)^(T-1) ended ones and (V-1)^T unended ones. Token 0 is the end token.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

END = 0

# From tokens (batch, time) to logits (batch, time, vocab), where logits[:, t] predict token t+1.
Policy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """A world in which every completion can be listed.

    Attributes:
        name: what the task is called.
        words: the vocabulary, `words[0]` ending the completion.
        horizon: the largest number of tokens of a completion, the end token included.
        prompts: each a tuple of words, all of one length; they need not be in the vocabulary.
        prompt_probs: how often each prompt is asked; sums to 1.
        score: gold reward of (prompt, words of the completion without the end token, ended or not).
    """

    name: str
    words: tuple[str, ...]
    horizon: int
    prompts: tuple[tuple[str, ...], ...]
    prompt_probs: tuple[float, ...]
    score: Callable[[tuple[str, ...], tuple[str, ...], bool], float]

    def __post_init__(self) -> None:
        """Refuse a task that could not be listed or asked."""
        if len(self.words) < 2 or len(set(self.words)) != len(self.words):
            raise ValueError(f"words are {self.words}; at least two different words are expected.")
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}; at least 1 is expected.")
        lengths, different = {len(prompt) for prompt in self.prompts}, set(self.prompts)
        if len(lengths) != 1 or 0 in lengths or len(different) != len(self.prompts):
            raise ValueError(
                f"prompts are {self.prompts}; one or more different ones, non-empty and of one length, "
                "are expected."
            )
        probs = self.prompt_probs
        valid = all(p >= 0 for p in probs) and abs(sum(probs) - 1) <= 1e-12  # so written, nan is not
        if len(probs) != len(self.prompts) or not valid:
            raise ValueError(
                f"prompt_probs are {probs}; one probability a prompt, summing to 1, is expected."
            )

    @cached_property
    def prompt_tokens(self) -> Int[Tensor, "prompt length"]:
        """Token ids of the prompts; words outside the vocabulary get ids from V on, as they appear."""
        ids = {word: i for i, word in enumerate(self.words)}
        for word in itertools.chain.from_iterable(self.prompts):
            ids.setdefault(word, len(ids))
        return torch.tensor([[ids[word] for word in prompt] for prompt in self.prompts])

    @cached_property
    def open_prefixes(self) -> tuple[tuple[int, ...], ...]:
        """Every sequence of fewer than `horizon` tokens without an end: where a next token is chosen."""
        words = range(1, len(self.words))
        return tuple(p for t in range(self.horizon) for p in itertools.product(words, repeat=t))

    @cached_property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Every completion as token ids, the end token included: ended ones first, shortest first."""
        unended = itertools.product(range(1, len(self.words)), repeat=self.horizon)
        return tuple((*prefix, END) for prefix in self.open_prefixes) + tuple(unended)

    @cached_property
    def tokens(self) -> Int[Tensor, "completion time"]:
        """All completions, padded with the end token."""
        return torch.tensor([seq + (END,) * (self.horizon - len(seq)) for seq in self.sequences])

    @cached_property
    def mask(self) -> Bool[Tensor, "completion time"]:
        """True at the tokens a policy chose, the end token among them."""
        lengths = torch.tensor([len(seq) for seq in self.sequences])
        return torch.arange(self.horizon) < lengths[:, None]

    @cached_property
    def reward(self) -> Float[Tensor, "prompt completion"]:
        """Gold reward of every completion to every prompt, float64."""
        return torch.tensor(
            [[self.score(prompt, *self.read(seq)) for seq in self.sequences] for prompt in self.prompts],
            dtype=torch.float64,
        )

    @property
    def size(self) -> int:
        """Number of completions to one prompt."""
        return len(self.sequences)

    def read(self, sequence: tuple[int, ...]) -> tuple[tuple[str, ...], bool]:
        """Return the words of a completion without the end token, and whether it ended."""
        return tuple(self.words[t] for t in sequence if t != END), END in sequence


class TabularPolicy(nn.Module):
    """A policy with a free logit for every prompt, open prefix and next token; or a stack of several.

    Call it as any policy: tokens (batch, time), the prompt first, give logits (batch, time, vocab), where
    position t predicts token t+1. Positions inside the prompt, and after the end, predict nothing: zeros.
    A stack of M has one more leading axis in tokens and logits, one entry a policy.
    """

    def __init__(self, task: Task, logits: Float[Tensor, "*stack prompt prefix vocab"]) -> None:
        """Wrap the given logits, in the order of `task.open_prefixes`; `zeros`-like start is uniform."""
        super().__init__()
        expected = (len(task.prompts), len(task.open_prefixes), len(task.words))
        if logits.ndim > 4 or 0 in logits.shape or tuple(logits.shape[-3:]) != expected:
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}; {expected} is expected for {task.name}, with one "
                "more axis in front for a stack."
            )
        self.task = task
        self.logits = nn.Parameter(logits.clone())

    @property
    def policies(self) -> int | None:
        """Return how many policies the stack holds; None for a single one without that axis."""
        return len(self.logits) if self.logits.ndim == 4 else None

    @classmethod
    def random(cls, task: Task, generator: torch.Generator, scale: float = 1.0) -> "TabularPolicy":
        """Return a policy with independent normal logits of the given standard deviation, in float64."""
        shape = (len(task.prompts), len(task.open_prefixes), len(task.words))
        return cls(task, scale * torch.randn(shape, generator=generator, dtype=torch.float64))

    @classmethod
    def stack(cls, policies: Sequence["TabularPolicy"]) -> "TabularPolicy":
        """Return a stack of copies of single policies of one task.

        Raises:
            ValueError: there is none, one is a stack, or tasks differ.
        """
        if len({policy.task for policy in policies}) != 1 or any(policy.policies for policy in policies):
            raise ValueError("single policies, one or more and all of one task, make a stack.")
        return cls(policies[0].task, torch.stack([policy.logits.detach() for policy in policies]))

    def policy(self, index: int) -> "TabularPolicy":
        """Return a copy of one policy of the stack as a single one; training the stack does not move it.

        Raises:
            ValueError: this is no stack, or it has no policy of that index.
        """
        if self.policies is None or not 0 <= index < self.policies:
            held = "a single policy" if self.policies is None else f"a stack of {self.policies}"
            raise ValueError(f"policy {index} was asked of {held}.")
        return type(self)(self.task, self.logits[index].detach())

    def forward(self, tokens: Int[Tensor, "*stack batch time"]) -> Float[Tensor, "*stack batch time vocab"]:
        """Return the logits of the next token at every position."""
        lead = () if self.policies is None else (self.policies,)
        if tokens.shape[:-2] != lead:
            axes = f"{(*lead, 'batch', 'time')}".replace("'", "")
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; {axes} is expected.")
        task, device = self.task, self.logits.device
        prompts = task.prompt_tokens.to(device)
        length, each = prompts.shape[1], tokens.shape[-2]
        rows = tokens.flatten(0, -2)
        matches = torch.zeros(len(rows), len(prompts), dtype=torch.bool, device=device)
        if rows.shape[1] >= length:
            matches = (rows[:, None, :length] == prompts).all(-1)
        if not matches.any(-1).all():
            raise ValueError(f"tokens do not begin with one of the {len(prompts)} prompts of {task.name}.")
        prompt = matches.int().argmax(-1)
        if lead:  # the tables of a stack one below the other
            prompt = prompt + len(prompts) * torch.arange(*lead, device=device).repeat_interleave(each)
        table = self.logits.flatten(0, -3)
        completion = rows[:, length:]
        if completion.numel() and (completion.min() < 0 or completion.max() >= len(task.words)):
            raise ValueError(f"tokens after the prompt lie outside the vocabulary of {task.name}.")
        base = len(task.words) - 1
        index = torch.zeros(len(rows), dtype=torch.long, device=device)  # position in open_prefixes
        live = torch.ones(len(rows), dtype=torch.bool, device=device)
        columns = [torch.zeros(len(rows), length - 1, base + 1, dtype=table.dtype, device=device)]
        for t in range(completion.shape[1] + 1):
            if t > 0:
                live = live & (completion[:, t - 1] != END)
                index = base * index + torch.where(live, completion[:, t - 1], 1)  # base-ary heap order
            live = live & torch.tensor(t < task.horizon, device=device)
            chosen = table[prompt, torch.where(live, index, 0)]
            columns.append(torch.where(live[:, None], chosen, 0)[:, None])
        logits: Tensor = torch.cat(columns, 1).unflatten(0, tokens.shape[:-1])
        return logits


def bandit(rewards: tuple[float, ...] = (0.0, 0.5, 1.0)) -> Task:
    """Return a task of one token and one prompt: action i pays rewards[i]."""
    words = tuple(f"arm {i}" for i in range(len(rewards)))
    payoff = dict(zip(words, rewards, strict=True))
    return Task(
        name="bandit",
        words=words,
        horizon=1,
        prompts=(("pull",),),
        prompt_probs=(1.0,),
        score=lambda prompt, said, ended: payoff[words[0] if ended else said[0]],
    )


SUITS = {"tea": {"warm", "sweet"}, "snow": {"cold", "bright"}, "noon": {"warm", "bright"}}


def _praise(prompt: tuple[str, ...], said: tuple[str, ...], ended: bool) -> float:
    """Score 1 for each different word that suits the prompt, -½ a repetition, -1 if unended."""
    suits = SUITS[prompt[-1]]
    return len(suits & set(said)) - 0.5 * (len(said) - len(set(said))) - (0.0 if ended else 1.0)


def small() -> Task:
    """Return the task for use in a page: 3 words, horizon 4, two prompts, 121 completions each."""
    return Task(
        name="small phrases",
        words=("<end>", "warm", "sweet", "cold"),
        horizon=4,
        prompts=(("praise", "tea"), ("praise", "snow")),
        prompt_probs=(0.6, 0.4),
        score=_praise,
    )


def phrases() -> Task:
    """Return the default task: 5 words and an end, horizon 5, three prompts, 3906 completions each.

    Its gold reward in one sentence: one point for each different word that suits the prompt, minus half a
    point for every repetition, minus one if the phrase does not end.
    """
    return Task(
        name="phrases",
        words=("<end>", "warm", "sweet", "cold", "bright", "and"),
        horizon=5,
        prompts=(("praise", "tea"), ("praise", "snow"), ("praise", "noon")),
        prompt_probs=(0.5, 0.3, 0.2),
        score=_praise,
    )
