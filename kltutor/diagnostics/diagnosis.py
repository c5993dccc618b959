"""All detectors over one log, and the report of what they found."""

from kltutor.diagnostics.course import collapse, length_drift, over_optimisation, runaway
from kltutor.diagnostics.log import Log
from kltutor.diagnostics.loop import controller_oscillation
from kltutor.diagnostics.reference import moving_reference, negative_kl, wrong_reference
from kltutor.diagnostics.report import Finding, Remark, Report, Unseen, rank
from kltutor.diagnostics.units import unit_mix_up

DETECTORS = {
    "unit-mix-up": unit_mix_up,
    "negative-kl": negative_kl,
    "wrong-reference": wrong_reference,
    "moving-reference": moving_reference,
    "controller-oscillation": controller_oscillation,
    "runaway": runaway,
    "over-optimisation": over_optimisation,
    "length-drift": length_drift,
    "collapse": collapse,
}


def diagnose(log: Log) -> Report:
    """Say what a log shows to be wrong, the cause first, and what it cannot show.

    Example:
        >>> import numpy as np
        >>> steps = np.arange(30.0)
        >>> log = Log.of({"step": steps, "kl": -0.02 * steps, "reward": 0.1 * steps}, "a log")
        >>> report = diagnose(log)
        >>> report.mode, report.findings[0].cause
        ('negative-kl', 'swapped sign')
    """
    seen = {mode: detect(log) for mode, detect in DETECTORS.items()}
    return Report(
        findings=rank([found for found in seen.values() if isinstance(found, Finding)]),
        remarks=tuple(found.text for found in seen.values() if isinstance(found, Remark)),
        unseen={mode: found.why for mode, found in seen.items() if isinstance(found, Unseen)},
        source=log.source,
        notes=log.notes,
    )
