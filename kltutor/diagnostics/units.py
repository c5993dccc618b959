"""Whether what the KL cost is what beta and the logged KL say, and whether the log's own units agree."""

import math

import numpy as np

from kltutor.diagnostics.log import Column, Log
from kltutor.diagnostics.report import Finding, Remark, Seen, Unseen

MODE = "unit-mix-up"
# Relative distance up to which two columns count as one. The penalty and the KL of a step are sums over the
# same samples, so they agree to rounding; 5 % is left for a reward that is clipped or rounded now and then.
AGREE = 0.05
# The same where the log has no sum over tokens: a mean of ratios is no ratio of means.
AGREE_ROUGHLY = 0.25
# Rows with a KL below this share of the largest say nothing about a ratio.
ENOUGH = 0.02
# A constant factor counts as one if it explains all but this share.
CONSTANT = 0.05
BIT = math.log(2)
# What a constant ratio of the penalty to -beta·KL comes from.
FACTORS = {
    0.0: "coefficient never used",
    -1.0: "wrong sign",
    2.0: "counted twice",
    0.5: "half of it charged",
    1 / BIT: "bits for nats",
    BIT: "nats for bits",
}


def unit_mix_up(log: Log) -> Seen:
    """Compare the penalty with -beta·KL, and the KL of sequences with that of tokens."""
    found = clash(log)
    if found is not None:
        return found
    if not log.has("penalty", "beta", "kl"):
        missing = [name for name in ("penalty", "beta", "kl") if not log.has(name)]
        return Unseen(f"The log has no {' and no '.join(missing)} to compare.")
    step, penalty, beta, kl = log.of_rows("penalty", "beta", "kl")
    due = -beta * kl
    counts = np.abs(due) > ENOUGH * np.abs(due).max()
    if not due.any() or counts.sum() < 3:
        return Unseen("The KL or beta is 0 throughout, so nothing was due.")
    step, penalty, beta, kl, due = (each[counts] for each in (step, penalty, beta, kl, due))
    agree = AGREE if log.logged("kl") else AGREE_ROUGHLY
    apart = _apart(penalty, due)
    if apart <= agree:
        return None
    factor = float(penalty @ due / (due @ due))
    if log.has("k3"):
        k3 = log["k3"][log.rows("penalty", "beta", "kl")][counts]
        if _apart(penalty, -beta * k3) <= agree:
            return Remark(
                "The penalty is -beta times k3, and not times k1: another estimator, no other unit."
            )
    per_token = log["kl_token"] if log.has("kl_token") else log["kl"] / log["length"]
    of_token = -beta * per_token[log.rows("penalty", "beta", "kl")][counts]
    cause = _cause(penalty, due, np.nan_to_num(of_token, nan=np.inf), factor, agree)
    if cause == FACTORS[-1.0] and kl.sum() < 0:
        return Remark("The penalty is that of the KL with its sign turned: charged right, logged wrong.")
    if cause is None:
        return Remark(
            f"The penalty is no fixed multiple of -beta·KL (on average {factor:.3g} times): another "
            "estimator, a clamp or a beta that differs from the logged one."
        )
    middle = len(step) // 2
    return Finding(
        MODE,
        cause,
        (
            f"The penalty is {factor:.3g} times -beta·KL, over {len(step)} steps.",
            f"At step {step[middle]:g} beta is {beta[middle]:.3g} and the KL {kl[middle]:.3g} nats per "
            f"sequence, so {due[middle]:.3g} reward units were due; {penalty[middle]:.3g} were charged.",
        ),
        apart,
        agree,
        "distance of the penalty from -beta·KL, relative to it",
        (float(step[0]), float(step[-1])),
        ("penalty", "kl", "beta"),
    )


def _cause(penalty: Column, due: Column, of_token: Column, factor: float, agree: float) -> str | None:
    """Return what the ratio comes from, or None if there is no constant one."""
    nearest = min(FACTORS, key=lambda known: _apart(penalty, known * due, due))
    if _apart(penalty, of_token) < min(AGREE_ROUGHLY, _apart(penalty, nearest * due, due)):
        return "mean over tokens for their sum"
    if abs(factor - nearest) <= agree * max(abs(nearest), 0.2):
        return FACTORS[nearest]
    if _apart(penalty, factor * due, due) > CONSTANT * max(1.0, abs(factor)):
        return None
    return f"a factor of {factor:.3g}"


def clash(log: Log) -> Finding | None:
    """Compare the KL of a sequence with the KL of a token times the length, where the log has all three."""
    if not (log.logged("kl") and log.logged("kl_token") and log.has("kl", "kl_token", "length")):
        return None
    step, kl, kl_token, length = log.of_rows("kl", "kl_token", "length")
    due = kl_token * length
    counts = np.abs(due) > ENOUGH * np.abs(due).max()
    if not due.any() or counts.sum() < 3:
        return None
    step, kl, kl_token, length, due = (each[counts] for each in (step, kl, kl_token, length, due))
    apart = _apart(kl, due)
    if apart <= AGREE_ROUGHLY:
        return None
    factor = float(kl @ due / (due @ due))
    cause = "kl is no sum over tokens" if _apart(kl, kl_token) <= AGREE_ROUGHLY else "columns that disagree"
    for known, name in FACTORS.items():
        if known and abs(factor - known) <= AGREE * abs(known) and _apart(kl, known * due) <= AGREE_ROUGHLY:
            cause = name
    middle = len(step) // 2
    return Finding(
        MODE,
        cause,
        (
            f"kl is {factor:.3g} times kl_token·length, over {len(step)} steps; 1 is right.",
            f"At step {step[middle]:g} kl is {kl[middle]:.3g} nats per sequence, kl_token "
            f"{kl_token[middle]:.3g} "
            f"nats per token and the length {length[middle]:.3g} tokens.",
        ),
        apart,
        AGREE_ROUGHLY,
        "distance of kl from kl_token·length, relative to it",
        (float(step[0]), float(step[-1])),
        ("kl", "kl_token", "length"),
    )


def _apart(found: Column, due: Column, scale: Column | None = None) -> float:
    """Return the distance of two columns relative to the second, or to a third."""
    size = float(np.linalg.norm(due if scale is None else scale))
    return float(np.linalg.norm(found - due)) / size if size > 0 else math.inf
