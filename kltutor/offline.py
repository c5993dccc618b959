"""Completions of the reference to learn from without sampling the policy: all there are, or draws."""

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
from kltutor.world import World

MOST_PAIRS = 2_000_000  # that a population may have: about a second a step


class Offline:
    """The data of one run, handed out a step at a time.

    "fresh" draws from the reference at every step, "fixed" draws with replacement from the pairs of the
    world, and "population" is everything with its exact weight. Two equal completions are no pair and weigh
    nothing. Supervised training reads either side of a pair, whatever its label.
    """

    def __init__(self, run: Run, world: World) -> None:
        """Prepare the population if that is what is learnt from.

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
            self._population = all_pairs(world.task, world.ref_seq_logp)

    def compare(self, policy: nn.Module, generator: torch.Generator) -> Comparison:
        """Return the pairs of the next step, as the policy and the reference score them."""
        if self.run.data == "population":
            return self._compare_all(policy)
        pairs = self._draw(generator)
        prompts, completions = [pairs.prompt] * 2, [pairs.chosen, pairs.rejected]
        if self.run.algorithm == "kto":  # each prompt with the completions to the one before it
            prompts, completions = prompts * 2, [*completions, pairs.chosen.roll(1), pairs.rejected.roll(1)]
        scored = score(policy, self.world, torch.cat(prompts), torch.cat(completions))
        count = len(pairs.prompt)
        chosen, rejected = (Scored(*(part[i : i + count] for part in scored)) for i in (0, count))
        mismatched = Scored(*(part[2 * count :] for part in scored)) if len(prompts) > 2 else None
        differ = (pairs.chosen != pairs.rejected).to(scored.seq_logp)  # a completion is no choice over itself
        return Comparison(chosen, rejected, mismatched, differ / count)

    def show(self, policy: nn.Module, generator: torch.Generator) -> tuple[Scored, Float[Tensor, " row"]]:
        """Return the single completions of the next step and their weights."""
        world = self.world
        if self.run.data == "population":
            scored, weights = _score_all(policy, world), _law(world)
            rows = Scored(*(part.flatten() for part in scored))
            return rows, weights.flatten().to(rows.seq_logp)
        pairs = self._draw(generator)
        first = torch.rand(len(pairs.prompt), generator=generator) < 0.5  # either side: labels do not count
        scored = score(policy, world, pairs.prompt, torch.where(first, pairs.chosen, pairs.rejected))
        return scored, torch.full_like(scored.seq_logp.detach(), 1 / len(first))

    def _draw(self, generator: torch.Generator) -> Pairs:
        run, world = self.run, self.world
        if run.data == "fresh":
            return sample_pairs(world.task, world.ref_seq_logp, run.batch, generator, flip=run.flip)
        rows = torch.randint(len(world.pairs.prompt), (run.batch,), generator=generator)
        return Pairs(*(part[rows] for part in world.pairs))

    def _compare_all(self, policy: nn.Module) -> Comparison:
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


def score(
    policy: nn.Module, world: World, prompt: Int[Tensor, " row"], completion: Int[Tensor, " row"]
) -> Scored:
    """Return the log-probabilities of some completions, in the dtype of the policy and on its device."""
    task, home = world.task, next(policy.parameters()).device
    mask = task.mask[completion].to(home)
    prompts, tokens = task.prompt_tokens[prompt].to(home), task.tokens[completion].to(home)
    logp = completion_logps(policy, prompts, tokens, mask)
    ref = world.ref_seq_logp[prompt, completion].to(logp.device, logp.dtype)
    return Scored(masked_sum(logp, mask), masked_mean(logp, mask), ref)


def _score_all(policy: nn.Module, world: World) -> Scored:
    """Return the same of all completions to all prompts, (prompt, completion), in float64."""
    logp = exact.token_logps(policy, world.task)
    lengths = world.task.mask.sum(-1).to(logp.device)
    seq_logp = logp.sum(-1)
    return Scored(seq_logp, seq_logp / lengths, world.ref_seq_logp.to(logp.device))


def _law(world: World) -> Float[Tensor, "prompt completion"]:
    """Return how often the reference is asked a prompt and answers with a completion."""
    return prompt_probs(world.task, world.ref_seq_logp) * world.ref_seq_logp.exp()
