"""The loop: one record a step, checkpoints, and going on from one as if nothing had happened."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kltutor import checkpoints
from kltutor.checks import check_device
from kltutor.learner import Learner
from kltutor.records import Record
from kltutor.run import Run, one_line
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
        ValueError: the folder holds a run already, the machine lacks the device, or the world does not suit
            the run.
        NonFiniteError: from a step that leaves the numbers.

    Example:
        >>> training = train(Run(algorithm="exact", optimiser="natural", rate=1.0, steps=10))
        >>> records = list(training)
        >>> len(records), records[-1].exact.kl_to_optimum < 0.01
        (11, True)
    """
    check_device(run.device)
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
        ValueError: checkpoint or log are damaged, of another version of the package, or do not belong
            together or to the world; or the machine lacks the device.
    """
    run, tensors, state = saved(folder)
    check_device(run.device)
    try:
        training = Training(run, world or make_world(run, checkpoints.below("ref", tensors)), folder)
        here, there = training.world.fingerprint(), state["world"]
        pairs = zip(here, there, strict=False)
        if not all(math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) for a, b in pairs):
            raise ValueError(
                f"the checkpoint in {folder} is of another world: E_ref of gold, proxy and log ref are "
                f"{there} there, but {here} here. Pass the world that `train` was given."
            )
        training.learner.restore(tensors)
        training.controller.restore(state["controller"])
        training.step, training.spent = state["step"], state["seconds"]
        _check_restored(training, tensors)
        checkpoints.cut(folder / LOG, state["log"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise _other_version(folder, error) from error
    return training


def saved(folder: Path) -> tuple[Run, dict[str, Tensor], dict[str, Any]]:
    """Return the run in a folder, with the tensors and the state of its last checkpoint.

    Raises:
        FileNotFoundError: the folder holds no checkpoint; start the run with `train`.
        ValueError: the checkpoint is damaged, or of another version of the package.
    """
    tensors, state = checkpoints.load(folder / CHECKPOINT)
    try:
        return Run(**state["run"]), tensors, state
    except (KeyError, TypeError, ValueError) as error:
        raise _other_version(folder, error) from error


def _check_restored(training: "Training", there: dict[str, Tensor]) -> None:
    """Raise KeyError unless a checkpoint's tensors are in place, bit for bit, none missing and none over."""
    here = training.learner.tensors()
    for name in sorted(here.keys() | there.keys()):
        if name.startswith("ref."):
            continue
        mine, kept = here[name].cpu(), there[name]
        if mine.dtype != kept.dtype or not torch.equal(mine, kept):
            raise KeyError(f"{name} is of another kind")
    moments = training.learner.optimiser.state
    if training.step and training.run.optimiser == "adam" and not moments:
        raise KeyError("moments of Adam")
    for parameter, found in moments.items():
        if {found[name].shape for name in ("exp_avg", "exp_avg_sq")} != {parameter.shape}:
            raise KeyError("moments of Adam are of another shape")


def _other_version(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{folder / CHECKPOINT} holds no run of this version of the package ({type(error).__name__}: "
        f"{one_line(error)}). Use the version that saved it, or start the run again in another folder."
    )


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
        step: how many have been made.
        spent: seconds before the last resumption.
    """

    def __init__(self, run: Run, world: World, folder: Path | None) -> None:
        """Stand before the first step."""
        self.run, self.world, self.folder = run, world, folder
        self.learner, self.controller = Learner(run, world), run.rule()
        self.step = 0
        self.spent, self._since = 0.0, time.perf_counter()

    @property
    def policy(self) -> nn.Module:
        """Return the policy as it now is."""
        return self.learner.policy

    def __next__(self) -> Record:
        """Make one step and return its record."""
        run = self.run
        if self.step > run.steps:
            raise StopIteration
        record = self.learner.advance(self.step, self.controller, lambda: self.seconds)
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
            "seconds": self.seconds,
            "controller": self.controller.state(),
            "world": self.world.fingerprint(),
            "log": checkpoints.settle(self.folder / LOG),
        }
        checkpoints.save(self.folder / CHECKPOINT, tensors, state)
