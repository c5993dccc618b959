"""Completions of the reference to learn from without sampling the policy: all there are, or draws."""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kltutor import exact
from kltutor.algorithms import Comparison, Scored
from kltutor.exact.sums import prompt_probs
from kltutor.masking import masked_mean, masked_sum
from kltutor.pairs import Pairs, all_pairs, sample_pairs
from kltutor.run import Run
from kltutor.sampling import completion_logps
from kltutor.tasks import Policy
from kltutor.world import World

MOST_PAIRS = 2_000_000  # that a population may have: about a second a step


class Offline:
    """The data of one run, handed out a step at a time.

    "fresh" draws from the reference at every step, "fixed" draws with replacement from the pairs of the
    world, and "population" is everything with its exact weight. Two equal completions are no pair and weigh
    nothing. Supervised training reads either side of a pair, whatever its label.
    """

    def __init__(self, run: Run, world: World) -> None:
        """Refuse a population that is too large to sum over.

        Raises:
            ValueError: the population has too many pairs.
        """
        self.run, self.world = run, world
        if run.data == "population" and run.algorithm != "sft":
            count = len(world.task.prompts) * world.task.size**2
            if count > MOST_PAIRS:
                raise ValueError(
                    f"the population of {world.task.name} has {count} pairs; at most {MOST_PAIRS} are "
                    "summed. Set data='fresh' for draws from it."
                )

    @cached_property
    def _population(self) -> tuple[Pairs, Tensor]:
        return all_pairs(self.world.task, self.world.ref_seq_logp)

    def draw(self, generator: torch.Generator) -> "Shown":
        """Draw the completions of the next step, which a policy has then to score."""
        pairs, world = self._draw(generator), self.world
        if self.run.algorithm == "sft":
            first = torch.rand(len(pairs.prompt), generator=generator) < 0.5  # either side: no label counts
            return Shown(world, pairs, False, pairs.prompt, torch.where(first, pairs.chosen, pairs.rejected))
        prompts, completions = [pairs.prompt] * 2, [pairs.chosen, pairs.rejected]
        if self.run.algorithm == "kto":  # each prompt with the completions to the one before it
            prompts, completions = prompts * 2, [*completions, pairs.chosen.roll(1), pairs.rejected.roll(1)]
        return Shown(world, pairs, True, torch.cat(prompts), torch.cat(completions))

    def read_all(self, policy: Policy) -> "Read":
        """Return all that the population holds, as the policy and the reference score it."""
        if self.run.algorithm != "sft":
            return self._compare_all(policy)
        scored, weights = _score_all(policy, self.world), _law(self.world)
        rows = Scored(*(part.flatten() for part in scored))
        return rows, weights.flatten().to(rows.seq_logp)

    def compare(self, policy: Policy, generator: torch.Generator) -> Comparison:
        """Return the pairs of the next step, as the policy and the reference score them."""
        read = self._read(policy, generator)
        assert isinstance(read, Comparison)
        return read

    def show(self, policy: Policy, generator: torch.Generator) -> tuple[Scored, Float[Tensor, " row"]]:
        """Return the single completions of the next step and their weights."""
        read = self._read(policy, generator)
        assert not isinstance(read, Comparison)
        return read

    def _read(self, policy: Policy, generator: torch.Generator) -> "Read":
        if self.run.data == "population":
            return self.read_all(policy)
        shown = self.draw(generator)
        home = next(policy.parameters()).device if isinstance(policy, nn.Module) else "cpu"
        return shown.read(completion_logps(policy, *shown.rows(home)))

    def _draw(self, generator: torch.Generator) -> Pairs:
        run, world = self.run, self.world
        if run.data == "fresh":
            return sample_pairs(world.task, world.ref_seq_logp, run.batch, generator, flip=run.flip)
        rows = torch.randint(len(world.pairs.prompt), (run.batch,), generator=generator)
        return Pairs(*(part[rows] for part in world.pairs))

    def _compare_all(self, policy: Policy) -> Comparison:
        pairs, weights = self._population
        table = _score_all(policy, self.world)
        chosen, rejected = (
            Scored(*(part[pairs.prompt, side] for part in table)) for side in (pairs.chosen, pairs.rejected)
        )
        mismatched = None
        if self.run.algorithm == "kto":
            asked = prompt_probs(self.world.task, self.world.ref_seq_logp)
            law = asked * _law(self.world).sum(0)  # a prompt, a completion to any
            mismatched = Scored(*((law.to(part) * part).sum()[None] for part in table))  # one weighted row
        return Comparison(chosen, rejected, mismatched, weights.to(table.seq_logp))


class Shown(NamedTuple):
    """Completions that were drawn for one step: rows to score, and the pairs that they came from."""

    world: World
    pairs: Pairs
    paired: bool  # whether they are learnt from as pairs
    prompt: Int[Tensor, " row"]
    completion: Int[Tensor, " row"]

    def rows(self, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
        """Return prompts, tokens and mask of the rows, as `look` and `completion_logps` take them."""
        task = self.world.task
        prompts, tokens = task.prompt_tokens[self.prompt], task.tokens[self.completion]
        return prompts.to(device), tokens.to(device), task.mask[self.completion].to(device)

    def read(self, logp: Float[Tensor, "row time"]) -> "Read":
        """Return what is learnt from, given what the policy says of the tokens of the rows."""
        mask = self.world.task.mask[self.completion].to(logp.device)
        ref = self.world.ref_seq_logp[self.prompt, self.completion].to(logp.device, logp.dtype)
        scored = Scored(masked_sum(logp, mask), masked_mean(logp, mask), ref)
        count = len(self.pairs.prompt)
        if not self.paired:
            return scored, torch.full_like(scored.seq_logp.detach(), 1 / count)
        chosen, rejected = (Scored(*(part[i : i + count] for part in scored)) for i in (0, count))
        mismatched = Scored(*(part[2 * count :] for part in scored)) if len(ref) > 2 * count else None
        differ = self.pairs.chosen != self.pairs.rejected  # a completion is no choice over itself
        return Comparison(chosen, rejected, mismatched, differ.to(scored.seq_logp) / count)


Read = Comparison | tuple[Scored, Tensor]  # compared completions, or single ones with their weights


def _score_all(policy: Policy, world: World) -> Scored:
    """Return the same of all completions to all prompts, (prompt, completion), in float64."""
    logp = exact.token_logps(policy, world.task)
    lengths = world.task.mask.sum(-1).to(logp.device)
    seq_logp = logp.sum(-1)
    return Scored(seq_logp, seq_logp / lengths, world.ref_seq_logp.to(logp.device))


def _law(world: World) -> Float[Tensor, "prompt completion"]:
    """Return how often the reference is asked a prompt and answers with a completion."""
    return prompt_probs(world.task, world.ref_seq_logp) * world.ref_seq_logp.exp()
