"""Worlds small enough to list: prompts, words, a horizon, a gold reward; and tabular policies in them.

A completion is a sequence of at most `horizon` tokens that stops after the end token. One that reaches the
horizon unended is an outcome like the others. With V tokens and horizon T there are
1 + (V-1) + ... + (V-1)^(T-1) ended ones and (V-1)^T unended ones. Token 0 is the end token.
"""

import itertools
from collections.abc import Callable
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
    """A policy with a free logit for every prompt, open prefix and next token.

    Call it as any policy: tokens (batch, time), the prompt first, give logits (batch, time, vocab), where
    position t predicts token t+1. Positions inside the prompt, and after the end, predict nothing: zeros.
    """

    def __init__(self, task: Task, logits: Float[Tensor, "prompt prefix vocab"]) -> None:
        """Wrap the given logits, in the order of `task.open_prefixes`; `zeros`-like start is uniform."""
        super().__init__()
        expected = (len(task.prompts), len(task.open_prefixes), len(task.words))
        if tuple(logits.shape) != expected:
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}; {expected} is expected for {task.name}."
            )
        self.task = task
        self.logits = nn.Parameter(logits.clone())

    @classmethod
    def random(cls, task: Task, generator: torch.Generator, scale: float = 1.0) -> "TabularPolicy":
        """Return a policy with independent normal logits of the given standard deviation, in float64."""
        shape = (len(task.prompts), len(task.open_prefixes), len(task.words))
        return cls(task, scale * torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of the next token at every position."""
        task, device = self.task, self.logits.device
        prompts = task.prompt_tokens.to(device)
        length = prompts.shape[1]
        matches = torch.zeros(len(tokens), len(prompts), dtype=torch.bool, device=device)
        if tokens.shape[1] >= length:
            matches = (tokens[:, None, :length] == prompts).all(-1)
        if not matches.any(-1).all():
            raise ValueError(f"tokens do not begin with one of the {len(prompts)} prompts of {task.name}.")
        prompt = matches.int().argmax(-1)
        completion = tokens[:, length:]
        if completion.numel() and (completion.min() < 0 or completion.max() >= len(task.words)):
            raise ValueError(f"tokens after the prompt lie outside the vocabulary of {task.name}.")
        base = len(task.words) - 1
        index = torch.zeros(len(tokens), dtype=torch.long, device=device)  # position in open_prefixes
        live = torch.ones(len(tokens), dtype=torch.bool, device=device)
        rows = [torch.zeros(len(tokens), length - 1, base + 1, dtype=self.logits.dtype, device=device)]
        for t in range(completion.shape[1] + 1):
            if t > 0:
                live = live & (completion[:, t - 1] != END)
                index = base * index + torch.where(live, completion[:, t - 1], 1)  # base-ary heap order
            live = live & torch.tensor(t < task.horizon, device=device)
            chosen = self.logits[prompt, torch.where(live, index, 0)]
            rows.append(torch.where(live[:, None], chosen, 0)[:, None])
        return torch.cat(rows, 1)


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
