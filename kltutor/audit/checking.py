"""`check`: the audit of one function, from its probes to the verdict."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kltutor.audit import naming
from kltutor.audit.calls import Returns, Subject, batch_reduction, subject
from kltutor.audit.naming import Found, Measured
from kltutor.audit.padding import padding
from kltutor.audit.profile import EVERYWHERE, Interval, profile
from kltutor.audit.verdict import Counterexample, Reading, Verdict, between
from kltutor.audit.words import paragraph
from kltutor.audit.worlds import DISTANCES, World, kl, pair
from kltutor.tasks import Task

REVERSE = "KL(π‖ref)"
TINY = (1e-5, 1e-12, 1e-20)  # the probabilities that make the log-ratios of a counterexample large


def check(
    fn: Callable[..., Any],
    *,
    inputs: Sequence[str] = ("logp", "ref_logp"),
    returns: Returns = "token",
) -> Verdict:
    """Return what a KL function estimates, and which gradient it gives as a loss.

    Nothing is read from its name or its code. It is called with all completions of worlds that are small
    enough to list, near, at a moderate distance and far from the reference, in float64. Its expectation

        Σ_y π(y)·fn(y),    and    Σ_y π(y)·∇fn(y), the samples held fixed,

    are compared with known quantities and gradients; one counts if it fits in all worlds, with one factor.
    "∇KL(π‖ref) per token" sums the KLs of the tokens, their prefixes drawn but not differentiated. Stale
    samples come from the policy before one update. A function that returns one value a token is summed over
    the tokens of a completion, in nats per sequence.

    Args:
        fn: the function. Where it takes no mask it sees completions of one length at a time and no padding.
        inputs: what its positional arguments are: logp, ref_logp, old_logp (batch, time), nats per token;
            seq_logp, ref_seq_logp, old_seq_logp (batch), nats per sequence; logits, ref_logits, old_logits
            (batch, time, vocab), which predict the token at the same place of tokens (batch, time); mask
            (batch, time), True counts. The old policy drew the samples. Masked positions hold 0.
        returns: "token" for (batch, time), "sequence" for (batch), "scalar" for a single number; a scalar
            function is called one completion at a time.

    Raises:
        jaxtyping.TypeCheckError: fn cannot be called, or `returns` is unknown.
        ValueError: an input is unknown; or fn raises (its error is the cause), returns another shape or
            nan, or gives two different values for the same arguments.
        TypeError: fn returns no floating numbers.

    Source:
        Schulman (2020) for the estimators; Tang and Munos (2025) for their gradients as losses.

    Example:
        >>> verdict = check(lambda logp, ref_logp: (ref_logp - logp).exp() - 1 - (ref_logp - logp))
        >>> verdict.value, verdict.gradient, verdict.stale_gradient
        ('KL(π‖ref)', '∇KL(ref‖π) per token', '∇E_old[k3] per token')
        >>> verdict.expects(value="reverse-kl"), verdict.expects(gradient="reverse")
        (True, False)
        >>> check(lambda logp, ref_logp: (logp - ref_logp).exp() - 1 - (logp - ref_logp)).value
        'χ²(π‖ref) - KL(π‖ref) per token'
    """
    under = subject(fn, inputs, returns)
    fresh, stale = (naming.measure_all(under, samples) for samples in ("fresh", "stale"))
    shape = profile(under)
    within, slope_within = (shape.within, shape.slope_within) if shape else (EVERYWHERE, EVERYWHERE)
    value, gradient = naming.name_value(fresh, "fresh"), naming.name_gradient(fresh, "fresh")
    stale_value, stale_gradient = naming.name_value(stale, "stale"), naming.name_gradient(stale, "stale")
    compares_old = value.name == "0" and stale_value.name != "0" and "old" in " ".join(under.inputs)
    if compares_old:
        value = stale_value
    named = _bounded(value, within)
    angles = [naming.angle(each) for each in fresh]
    readings = tuple(
        Reading(each.world.kind, each.world.distance, kl(each.world), each.mean, each.sd, angle)
        for each, angle in zip(fresh, angles, strict=True)
    )
    found: dict[str, Any] = {
        "value": named,
        "gradient": _turned(_bounded(gradient, slope_within), fresh),
        "stale_value": _bounded(stale_value, within),
        "stale_gradient": _turned(_bounded(stale_gradient, slope_within), stale),
        "readings": readings,
        "profile": shape,
        "padding": padding(under),
        "reduction": batch_reduction(under),
        "alone": under.alone,
        "counterexample": None if named == REVERSE else _counterexample(under),
    }
    return Verdict(
        name=under.name,
        inputs=under.inputs,
        returns=under.returns,
        value_reach=value.reach,
        gradient_reach=gradient.reach,
        words=paragraph(under.name, compares_old=compares_old, **found),
        **found,
    )


def _bounded(found: Found, within: Interval) -> str:
    """Return a name with the log-ratios between which it holds, where there are such."""
    if found.reach is None:
        return found.name
    if within != EVERYWHERE:
        return f"{found.name} while log-ratios stay within {between(within)}"
    if found.reach != DISTANCES[-1]:
        return f"{found.name} while log-ratios stay small ({found.reach} worlds only)"
    return found.name


def _turned(name: str, measured: Sequence[Measured]) -> str:
    """Return the name of a gradient; one that has none with its angle to ∇KL(π‖ref)."""
    if name != naming.NONE:
        return name
    angles = {f"{each.world.kind}, {each.world.distance}": naming.angle(each) for each in measured}
    angle = angles["completions, moderate"]
    return name if math.isnan(angle) else f"{name}, {angle:.0f}° from ∇{REVERSE}"


def _counterexample(under: Subject) -> Counterexample | None:
    """Return the first of a few small pairs of distributions on which the mean is not KL(π‖ref)."""
    for world in _pairs():
        try:
            mean = naming.measure(under, world, "fresh").mean
        except (ValueError, TypeError):
            continue
        right = kl(world)
        if not abs(mean - right) <= 1e-6 * right:  # so written, nan counts
            rows = world.rows("fresh")
            policy, ref = (rows.inputs[name].detach().exp() for name in ("seq_logp", "ref_seq_logp"))
            outcomes = tuple(" ".join(world.task.words[i] for i in said) for said in world.task.sequences)
            return Counterexample(outcomes, tuple(policy.tolist()), tuple(ref.tolist()), mean, right)
    return None


@cache
def _pairs() -> tuple[World, ...]:
    """Return pairs of distributions: of one action, of up to two tokens, and ever more extreme ones."""
    one = Task("arms", ("a", "b", "c"), 1, (("pull",),), (1.0,), lambda prompt, said, ended: 0.0)
    two = Task("phrases", ("<end>", "a"), 2, (("say",),), (1.0,), lambda prompt, said, ended: 0.0)

    def table(*rows: tuple[float, ...]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    return (
        pair(one, table((0.7, 0.2, 0.1)), table((0.2, 0.3, 0.5))),
        pair(two, table((0.3, 0.7), (0.8, 0.2)), table((0.6, 0.4), (0.3, 0.7))),
        *(pair(one, table((0.75, 0.25 - tiny, tiny)), table((tiny, 0.5 - tiny, 0.5))) for tiny in TINY),
    )
