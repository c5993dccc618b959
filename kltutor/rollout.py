"""Completions that a policy drew to learn from, and what it says of completions it is shown."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kltutor.masking import token_logps
from kltutor.model import TinyGPT
from kltutor.run import Run
from kltutor.sampling import Sample, sample
from kltutor.tasks import END, Policy, TabularPolicy, Task
from kltutor.world import World


class Rollout(NamedTuple):
    """A batch that was drawn, or a stack: numbers, none of which requires grad. One row a completion."""

    prompt: Int[Tensor, "*stack batch"]  # index into task.prompts
    tokens: Int[Tensor, "*stack batch time"]
    mask: Bool[Tensor, "*stack batch time"]
    logp: Float[Tensor, "*stack batch time"]  # under the policy that drew them
    scores: Float[Tensor, "*stack batch"]  # reward before any KL
    group: Int[Tensor, "*stack batch"]  # which rows answer one prompt together
    ref_logp: Float[Tensor, "*stack batch time"]
    ref_logps: Float[Tensor, "*stack batch time vocab"]  # of every word the reference might have said
    values: Float[Tensor, "*stack batch time"] | None  # before each token, if there is a critic

    def rows(self, chosen: Int[Tensor, " row"]) -> "Rollout":
        """Return some of the rows of a single batch."""
        return Rollout._make(None if part is None else part[chosen] for part in self)

    def shown(self, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Return prompts, tokens and mask, as `look` takes them."""
        return task.prompt_tokens.to(self.tokens.device)[self.prompt], self.tokens, self.mask


class Now(NamedTuple):
    """What the policy that learns says of completions; differentiable."""

    logps: Float[Tensor, "*stack batch time vocab"]  # of every word, log-normalised
    logp: Float[Tensor, "*stack batch time"]  # of the tokens; 0 where masked
    values: Float[Tensor, "*stack batch time"] | None


class TabularValue(nn.Module):
    """A free value for every prompt and open prefix, 0 at the start."""

    def __init__(
        self, task: Task, *, dtype: torch.dtype, device: torch.device | str, policies: int | None = None
    ) -> None:
        """Start at zero; `policies` as in `TinyGPT`."""
        super().__init__()
        lead = () if policies is None else (policies,)
        shape = *lead, len(task.prompts), len(task.open_prefixes), len(task.words)
        self.table = TabularPolicy(task, torch.zeros(shape, dtype=dtype, device=device))

    def forward(self, tokens: Int[Tensor, "*stack batch time"]) -> Float[Tensor, "*stack batch time"]:
        """Return the value of every position, before the next token is chosen."""
        numbers: Tensor = self.table(tokens)  # as many to a prefix as there are words; one is enough
        return numbers[..., 0]


def look(
    policy: Policy,
    critic: nn.Module | None,
    prompts: Int[Tensor, "*stack batch length"],
    tokens: Int[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
) -> Now:
    """Return what a policy, and a critic if there is one, say of completions; a stack says it of each row.

    The critic of a `TinyGPT` reads its last hidden state and does not train it, so that errors of the values
    never move the policy.
    """
    rows, start = torch.cat([prompts, tokens], -1)[..., :-1], prompts.shape[-1] - 1
    values = None
    if isinstance(policy, TinyGPT):
        hidden = policy.hidden(rows)[..., start:, :]
        logits = policy.logits(hidden)
        values = None if critic is None else critic(hidden.detach())
    else:
        logits = policy(rows)[..., start:, :]
        values = None if critic is None else critic(rows)[..., start:]
    logp = token_logps(logits.flatten(0, -3), tokens.flatten(0, -2)).view(tokens.shape)
    return Now(logits.log_softmax(-1), logp.masked_fill(~mask, 0), values)


def ask(run: Run, world: World, generator: torch.Generator) -> Int[Tensor, " batch"]:
    """Draw which prompts a batch answers, as often as each is asked, `run.group` rows together."""
    asked = torch.tensor(world.task.prompt_probs, dtype=torch.float64)
    drawn = torch.multinomial(asked, run.batch // run.group, replacement=True, generator=generator)
    return drawn.repeat_interleave(run.group)


def complete(
    run: Run,
    world: World,
    prompt: Int[Tensor, "*stack batch"],
    drawn: Sample,
    values: Float[Tensor, "*stack batch time"] | None,
) -> Rollout:
    """Return the rollout of completions that were drawn to the prompts of `ask`, stacked if these are.

    Reward and reference are looked up in the tables of the world and rounded to the policy's dtype.
    """
    completion = locate(world.task, drawn.tokens.cpu(), drawn.mask.cpu())
    return Rollout(
        prompt=prompt.to(drawn.logp.device),
        tokens=drawn.tokens,
        mask=drawn.mask,
        logp=drawn.logp,
        scores=world.reward(run)[prompt, completion].to(drawn.logp),
        group=(torch.arange(prompt.shape[-1]) // run.group).expand(prompt.shape).to(drawn.logp.device),
        ref_logp=world.ref_logp[prompt, completion].to(drawn.logp),
        ref_logps=world.ref_logps[prompt.unsqueeze(-1), world.prefix[completion]].to(drawn.logp),
        values=values,
    )


def draw(
    policy: Policy,
    critic: nn.Module | None,
    prompts: Int[Tensor, "*stack batch length"],
    horizon: int,
    generator: torch.Generator | Sequence[torch.Generator],
) -> tuple[Sample, Float[Tensor, "*stack batch time"] | None]:
    """Draw a completion to every prompt, as `sample`, with the values of a critic if there is one."""
    drawn = sample(policy, prompts, horizon, generator)
    if critic is None:
        return drawn, None
    with torch.no_grad():
        return drawn, look(policy, critic, prompts.to(drawn.tokens.device), drawn.tokens, drawn.mask).values


def roll_out(
    run: Run, world: World, policy: Policy, critic: nn.Module | None, generator: torch.Generator
) -> Rollout:
    """Draw a batch: prompts first, then a completion to each."""
    prompt = ask(run, world, generator)
    drawn, values = draw(policy, critic, world.task.prompt_tokens[prompt], world.task.horizon, generator)
    return complete(run, world, prompt, drawn, values)


def locate(
    task: Task, tokens: Int[Tensor, "*stack batch time"], mask: Bool[Tensor, "*stack batch time"]
) -> Int[Tensor, "*stack batch"]:
    """Return the index of each completion in `task.sequences`."""
    base = len(task.words) - 1
    index = torch.zeros(tokens.shape[:-1], dtype=torch.long, device=tokens.device)
    for t in range(tokens.shape[-1]):
        # Child w of prefix i has index base·i + w; the children of the last prefixes are completions.
        index = torch.where(mask[..., t] & (tokens[..., t] != END), base * index + tokens[..., t], index)
    return index
