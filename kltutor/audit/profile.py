"""A function of one fresh token against its log-ratio: shape, clamps, and what rounding does to it."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor.audit.calls import Subject

PRECISION = 2e-4  # of the ends of intervals, nats
WIDEST = 60.0  # nats up to which shape and clamps are looked for
RANGES = (torch.float32, torch.float16)  # dtypes whose overflow is looked for
DIGITS = (torch.float32, torch.bfloat16)  # dtypes whose rounding is looked for
SMALL = (1e-1, 1e-2, 1e-3, 1e-4)  # log-ratios at which it is, nats
BASES = (-0.011, -0.3, -1.7)  # the larger log-probability there, nats
LOST = 0.01  # relative error that counts as lost digits

Interval = tuple[float, float]
EVERYWHERE: Interval = (-math.inf, math.inf)
# What a shape may be made of, at most three of them.
PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "1": torch.ones_like,
    "d": lambda d: d,
    "d²": torch.square,
    "|d|": torch.abs,
    "sign(d)": torch.sign,
    "e^(-d)": lambda d: torch.exp(-d),
    "e^d": torch.exp,
    "d·e^(-d)": lambda d: d * torch.exp(-d),
    "d·e^d": lambda d: d * torch.exp(d),
}


@dataclass(frozen=True)
class Profile:
    """What a function says of one fresh token with log-ratio d = logp - ref_logp, and its slope in logp.

    Attributes:
        formula: the value near d = 0, in words; empty if it has none of the known parts.
        within: log-ratios between which the value keeps to the formula.
        slope_within: log-ratios between which the slope keeps to its own.
        live: log-ratios between which the slope is not 0; None where there is none.
        bounds: smallest and largest value found.
        finite: by dtype, log-ratios between which value and slope are finite.
        lost: by dtype, the largest |d| at which 1 % or more of the value is rounding; 0 where nowhere.
        below_zero: by dtype, whether rounding makes the value negative where exactly it is not.
    """

    formula: str
    within: Interval
    slope_within: Interval
    live: Interval | None
    bounds: Interval
    finite: dict[str, Interval]
    lost: dict[str, float]
    below_zero: dict[str, bool]


def profile(subject: Subject) -> Profile | None:
    """Return the profile of a function of log-probabilities; None for one of logits or of tokens."""
    if {"logits", "ref_logits", "old_logits", "tokens"} & set(subject.inputs):
        return None

    parts = 2 if subject.single else 16
    d = grid(8 if subject.single else 1)
    value, slope = (x.double() for x in one_token(subject, d))

    def at(x: Float[Tensor, " point"]) -> tuple[Tensor, Tensor]:
        if x is d:
            return value, slope
        found, its_slope = one_token(subject, x)
        return found.double(), its_slope.double()

    terms = _fit(d, value)
    slopes = _fit(d, slope)

    def keeps(x: Float[Tensor, " point"]) -> tuple[Tensor, Tensor]:
        """Return where value and slope are what they are near 0; a slope may be a difference of terms."""
        value, slope = at(x)
        return _agree(value, terms, x, 0 * x), _agree(slope, slopes, x, 1e-13 * _size(terms, x))

    def lives(x: Float[Tensor, " point"]) -> Tensor:
        slope = at(x)[1]
        return (slope != 0) | (_agree(slope, slopes, x, 1e-13 * _size(terms, x)) & (len(slopes or {}) > 0))

    lost, below = _digits(subject)
    return Profile(
        formula=_words(terms or {}),
        within=_between(d, lambda x: keeps(x)[0], parts),
        slope_within=_between(d, lambda x: keeps(x)[1], parts),
        live=_between(d, lives, parts) if (slope != 0).any() else None,
        bounds=(value.min().item(), value.max().item()),
        finite={_dtype(dtype): _finite(subject, dtype) for dtype in RANGES},
        lost=lost,
        below_zero=below,
    )


def grid(coarser: int = 1) -> Float[Tensor, " point"]:
    """Return log-ratios from -60 to 60 nats, never 0, dense around it.

    Example:
        >>> len(grid()), grid().abs().min().item()
        (870, 0.005)
    """
    fine, coarse = (0.005, 1, 0.005 * coarser), (1.05, WIDEST, 0.25 * coarser)
    half = torch.cat([torch.arange(*ends, dtype=torch.float64) for ends in (fine, coarse)])
    return torch.cat([-half.flip(0), half])


def one_token(
    subject: Subject, d: Float[Tensor, " point"], dtype: torch.dtype = torch.float64
) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """Return value and slope in logp for completions of one fresh token each, in a dtype.

    The larger of the token's two log-probabilities is -1.
    """
    return _call(subject, (d.clamp(max=0) - 1).to(dtype), (-d.clamp(min=0) - 1).to(dtype))


def _call(subject: Subject, logp: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    live = logp.detach().requires_grad_(not subject.detached)
    columns = {"": live, "ref_": ref, "old_": live.detach()}
    inputs = {f"{name}seq_logp": x for name, x in columns.items()}
    inputs |= {f"{name}logp": x[:, None] for name, x in columns.items()}
    mask = torch.ones(len(logp), 1, dtype=torch.bool)
    values = subject.values(inputs | {"mask": mask}, mask, f"one token a completion, {logp.dtype}")
    values = values.flatten()
    if not values.requires_grad:
        return values, torch.zeros_like(values)
    (slope,) = torch.autograd.grad(values.sum(), live, allow_unused=True)
    return values.detach(), torch.zeros_like(values) if slope is None else slope


def _size(terms: dict[str, float] | None, d: Float[Tensor, " point"]) -> Float[Tensor, " point"]:
    """Return the sum of the sizes of all terms."""
    return sum((abs(factor) * PARTS[name](d).abs() for name, factor in (terms or {}).items()), 0 * d)


def _agree(
    y: Float[Tensor, " point"], terms: dict[str, float] | None, d: Float[Tensor, " point"], slack: Tensor
) -> Bool[Tensor, " point"]:
    """Return where y is the sum of the terms; everywhere if its terms are unknown."""
    if terms is None:
        return torch.ones_like(y, dtype=torch.bool)
    total = sum((factor * PARTS[name](d) for name, factor in terms.items()), 0 * d)
    return (y - total).abs() <= 1e-7 * _size(terms, d) + slack + 1e-12


def _fit(d: Float[Tensor, " point"], y: Float[Tensor, " point"]) -> dict[str, float] | None:
    """Return the fewest parts that make up y around 0, as far out as that goes; None if there are none."""
    for width in (4.0, 1.0, 0.3, 0.1):
        inside = d.abs() <= width
        terms = _combine(d[inside], y[inside])
        if terms is not None:
            return terms
    return None


def _combine(d: Tensor, y: Tensor) -> dict[str, float] | None:
    """Return the fewest parts whose combination is y; None where three are not enough."""
    scale = y.abs().max().item() if y.isfinite().all() else math.inf
    if scale == 0 or math.isinf(scale):
        return {} if scale == 0 else None
    for count in (1, 2, 3):
        for names in itertools.combinations(PARTS, count):
            columns = torch.stack([PARTS[name](d) for name in names], 1)
            factors = torch.linalg.lstsq(columns, y[:, None]).solution
            if (columns @ factors - y[:, None]).abs().max().item() <= 1e-10 * scale:
                return dict(zip(names, factors[:, 0].tolist(), strict=True))
    return None


def _between(d: Float[Tensor, " point"], holds: Callable[[Tensor], Tensor], parts: int) -> Interval:
    """Return the interval around 0 on which a condition holds; an end is sought in so many parts at once."""
    good = holds(d)
    ends = []
    for sign in (-1, 1):
        side = d[d * sign > 0].abs()
        order = side.argsort()
        fine, side = good[d * sign > 0][order], side[order]
        if fine.all():
            ends.append(sign * math.inf)
            continue
        first = int((~fine).int().argmax())
        low, high = side[first - 1].item() if first > 0 else 0.0, side[first].item()
        while high - low > PRECISION:
            inner = torch.linspace(low, high, parts + 1, dtype=torch.float64)
            fine = torch.cat([holds(sign * inner[1:-1]), torch.tensor([False])])
            end = int((~fine).int().argmax()) + 1  # the first that is past it
            low, high = inner[end - 1].item(), inner[end].item()
        ends.append(sign * (low + high) / 2)
    return ends[0], ends[1]


def _finite(subject: Subject, dtype: torch.dtype) -> Interval:
    """Return the log-ratios between which value and slope are finite in a dtype, within 120 nats."""
    half = torch.arange(0.5, 120, 8 if subject.single else 1, dtype=torch.float64)

    def finite(d: Tensor) -> Tensor:
        value, slope = one_token(subject, d, dtype)
        return value.isfinite() & slope.isfinite()

    points = torch.cat([-half.flip(0), half])
    try:
        return _between(points, finite, 2 if subject.single else 16)
    except (ValueError, TypeError):  # not made for this dtype
        return math.nan, math.nan


def _digits(subject: Subject) -> tuple[dict[str, float], dict[str, bool]]:
    """Return where rounding eats the value near 0, and whether it turns it negative, by dtype.

    The truth is the function's own value in float64 of the same rounded log-probabilities, so that what
    is lost is lost in the function. A few log-ratios of either sign stand for each size.
    """
    lost, below = {}, {}
    shares = torch.linspace(0.8, 1, 2 if subject.single else 5, dtype=torch.float64)
    shares = torch.cat([-shares, shares])[:, None, None]
    sizes, bases = (
        torch.tensor(x, dtype=torch.float64) for x in (SMALL, BASES[: 1 if subject.single else 3])
    )
    d = (shares * sizes[:, None]).expand(-1, -1, len(bases)).flatten()
    size = sizes[:, None].expand(len(shares), -1, len(bases)).flatten()
    base = bases.expand(len(shares), len(sizes), -1).flatten()
    for dtype in DIGITS:
        name = _dtype(dtype)
        ref, logp = ((base + shift).to(dtype) for shift in (-d.clamp(min=0), d.clamp(max=0)))
        apart = ref != logp
        try:
            rounded = _call(subject, logp, ref)[0].double()
        except (ValueError, TypeError):  # not made for this dtype
            lost[name], below[name] = math.nan, False
            continue
        true = _call(subject, logp.double(), ref.double())[0].double()
        wrong = apart & ~((rounded - true).abs() <= LOST * true.abs())
        lost[name] = size[wrong].max().item() if wrong.any() else 0.0
        below[name] = bool((apart & (rounded < 0) & (true >= 0)).any())
    return lost, below


def _words(terms: dict[str, float]) -> str:
    words = ""
    for name in sorted(terms, key=lambda name: (name == "1", -len(name))):
        factor = terms[name]
        size = f"{abs(factor):.6g}"
        part = size if name == "1" else name if size == "1" else f"{size}·{name}"
        part = "½·" + name if size == "0.5" and name != "1" else part
        words += (f" {'-' if factor < 0 else '+'} " if words else "-" * (factor < 0)) + part
    return words


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
