"""What an audit found: the findings, their judgement, and three ways to show them."""

import html
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from kltutor.audit.calls import Returns
from kltutor.audit.padding import Padding
from kltutor.audit.profile import EVERYWHERE, Interval, Profile
from kltutor.audit.worlds import DISTANCES, Distance

if TYPE_CHECKING:
    from rich.table import Table

Value = Literal[
    "reverse-kl", "forward-kl", "chi2-minus-kl", "minus-kl", "zero", "half-log2", "abs-log", "step-kl"
]
Gradient = Literal["none", "reverse", "forward", "half-chi2"]

# The names that each expectation accepts; "per token" sums over tokens, and is the same for one action.
VALUES: dict[Value, str] = {
    "reverse-kl": "KL(π‖ref)",
    "forward-kl": "KL(ref‖π)",
    "chi2-minus-kl": "χ²(π‖ref) - KL(π‖ref)",
    "minus-kl": "-KL(π‖ref)",
    "zero": "0",
    "half-log2": "½E[log²(π/ref)]",
    "abs-log": "E|log(π/ref)|",
    "step-kl": "KL(old‖π)",
}
GRADIENTS: dict[Gradient, str] = {
    "none": "0",
    "reverse": "∇KL(π‖ref)",
    "forward": "∇KL(ref‖π)",
    "half-chi2": "∇½χ²(π‖ref)",
}
DETACHED = "no gradient (detached)"


@dataclass(frozen=True)
class Reading:
    """What a function gave in one world, beside the exact KL.

    Attributes:
        world: "one action" or "completions".
        distance: "near", "moderate" or "far".
        kl: exact KL(π‖ref), nats per sequence.
        mean: exact expectation of the function's value of a completion, on fresh samples.
        sd: exact standard deviation of that value.
        angle: degrees between its mean gradient as a loss and ∇KL(π‖ref); nan where it has none.
    """

    world: str
    distance: Distance
    kl: float
    mean: float
    sd: float
    angle: float

    @property
    def bias(self) -> float:
        """Return mean minus KL(π‖ref)."""
        return self.mean - self.kl


@dataclass(frozen=True)
class Counterexample:
    """Two distributions over a few outcomes on which a function's mean is not KL(policy ‖ ref).

    Attributes:
        outcomes: what can be said.
        policy: how likely each is.
        ref: how likely the reference finds it.
        given: exact mean of the function.
        right: exact KL(policy ‖ ref), nats per sequence.
    """

    outcomes: tuple[str, ...]
    policy: tuple[float, ...]
    ref: tuple[float, ...]
    given: float
    right: float

    def __str__(self) -> str:
        """Return it in one line."""
        policy, ref = (", ".join(f"{p:.4g}" for p in probs) for probs in (self.policy, self.ref))
        return f"π = ({policy}), ref = ({ref}): {self.given:.6g}, and KL(π‖ref) = {self.right:.6g}"


@dataclass(frozen=True)
class Verdict:
    """What a KL function estimates and which gradient it gives, found by measuring.

    Attributes:
        name: of the function.
        inputs: what its positional arguments were.
        returns: "token", "sequence" or "scalar".
        value: what its expectation is on fresh samples; or on samples of the old policy, where it is 0 on
            fresh ones because it compares π with old. "none of the known" has its numbers in `readings`.
        value_reach: the largest distance at which it is; None if it has no name.
        gradient: what its mean gradient is when it is minimised on fresh samples.
        gradient_reach: the largest distance at which it is.
        stale_value: what its expectation is on samples of the old policy.
        stale_gradient: what its mean gradient is on them, one update later.
        readings: mean, spread and angle at several distances.
        profile: one token against its log-ratio; None for a function of logits or tokens.
        padding: masks and padding.
        reduction: how a scalar of two completions is made: "mean", "token mean", "sum", or another.
        alone: the rows of a batch change each other's values; measured one completion at a time.
        counterexample: where it is not KL(π‖ref); None if it always is.
        words: all this in a paragraph.
    """

    name: str
    inputs: tuple[str, ...]
    returns: Returns
    value: str
    value_reach: Distance | None
    gradient: str
    gradient_reach: Distance | None
    stale_value: str
    stale_gradient: str
    readings: tuple[Reading, ...]
    profile: Profile | None
    padding: Padding
    reduction: str
    alone: bool
    counterexample: Counterexample | None
    words: str

    def expects(self, *, value: Value | None = None, gradient: Gradient | None = None) -> bool:
        """Return whether the function is what somebody expects it to be: `misses` finds nothing."""
        return not self.misses(value=value, gradient=gradient)

    def misses(self, *, value: Value | None = None, gradient: Gradient | None = None) -> tuple[str, ...]:
        """Return what is not as expected, one sentence each.

        The value is judged by its expectation, the gradient as that of a loss on fresh samples. Both must
        have the factor 1 and hold in every world, so for log-ratios of up to about 20 nats; a clamp that
        acts beyond is told, not judged. Sums over tokens count as their direction.

        Raises:
            jaxtyping.TypeCheckError: an expectation is not one of `VALUES` or `GRADIENTS`.

        Example:
            >>> from kltutor import k3
            >>> from kltutor.audit import check
            >>> check(k3).misses(value="reverse-kl", gradient="reverse")
            ('gradient: reverse is expected, ∇KL(π‖ref), but it is ∇KL(ref‖π) per token.',)
        """
        missed = []
        if value is not None and not _is(self.value, VALUES[value], self.value_reach):
            missed.append(f"value: {value} is expected, {VALUES[value]}, but it is {self.value}.")
        if gradient is not None:
            none = gradient == "none" and self.gradient.startswith(DETACHED)
            if not none and not _is(self.gradient, GRADIENTS[gradient], self.gradient_reach):
                missed.append(
                    f"gradient: {gradient} is expected, {GRADIENTS[gradient]}, but it is {self.gradient}."
                )
        return tuple(missed)

    def to_dict(self) -> dict[str, Any]:
        """Return all findings as plain values; nan becomes None, and infinity the text "inf"."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def to_json(self) -> str:
        """Return all findings as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)

    def findings(self) -> list[tuple[str, str]]:
        """Return the findings as pairs of a heading and a few words, those that do not arise left out."""
        rows = [
            ("Value", self.value),
            ("Gradient as a loss", self.gradient),
            ("Value on stale samples", self.stale_value),
            ("Gradient on stale samples", self.stale_gradient),
        ]
        if self.profile is not None:
            rows += _of_profile(self.profile)
        rows += [(heading, words) for heading, words in _of_padding(self.padding, self.returns) if words]
        if self.reduction:
            rows.append(("Reduction of a batch", self.reduction))
        if self.alone:
            rows.append(("Batch", "the rows change each other's values"))
        if self.counterexample is not None:
            rows.append(("Counterexample", str(self.counterexample)))
        return rows

    def __rich__(self) -> "Table":
        """Return the findings as a table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"{self.name}({', '.join(self.inputs)})"), show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(ratio=1)
        for heading, words in self.findings():
            table.add_row(heading, Text(words))  # not a string: square brackets are markup
        for reading in self.readings:
            table.add_row(f"{reading.world}, {reading.distance}", Text(_numbers(reading)))
        return table

    def _repr_html_(self) -> str:
        """Return the findings as a table of a notebook."""
        rows = self.findings() + [(f"{r.world}, {r.distance}", _numbers(r)) for r in self.readings]
        body = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(heading)}</th>'
            f'<td style="text-align:left">{html.escape(words)}</td></tr>'
            for heading, words in rows
        )
        title = html.escape(f"{self.name}({', '.join(self.inputs)})")
        return f'<table class="kl-verdict"><caption>{title}</caption><tbody>{body}</tbody></table>'


def between(interval: Interval) -> str:
    """Return an interval of log-ratios in words.

    Example:
        >>> between((-2.6108749, math.inf))
        '[-2.611, ∞]'
    """
    ends = (f"{x:.4g}" if math.isfinite(x) else "-∞" if x < 0 else "∞" for x in interval)
    low, high = (end.rstrip("0").rstrip(".") if "." in end and "e" not in end else end for end in ends)
    return f"[{low}, {high}]"


def _is(name: str, wanted: str, reach: Distance | None) -> bool:
    """Return whether a name is the one expected, per completion or per token, in every world."""
    plain = name.split(" while log-ratios")[0]
    return reach == DISTANCES[-1] and plain in (wanted, f"{wanted} per token")


def _numbers(reading: Reading) -> str:
    ratio = f" = {reading.mean / reading.kl:.4g}·KL" if math.isfinite(reading.mean) else ""
    angle = f", gradient {reading.angle:.0f}° off" if math.isfinite(reading.angle) else ""
    return f"KL {reading.kl:.4g} nats: mean {reading.mean:.4g}{ratio}, sd {reading.sd:.4g}{angle}"


def _of_profile(profile: Profile) -> list[tuple[str, str]]:
    """Return the findings of a profile."""
    rows = []
    if profile.formula:
        where = "" if profile.within == EVERYWHERE else f", for d within {between(profile.within)}"
        rows.append(("One token, log-ratio d", profile.formula + where))
    if profile.live is not None and profile.live != EVERYWHERE:
        rows.append(("Gradient alive", f"for log-ratios within {between(profile.live)} nats"))
    low, high = profile.bounds
    rows.append(("Single values", "never below 0" if low >= 0 else f"down to {low:.4g}, up to {high:.4g}"))
    finite = [
        f"{name} outside {between(interval)}"
        for name, interval in profile.finite.items()
        if interval != EVERYWHERE and not math.isnan(interval[0])
    ]
    if finite:
        rows.append(("Overflows in", ", ".join(finite)))
    lost = [f"{name} at {size:g} nats" for name, size in profile.lost.items() if size > 0]
    if lost:
        rows.append(("Loses 1 % or more in", ", ".join(lost) + " and nearer to 0"))
    below = [name for name, negative in profile.below_zero.items() if negative]
    if below:
        rows.append(("Rounds below 0 in", ", ".join(below)))
    return rows


def _of_padding(padding: Padding, returns: Returns) -> list[tuple[str, str]]:
    """Return the findings of padding."""
    spoils = "nan or inf there spoils the value" if padding.spoils_value else ""
    if padding.spoils_gradient:
        spoils = "nan or inf there spoils the gradient"
    if padding.refuses:
        spoils = "nan or inf there is refused"
    reads = (
        "change the value"
        if padding.reads_masked
        else "do not matter"
        if padding.reads_masked is False
        else ""
    )
    return [
        ("Masked positions", "; ".join(filter(None, (reads, spoils)))),
        ("Padding", "columns of padding change the value" if padding.counts else ""),
        ("Padding in front", "gives another value than padding behind" if padding.side else ""),
        ("Masked results", "are not 0" if padding.fills_masked and returns == "token" else ""),
        ("Row without a token", padding.empty or ""),
    ]


def _plain(value: Any) -> Any:
    """Return nested findings with nothing that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else f"{value}"
    return value
