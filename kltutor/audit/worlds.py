"""Worlds small enough to list, near and far from their reference, in which a function is measured.

Every world has a policy, a reference, and the policy before its last update, which drew stale samples.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor.exact import prefix_index
from kltutor.tasks import TabularPolicy, Task

Distance = Literal["near", "moderate", "far"]
Samples = Literal["fresh", "stale"]

DISTANCES: tuple[Distance, ...] = get_args(Distance)

TINY = (  # of the far world of one action; the policy has lost two arms and found another
    (0.49 - 1e-12, 0.01, 1e-12, 0.5),
    (0.3 - 1e-7, 0.5, 0.2, 1e-7),
)


class Rows(NamedTuple):
    """One row a completion: whatever a function may be called with, and how likely the row is."""

    inputs: dict[str, Tensor]
    mask: Bool[Tensor, "row time"]
    weights: Float[Tensor, " row"]  # probability under the sampler


@dataclass(frozen=True, eq=False)
class World:
    """A task of one prompt and three policies in it.

    Attributes:
        kind: "one action" or "completions".
        distance: how far policy and reference are apart.
        task: what can be said.
        policy: the policy that learns.
        ref: the reference.
        old: the policy before its last update.
    """

    kind: str
    distance: Distance
    task: Task
    policy: TabularPolicy
    ref: TabularPolicy
    old: TabularPolicy

    @property
    def name(self) -> str:
        """Return kind and distance in words."""
        return f"{self.kind}, {self.distance}"

    @cache  # noqa: B019 - worlds are few and kept
    def rows(self, samples: Samples) -> Rows:
        """Return all completions as a batch; what belongs to the policy hangs on its parameters.

        They are made once, so backward passes through them keep the graph.
        Fresh samples are drawn by the policy itself, and old_logp is then logp, detached.
        """
        drew = self.policy if samples == "fresh" else self.old
        mask, inputs = self.task.mask, {"mask": self.task.mask, "tokens": self.task.tokens}
        for prefix, policy in (("", self.policy), ("ref_", self.ref), ("old_", drew)):
            logits = policy.logits[0][prefix_index(self.task)].masked_fill(~mask[..., None], 0)
            if prefix:
                logits = logits.detach()
            logp = logits.log_softmax(-1).gather(-1, self.task.tokens[..., None])[..., 0]
            logp = logp.masked_fill(~mask, 0)
            inputs |= {f"{prefix}logits": logits, f"{prefix}logp": logp, f"{prefix}seq_logp": logp.sum(-1)}
        return Rows(inputs, mask, inputs["old_seq_logp"].exp())


KINDS = ("logp", "seq_logp", "logits")
INPUTS = (*(prefix + kind for kind in KINDS for prefix in ("", "ref_", "old_")), "mask", "tokens")


@cache
def worlds() -> tuple[World, ...]:
    """Return the worlds, nearest first: at each distance one of one action and one of completions.

    Example:
        >>> [world.name for world in worlds()][:3]
        ['one action, near', 'completions, near', 'one action, moderate']
    """
    near = [_world("near", *shape, seed=0, ref=0.5, policy=None) for shape in ((5, 1), (3, 3))]
    mid = [_world("moderate", *shape, seed=33, ref=0.8, policy=0.8) for shape in ((5, 1), (3, 4))]
    far = _world("far", 3, 3, seed=0, ref=6.0, policy=4.0)
    lost, ref = (torch.tensor(p, dtype=torch.float64).log()[None, None] for p in TINY)
    task = _task(4, 1)
    step = 0.4 * torch.randn(lost.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lone = World(
        "one action", "far", task, *(TabularPolicy(task, logits) for logits in (lost, ref, lost - step))
    )
    return (*near, *mid, lone, far)


def pair(task: Task, policy: Float[Tensor, "prefix vocab"], ref: Float[Tensor, "prefix vocab"]) -> World:
    """Return a world of two given tables of next-token probabilities, whose old policy is the policy."""
    learner, anchor = (TabularPolicy(task, table.log()[None]) for table in (policy, ref))
    kind = "one action" if task.horizon == 1 else "completions"
    return World(kind, "moderate", task, learner, anchor, learner)


@cache
def kl(world: World) -> float:
    """Return KL(policy ‖ ref) of a world in nats per sequence, from the definition.

    Example:
        >>> [round(kl(world), 4) for world in worlds()[:2]]
        [0.0003, 0.0006]
    """
    rows = world.rows("fresh")
    log_ratio = (rows.inputs["seq_logp"] - rows.inputs["ref_seq_logp"]).detach()
    return math.fsum((rows.weights.detach() * log_ratio).tolist())


def _world(
    distance: Distance, words: int, horizon: int, *, seed: int, ref: float, policy: float | None
) -> World:
    """Return a world of random logits of these scales; the policy is close to ref where it has none."""
    task, generator = _task(words, horizon), torch.Generator().manual_seed(seed)
    shape = (1, len(task.open_prefixes), words)
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    anchor = ref * draws[0]
    learner = anchor + 0.03 * draws[1] if policy is None else policy * draws[1]
    step = 0.03 if policy is None else 0.4
    return World(
        "one action" if horizon == 1 else "completions",
        distance,
        task,
        *(TabularPolicy(task, logits) for logits in (learner, anchor, learner - step * draws[2])),
    )


def _task(words: int, horizon: int) -> Task:
    return Task(
        name="audit",
        words=("<end>", *(f"word {i}" for i in range(1, words))),
        horizon=horizon,
        prompts=(("say",),),
        prompt_probs=(1.0,),
        score=lambda prompt, said, ended: 0.0,
    )
