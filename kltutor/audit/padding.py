"""What a function does with positions that do not count: padding, masked junk, a row without a token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kltutor.audit.calls import Subject
from kltutor.audit.worlds import Rows, worlds

JUNK = -3.7  # nats, at masked positions
EXTRA = 2  # columns of padding that are added


@dataclass(frozen=True)
class Padding:
    """What padding does to what a function returns; None where the question does not arise.

    Attributes:
        reads_masked: what stands at masked positions changes the value of tokens that count.
        spoils_value: nan or inf at masked positions makes a value nan or infinite.
        spoils_gradient: the same of the gradient, the value being fine.
        refuses: it raises where nan or inf stands at masked positions.
        fills_masked: it returns something else than 0 at masked positions.
        counts: columns of padding, filled with 0, change the value.
        side: padding in front instead of behind changes the value.
        empty: what a row without any token that counts gives: "0", "nan", "an error", ... .
    """

    reads_masked: bool | None = None
    spoils_value: bool | None = None
    spoils_gradient: bool | None = None
    refuses: bool | None = None
    fills_masked: bool | None = None
    counts: bool | None = None
    side: bool | None = None
    empty: str | None = None


def padding(subject: Subject) -> Padding:
    """Return how a function treats padding; of one that takes no mask, only whether zeros count."""
    rows = worlds()[1].rows("stale")
    wide = _widen(rows)
    plain = _values(subject, rows, rows)
    if all("seq_" in name for name in subject.inputs):
        return Padding()
    if not subject.masks:
        told = torch.ones_like(wide.mask)
        padded = _values(subject, Rows(wide.inputs, told, wide.weights), wide)
        return Padding(counts=not _same(plain, padded))
    gaps = ~rows.mask
    junk = _values(subject, _filled(rows, JUNK), rows)
    before, behind = _to_the_right(wide), _values(subject, wide, wide)
    found = [_under(subject, _filled(rows, number), rows) for number in (torch.nan, -torch.inf)]
    refuses = None in found
    spoils = not all(_same(plain, each[0]) for each in found if each)
    returned = subject.values(rows.inputs, rows.mask, "padded rows").detach()
    return Padding(
        reads_masked=not _same(plain, junk),
        spoils_value=spoils,
        spoils_gradient=not spoils and not all(each[1].isfinite().all() for each in found if each),
        refuses=refuses,
        fills_masked=bool((returned[gaps] != 0).any()) if returned.ndim == 2 else None,
        counts=not _same(plain, behind),
        side=not _same(behind, _values(subject, before, before)),
        empty=_empty(subject, rows),
    )


def _values(subject: Subject, rows: Rows, real: Rows) -> Tensor:
    """Return one value a completion, or nan everywhere where the function raises."""
    try:
        values = subject.values(rows.inputs, rows.mask, "padded rows").detach()
    except (ValueError, TypeError):
        return torch.full((len(real.mask),), torch.nan, dtype=torch.float64)
    return values if values.ndim == 1 else values.masked_fill(~real.mask, 0).sum(-1)


def _under(subject: Subject, rows: Rows, real: Rows) -> tuple[Tensor, Tensor] | None:
    """Return values and the size of their gradient in what the policy says; None where it raises."""
    live = {
        name: x.detach().requires_grad_() if name in ("logp", "logits") else x.detach()
        for name, x in rows.inputs.items()
    }
    try:
        values = subject.values(live, rows.mask, "junk at masked positions")
    except (ValueError, TypeError):
        return None
    values = values if values.ndim == 1 else values.masked_fill(~real.mask, 0).sum(-1)
    if not values.requires_grad:
        return values, torch.zeros_like(values)
    leaves = [live["logp"], live["logits"]]
    slopes = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    slope = torch.stack([s.abs().sum() for s in slopes if s is not None] or [torch.zeros(())])
    return values.detach(), slope


def _filled(rows: Rows, junk: float) -> Rows:
    """Return the rows with something else at masked positions of all numbers but whole-sequence ones."""
    inputs = {}
    for i, (name, x) in enumerate(rows.inputs.items()):
        if x.is_floating_point() and "seq_" not in name:
            gaps = ~rows.mask if x.ndim == 2 else ~rows.mask[..., None]
            x = x.masked_fill(gaps, junk + 0.37 * i)  # unlike in every input, so that no difference is 0
        inputs[name] = x
    return rows._replace(inputs=inputs)


def _widen(rows: Rows) -> Rows:
    """Return the rows with more padding behind."""
    inputs = {}
    for name, x in rows.inputs.items():
        last = (0, 0) if x.ndim == 3 else ()
        inputs[name] = x if x.ndim == 1 else torch.nn.functional.pad(x, (*last, 0, EXTRA))
    return Rows(inputs, inputs["mask"], rows.weights)


def _to_the_right(rows: Rows) -> Rows:
    """Return the rows with all padding in front."""
    length, time = rows.mask.sum(-1), rows.mask.shape[1]
    index = (torch.arange(time) + length[:, None]) % time
    inputs = {
        name: x if x.ndim == 1 else x[torch.arange(len(x))[:, None], index] for name, x in rows.inputs.items()
    }
    return Rows(inputs, inputs["mask"], rows.weights)


def _empty(subject: Subject, rows: Rows) -> str:
    """Return what a function says of one completion without a token that counts."""
    one = {name: x[:1].detach() for name, x in rows.inputs.items()}
    one["mask"] = torch.zeros_like(one["mask"])
    try:
        value = subject.call(one, "a row whose mask is all False").flatten()
    except (ValueError, TypeError):
        return "an error"
    if subject.returns == "token":
        return "nan" if value.isnan().any() else "values that count nothing"
    return "nan" if value.isnan().any() else f"{value[0].item():.4g}"


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-13)
