"""The loop: one record a step, checkpoints, and going on from one as if nothing had happened."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from kltutor import checkpoints
from kltutor.finite import logits_stay_finite
from kltutor.learner import Learner
from kltutor.records import Record, measure
from kltutor.run import Run
from kltutor.world import World, writer

CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"
SAME = 1e-6  # difference of two worlds' fingerprints that counts as rounding


def train(run: Run, *, world: World | None = None, folder: Path | None = None) -> "Training":
    """Return the records of a run, one a step, each made when it is asked for.

    Args:
        run: what to do.
        world: what to act in, instead of the task and the reference that the run names.
        folder: where to keep log and checkpoints; it is made. None keeps nothing.

    Raises:
        ValueError: the folder holds a run already, or the world does not suit the run.
        NonFiniteError: from a step that leaves the numbers.

    Example:
        >>> training = train(Run(algorithm="exact", optimiser="natural", rate=1.0, steps=10))
        >>> records = list(training)
        >>> len(records), records[-1].exact.kl_to_optimum < 0.01
        (11, True)
    """
    if folder is None:
        return Training(run, world or make_world(run), None)
    if (folder / CHECKPOINT).exists():
        raise ValueError(
            f"{folder} holds a run, which `resume` continues. Choose another folder for a new one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(run, world or make_world(run), folder)
    (folder / LOG).write_bytes(b"")
    training.save()
    return training


def resume(folder: Path, *, world: World | None = None) -> "Training":
    """Return the rest of the run in a folder: on the same device the very records and parameters to come.

    The log is cut back to where the checkpoint left it. A run that is over has no records left.

    Args:
        folder: of an earlier `train`.
        world: the one that `train` was given, if any.

    Raises:
        FileNotFoundError: the folder holds no checkpoint; start the run with `train`.
        ValueError: checkpoint or log are damaged, or do not belong together or to the world.
    """
    tensors, state = checkpoints.load(folder / CHECKPOINT)
    if "run" not in state:
        raise ValueError(f"{folder / CHECKPOINT} was not written by `train`; its state has no run.")
    run = Run.from_json(json.dumps(state["run"]))
    training = Training(run, world or make_world(run, checkpoints.below("ref", tensors)), folder)
    here, there = training.world.fingerprint(), state["world"]
    if not all(math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) for a, b in zip(here, there, strict=True)):
        raise ValueError(
            f"the checkpoint in {folder} is of another world: E_ref of gold, proxy and log ref are {there} "
            f"there, but {here} here. Pass the world that `train` was given."
        )
    training.learner.restore(tensors)
    training.controller.restore(state["controller"])
    training.step, training.episodes, training.spent = state["step"], state["episodes"], state["seconds"]
    checkpoints.cut(folder / LOG, state["log"])
    return training


def make_world(run: Run, learnt: dict[str, Tensor] | None = None) -> World:
    """Return the world that a run names: its reference a random table, or a transformer that has learnt it.

    Args:
        run: which.
        learnt: parameters of the transformer if they are known; else supervised training finds them.
    """
    tabular = writer(run)
    if run.policy == "tabular" or run.algorithm == "sft":
        return World.around(tabular.task, tabular, run)
    same = ("task", "policy", "layers", "heads", "width", "ref_scale", "world_seed", "device", "dtype")
    lesson = Run(
        algorithm="sft",
        data="population",
        steps=max(run.ref_steps, 1),
        exact_every=max(run.ref_steps, 1),
        seed=run.world_seed,
        **{name: getattr(run, name) for name in same},
    )
    pupil = train(lesson)
    if learnt:
        pupil.policy.load_state_dict(learnt)
    elif run.ref_steps:
        for _ in pupil:
            pass
    return World.around(tabular.task, pupil.policy.requires_grad_(False), run)


class Training(Iterator[Record]):
    """A run under way: an iterator of its records. Make one with `train` or `resume`.

    Attributes:
        run, world, folder: as given.
        learner: the policy with all that moves it.
        controller: what sets beta.
        step, episodes: how many have been made.
        spent: seconds before the last resumption.
    """

    def __init__(self, run: Run, world: World, folder: Path | None) -> None:
        """Stand before the first step."""
        self.run, self.world, self.folder = run, world, folder
        self.learner, self.controller = Learner(run, world), run.rule()
        self.step, self.episodes = 0, 0
        self.spent, self._since = 0.0, time.perf_counter()

    @property
    def policy(self) -> nn.Module:
        """Return the policy as it now is."""
        return self.learner.policy

    def __next__(self) -> Record:
        """Make one step and return its record."""
        run, step = self.run, self.step
        if step > run.steps:
            raise StopIteration
        beta = self.controller.beta
        share = 1 - step / run.steps if run.decay == "linear" else 1.0
        found = None
        if step % run.exact_every == 0 or step == run.steps:
            with logits_stay_finite(step):
                found = measure(run, self.world, self.policy, beta)
        made = None
        if step < run.steps:
            made = self.learner.update(step, share, self.controller)
            self.episodes += run.batch
            if made.kl is not None:
                self.controller.update(made.kl, max(run.batch, 1))
        record = Record(
            step=step,
            episodes=self.episodes,
            seconds=self.seconds,
            beta=beta,
            rate=share * run.rate,
            loss=None if made is None else made.loss,
            gradient_norm=None if made is None else made.gradient_norm,
            sampled={} if made is None else made.sampled,
            exact=found,
        )
        self.step += 1
        if self.folder is not None:
            checkpoints.append(self.folder / LOG, record.to_dict())
            if self.step % run.checkpoint_every == 0 or self.step > run.steps:
                self.save()
        return record

    @property
    def seconds(self) -> float:
        """Return the time since the start, what went before a resumption included."""
        return self.spent + time.perf_counter() - self._since

    def save(self) -> None:
        """Write a checkpoint into the folder, atomically."""
        if self.folder is None:
            raise ValueError("this run has no folder to save in; pass one to `train`.")
        tensors = self.learner.tensors()
        if isinstance(self.world.ref, nn.Module):
            tensors |= {f"ref.{name}": value for name, value in self.world.ref.state_dict().items()}
        state = {
            "run": dataclasses.asdict(self.run),
            "step": self.step,
            "episodes": self.episodes,
            "seconds": self.seconds,
            "controller": self.controller.state(),
            "world": self.world.fingerprint(),
            "log": checkpoints.settle(self.folder / LOG),
        }
        checkpoints.save(self.folder / CHECKPOINT, tensors, state)
