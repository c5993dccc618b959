"""What a run acts in and is measured against: a task, a reference, labelled pairs and a proxy reward."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kltutor import exact
from kltutor.pairs import Pairs, sample_pairs
from kltutor.proxy import fit_proxy
from kltutor.run import Run
from kltutor.tasks import Policy, TabularPolicy, Task


@dataclass(frozen=True, eq=False)
class World:
    """A task and what else does not change while a policy learns. Tables are float64 on the CPU.

    Attributes:
        task: prompts, completions and the gold reward.
        ref: the reference policy, which is never trained.
        pairs: completions of the reference, compared and labelled by the gold reward.
        proxy: reward of every completion as learnt from them.
    """

    task: Task
    ref: Policy
    pairs: Pairs
    proxy: Float[Tensor, "prompt completion"]

    @classmethod
    def around(cls, task: Task, ref: Policy, run: Run) -> "World":
        """Return the world of any task and reference: the run says how many pairs are drawn, and how."""
        generator = torch.Generator().manual_seed(run.world_seed + 1)  # the reference has the seed itself
        with torch.no_grad():
            seq_logp = exact.seq_logp(ref, task).cpu()
        pairs = sample_pairs(task, seq_logp, run.data_size, generator, flip=run.flip)
        return cls(task, ref, pairs, fit_proxy(task, pairs))

    @cached_property
    def ref_logps(self) -> Float[Tensor, "prompt prefix vocab"]:
        """Return log ref(token | prefix) of every token at every open prefix."""
        with torch.no_grad():
            return exact.prefix_logps(self.ref, self.task).cpu()

    @cached_property
    def prefix(self) -> Int[Tensor, "completion time"]:
        """Return which open prefix each token of each completion follows."""
        return exact.prefix_index(self.task)

    @cached_property
    def ref_logp(self) -> Float[Tensor, "prompt completion time"]:
        """Return log ref of every token of every completion, 0 after the end."""
        chosen = self.ref_logps[:, self.prefix, self.task.tokens]
        return chosen.masked_fill(~self.task.mask, 0)

    @cached_property
    def ref_seq_logp(self) -> Float[Tensor, "prompt completion"]:
        """Return log ref of every completion."""
        return self.ref_logp.sum(-1)

    def reward(self, run: Run) -> Float[Tensor, "prompt completion"]:
        """Return the reward that the run trains on."""
        return self.task.reward if run.reward == "gold" else self.proxy

    def fingerprint(self) -> list[float]:
        """Return a few numbers by which a checkpoint knows its world again."""
        logp = self.ref_seq_logp
        return [
            exact.expectation(values, logp, self.task).item()
            for values in (self.task.reward, self.proxy, logp)
        ]


def writer(run: Run) -> TabularPolicy:
    """Return the tabular policy that is the reference, or that a transformer learns to be one from."""
    seed = torch.Generator().manual_seed(run.world_seed)
    return TabularPolicy.random(run.named_task(), seed, run.ref_scale)
