"""What katas are graded on: two unlike worlds listed in full, and batches small enough to read."""

from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from kltutor.audit.worlds import worlds
from kltutor.katas.calls import Case

MODERATE, FAR = 3, 5  # the two worlds of completions of several tokens, of 31 and of 15
GARBAGE = {"logp": -2.5, "ref_logp": -0.4, "old_logp": -1.7}  # what may stand at a masked position

Name = Literal["moderate", "far"]


def wide(*rows: object) -> Tensor:
    """Return a float64 tensor."""
    return torch.tensor(rows, dtype=torch.float64)


ARMS = {"logp": wide(0.7, 0.2, 0.1).log(), "ref_logp": wide(0.2, 0.3, 0.5).log()}
# Two rows to read: padding on both sides, and a gap between two turns.
MASK = torch.tensor([[False, True, True, False], [True, False, True, True]])
SMALL = {
    "logp": wide([-0.9, -0.5, -1.2, -0.3], [-1.5, -0.4, -0.7, -2.0]),
    "old_logp": wide([-1.4, -0.7, -0.8, -0.6], [-1.1, -0.2, -1.0, -1.6]),
    "ref_logp": wide([-0.2, -1.1, -1.5, -1.9], [-0.8, -1.6, -1.3, -2.4]),
    "rewards": wide([9.0, -0.1, 1.0, 7.0], [0.3, 5.0, -0.2, 2.0]),
    "values": wide([4.0, 0.5, 0.8, 6.0], [0.2, 8.0, 0.9, 1.5]),
    "advantages": wide([3.0, 1.0, -0.5, 2.0], [-1.5, 4.0, 2.0, 0.7]),
}


@cache
def completions(name: Name) -> dict[str, Tensor]:
    """Return all completions of a world as a batch, behind one token of the prompt.

    Masked positions hold what a trainer may have left there. `seq_logp` and `ref_seq_logp` are normalised
    over the rows, `reward` counts the action tokens, so that there are ties.
    """
    rows = worlds()[MODERATE if name == "moderate" else FAR].rows("stale")
    mask = pad(rows.mask, (1, 0), value=False)
    found = {"mask": mask, "reward": rows.mask.sum(-1).double()}
    for key, garbage in GARBAGE.items():
        values = pad(rows.inputs[key].detach(), (1, 0))
        found[key] = values.masked_fill(~mask, garbage)
    for i, key in enumerate(("rewards", "values", "advantages")):  # any numbers, garbage where masked
        found[key] = torch.cos(3.0 * torch.arange(mask.numel()) + i).double().reshape(mask.shape)
    for key in ("seq_logp", "ref_seq_logp"):
        found[key] = rows.inputs[key].detach()
    # Logits at t predict the token at t + 1: the prompt is token 0, and after the last comes nothing.
    for key in ("logits", "ref_logits"):
        found[key] = pad(rows.inputs[key].detach(), (0, 0, 0, 1))
    found["tokens"] = pad(rows.inputs["tokens"], (1, 0), value=1)
    return found


def token_cases(*names: str, **rest: float) -> Iterator[Case]:
    """Yield the cases of a function of tensors (batch, time), a mask behind them, and numbers behind that."""
    yield Case("two rows with padding and a gap", _inputs(SMALL, MASK, names, rest))
    for world in ("moderate", "far"):
        rows = completions(world)
        yield Case(f"all completions, {world} from the reference", _inputs(rows, rows["mask"], names, rest))
    spoilt = {name: SMALL[name].masked_fill(~MASK, torch.nan) for name in names}
    yield Case("nan at masked positions", _inputs(spoilt, MASK, names, rest), edge=True)


def _inputs(
    values: dict[str, Tensor], mask: Tensor, names: tuple[str, ...], rest: dict[str, float]
) -> dict[str, object]:
    return {**{name: values[name] for name in names}, "mask": mask, **rest}


def listed(world: Name) -> dict[str, Tensor]:
    """Return the completions of a world as the outcomes of one distribution, and a reward of each."""
    rows = completions(world)
    return {"ref_logp": rows["ref_seq_logp"][None], "reward": rows["reward"][None]}
