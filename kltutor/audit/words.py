"""An audit in a short paragraph."""

from collections.abc import Sequence

from kltutor.audit.naming import DETACHED, NONE
from kltutor.audit.padding import Padding
from kltutor.audit.profile import EVERYWHERE, Profile
from kltutor.audit.verdict import Counterexample, Reading, between


def paragraph(
    name: str,
    *,
    value: str,
    gradient: str,
    stale_value: str,
    stale_gradient: str,
    compares_old: bool,
    readings: Sequence[Reading],
    profile: Profile | None,
    padding: Padding,
    reduction: str,
    alone: bool,
    counterexample: Counterexample | None,
) -> str:
    """Return what was found about a function, in sentences."""
    said = [_of_value(name, value, compares_old, readings), _of_spread(compares_old, readings)]
    told = _split(value)[1]
    said += [_of_gradient(gradient, told), _later(gradient, stale_gradient, told)]
    if profile is not None:
        said += _of_profile(profile, bounded=bool(told))
    said += _of_padding(padding)
    if reduction and reduction != "mean":
        said.append(f"Of a batch it makes the {reduction}, though here each completion stood alone.")
    if alone:
        said.append("The value of a row depends on the other rows of its batch.")
    if counterexample is not None:
        said.append(f"Counterexample: {counterexample}.")
    return " ".join(filter(None, said))


def _of_value(name: str, value: str, compares_old: bool, readings: Sequence[Reading]) -> str:
    if value == NONE:
        shares = ", ".join(f"{r.mean / r.kl:.4g}" for r in readings if r.world == "completions")
        return (
            f"{name} estimates none of the known quantities: near, at a moderate distance and far, its mean "
            f"is {shares} times KL(π‖ref)."
        )
    if compares_old:
        return f"{name} compares the policy with the one that drew the samples: its mean on them is {value}."
    if value == "0":
        return f"The mean of {name} on fresh samples is 0, whatever the policy."
    return f"The mean of {name} on fresh samples is {value}."


def _of_spread(compares_old: bool, readings: Sequence[Reading]) -> str:
    shares = [f"{r.sd / r.kl:.3g}" for r in readings if r.world == "completions"]
    if compares_old or {"0", "nan", "inf"} & set(shares):
        return ""
    return (
        f"One completion scatters around it with a standard deviation of {shares[1]} times KL(π‖ref) at a "
        f"moderate distance, and of {shares[2]} times far away."
    )


def _split(name: str) -> tuple[str, str]:
    """Return a name and the bounds within which it holds, as they follow it."""
    plain, while_they, bounds = name.partition(" while log-ratios")
    return plain, while_they + bounds


def _of_gradient(gradient: str, told: str) -> str:
    if gradient.startswith(DETACHED):
        return "It cannot be a loss: nothing flows back from it."
    if gradient.startswith(NONE):
        return f"As a loss on fresh samples its gradient is {gradient}."
    plain, bounds = _split(gradient)
    bounds = " within these bounds" if bounds and bounds == told else bounds
    if plain == "0":
        return f"As a loss on fresh samples it has no gradient on average{bounds}."
    aims = "" if plain in ("∇KL(π‖ref)", "∇KL(π‖ref) per token") else ", not ∇KL(π‖ref)"
    return f"As a loss on fresh samples it follows {plain}{bounds}{aims}."


def _later(gradient: str, stale_gradient: str, told: str) -> str:
    if stale_gradient == gradient or gradient.startswith(DETACHED):
        return ""
    plain, bounds = _split(stale_gradient)
    bounds = "" if bounds in (told, _split(gradient)[1]) else bounds
    return f"One update later, on samples of the old policy, its gradient is {plain}{bounds}."


def _of_profile(profile: Profile, *, bounded: bool) -> list[str]:
    said = []
    if profile.within != EVERYWHERE and not bounded:
        said.append(f"It keeps to {profile.formula} for log-ratios d within {between(profile.within)} nats.")
    if profile.live is not None and profile.live != EVERYWHERE:
        said.append(f"Outside {between(profile.live)} nats a token feels no gradient.")
    elif profile.slope_within not in (EVERYWHERE, profile.within):
        said.append(f"Its slope changes its law outside {between(profile.slope_within)} nats.")
    if profile.finite["float32"] != EVERYWHERE:
        said.append(f"In float32 it overflows outside {between(profile.finite['float32'])} nats.")
    lost = [f"{name} at {size:g} nats" for name, size in profile.lost.items() if size > 0]
    if lost:
        said.append(f"Near 0 rounding eats 1 % or more of it, in {' and in '.join(lost)}.")
    if any(profile.below_zero.values()):
        said.append("Rounding makes it negative where exactly it is not.")
    return said


def _of_padding(padding: Padding) -> list[str]:
    said = []
    if padding.reads_masked:
        said.append("It reads masked positions.")
    if padding.spoils_value:
        said.append("A nan or inf at a masked position spoils its value.")
    if padding.spoils_gradient:
        said.append("A nan or inf at a masked position leaves its value alone and spoils its gradient.")
    if padding.refuses:
        said.append("It refuses nan or inf at a masked position.")
    if padding.counts:
        said.append("Padding changes its value.")
    if padding.empty in ("nan", "an error"):
        said.append(f"A row without a token that counts gives {padding.empty}.")
    return said
