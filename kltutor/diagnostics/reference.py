"""Whether the KL is one from the policy to a fixed reference that it started at, with the right sign."""

import math

import numpy as np
from jaxtyping import Float

from kltutor.diagnostics.log import Column, Log
from kltutor.diagnostics.noise import FEWEST, ends, kl_errors, scatter, smooth, standardised
from kltutor.diagnostics.report import Finding, Remark, Seen, Unseen
from kltutor.diagnostics.units import clash

# Standard errors below 0 at which a mean of ten steps is no chance. There are at most a few hundred such
# means in a log, and each is about normal: 5 is passed by chance in fewer than 1 of 10 000 logs.
BELOW_ZERO = 5.0
TOGETHER = 10  # steps whose mean is looked at
ROUNDING = 1e-9
Means = Float[np.ndarray, " place"]
# A self-normalised sum of numbers of mean 0 is about standard normal. What is less than MATTERS nats per
# sequence changes no decision; of a policy that almost always says the same it is a tail never drawn.
UNLIKE, MATTERS = 5.0, 0.02
# And k3 and k1 differ by this share of k3. Where the policy seldom says what the reference likes, the mean of
# ref/π is low by what was never drawn, step after step; on honest samples that stayed below 0.2 of k3.
UNSEEN = 0.25
# Standard errors by which a reward rises if its policy learns.
MOVES = 4.0
# Standard errors by which the KL of step 0 must exceed 0, and nats per token that rounding and unlike
# precision may make.
STARTS_AWAY = 4.0
PRECISION = 1e-3
# The latest step at which a log can show the start, and the share of what follows below which a KL logged
# after the first updates is their work.
FIRST, SETTLED = 1, 0.5
# Standard errors that the rise of a reward and the logged KL are each given the benefit of, and standard
# deviations above the mean up to which rewards are taken to reach.
DOUBT = 4.0
REACH = 3.0
NO_KL = "The log has no KL of a sequence to the reference; one of a token needs the length beside it."


def negative_kl(log: Log) -> Seen:
    """Ask whether the KL is below 0 by more than its noise, or k1 and k3 differ in mean, and why."""
    if not log.has("kl"):
        return Unseen("The log has no KL of the k1 kind; k3 is never negative.")
    step, kl = log.of_rows("kl")
    errors = kl_errors(log)[log.rows("kl")]
    noise = np.where(np.isfinite(errors), errors, scatter(kl))
    if not np.isfinite(noise).all():
        return Unseen("The log has too few steps to judge the noise of its KL.")
    window = min(TOGETHER, len(kl))
    mean, error = smooth(kl, window), np.sqrt(smooth(noise**2, window) / window)
    depth = np.divide(-mean, error, out=np.full(len(mean), np.inf), where=error > 0)
    deepest = int(np.argmax(np.where(mean < -MATTERS, depth, -np.inf)))
    if depth[deepest] < BELOW_ZERO or mean[deepest] > -MATTERS:
        return _mismatch(log) or _now_and_then(kl, mean, error)
    first, last = float(step[deepest]), float(step[deepest + window - 1])
    cause, reason = _why_negative(log)
    return Finding(
        "negative-kl",
        cause,
        (
            f"The mean of kl over steps {first:g} to {last:g} is {mean[deepest]:.3g} nats per sequence, "
            f"with a standard error of {error[deepest]:.2g}; a KL is at least 0.",
            reason,
        ),
        float(depth[deepest]),
        BELOW_ZERO,
        f"standard errors by which a mean over {window} steps lies below 0",
        (first, last),
        ("kl", "k3"),
    )


def _mismatch(log: Log) -> Finding | None:
    """Test whether k3 - k1, the mean of ref/π - 1, is 0 over the run, as it is if π drew the samples."""
    if not log.has("kl", "k3") or clash(log) is not None:
        return None
    step, kl, k3 = log.of_rows("kl", "k3")
    apart = standardised(k3 - kl)
    if abs(apart) < UNLIKE or abs(float((k3 - kl).mean())) < max(MATTERS, UNSEEN * float(k3.mean())):
        return None
    return Finding(
        "negative-kl",
        "sampler mismatch",
        (
            f"k3 and k1 have the same mean, as ref/π has mean 1 under π. Over {len(step)} steps k3 averages "
            f"{k3.mean():.3g} and kl {kl.mean():.3g} nats per sequence.",
            "So the samples do not come from the policy that scores them; kl is no KL, whatever its sign.",
        ),
        abs(apart),
        UNLIKE,
        "sum of k3 - k1 over the steps, over the root of its sum of squares, about normal by chance",
        (float(step[0]), float(step[-1])),
        ("kl", "k3"),
    )


def _now_and_then(kl: Column, mean: Means, error: Means) -> Remark | None:
    """Say how far below 0 the KL goes if that is no fault."""
    below = int((kl < -ROUNDING).sum())
    if not below:
        return None
    lowest = int(np.argmin(mean))
    window = len(kl) - len(mean) + 1
    return Remark(
        f"kl is below 0 at {below} of {len(kl)} steps, as k1 is by chance: its lowest mean over {window} "
        f"steps is {mean[lowest]:.2g} nats per sequence, with a standard error of {error[lowest]:.2g}."
    )


def _why_negative(log: Log) -> tuple[str, str]:
    """Return the cause of a negative KL: its sign was swapped, or the samples are another policy's."""
    if not log.has("reward"):
        return (
            "",
            "The log has no reward, which would tell a swapped sign from a sampler that is not the policy.",
        )
    course = ends(log.of_rows("reward")[1])
    if course.rise > MOVES:
        return "swapped sign", (
            f"The reward of the samples rises by {course.change:.3g}, so the policy that draws them learns, "
            "and what is logged is minus its KL."
        )
    return "sampler mismatch", (
        "The reward of the samples does not rise: they come from a policy that does not learn, such as the "
        "first weights, and are scored with one that does."
    )


def wrong_reference(log: Log) -> Seen:
    """Ask whether the policy starts at its reference."""
    name = "kl" if log.has("kl") else "k3"
    if not log.has(name):
        return Unseen(NO_KL)
    step, kl = log.of_rows(name)
    if step[0] > FIRST or len(step) < 2 * FEWEST:
        return Unseen(f"The log begins at step {step[0]:g} or is too short to show where the policy started.")
    rows = log.rows(name)
    error = float(kl_errors(log)[rows][0]) if name == "kl" else math.nan
    error = error if math.isfinite(error) else scatter(kl)
    length = float(log["length"][rows][0])
    floor = PRECISION * (length if math.isfinite(length) else 1.0)
    excess = float(kl[0]) / error if error > 0 else math.inf
    # A trainer that logs a step after its updates shows how far the first went: less than those that follow.
    grows = step[0] > 0 and kl[0] < SETTLED * kl[1 : 1 + FEWEST].mean()
    if kl[0] < floor or excess < STARTS_AWAY or grows:
        return None
    return Finding(
        "wrong-reference",
        "",
        (
            f"At step {step[0]:g} the KL is {kl[0]:.3g} nats per sequence, with a standard error of "
            f"{error:.2g}; "
            "a policy that starts at its reference has 0.",
        ),
        excess,
        STARTS_AWAY,
        f"standard errors by which the KL of step {step[0]:g} exceeds 0",
        (float(step[0]), float(step[0])),
        (name,),
    )


def moving_reference(log: Log) -> Seen:
    """Ask whether the KL is less than what the rise of the reward takes at least."""
    name = "kl" if log.has("kl") else "k3"
    if not log.has(name):
        return Unseen(NO_KL)
    if not log.has(name, "reward", "reward_sd", "batch"):
        return Unseen(
            "The log has no reward, reward_sd and batch beside the KL, from which a least KL follows."
        )
    step, kl, reward, spread, batch = log.of_rows(name, "reward", "reward_sd", "batch")
    if len(step) < 2 * TOGETHER:
        return Unseen("The log has too few steps.")
    errors = kl_errors(log)[log.rows(name, "reward", "reward_sd", "batch")]
    errors = np.where(np.isfinite(errors), errors, scatter(kl))
    gained = smooth(reward, TOGETHER) - reward[0]
    doubt = np.sqrt(spread[0] ** 2 / batch[0] + smooth(spread**2 / batch, TOGETHER) / TOGETHER)
    most = float((reward + REACH * spread).max() - reward[0])
    least = np.array([_least_kl(each, float(spread[0]), most) for each in gained - DOUBT * doubt])
    mean, error = smooth(kl, TOGETHER), np.sqrt(smooth(errors**2, TOGETHER) / TOGETHER)
    shown = np.maximum(mean, 0) + DOUBT * error
    worst = int(np.argmax(least - shown))
    if least[worst] - shown[worst] < PRECISION:
        return None
    owed = float(least[worst] / shown[worst]) if shown[worst] > ROUNDING else math.inf
    there = slice(worst, worst + TOGETHER)
    cause, reason = _how_it_moves(step, kl, errors)
    return Finding(
        "moving-reference",
        cause,
        (
            f"Over steps {step[there][0]:g} to {step[there][-1]:g} the reward is {gained[worst]:.3g} above "
            f"that of step {step[0]:g}, whose standard deviation was {spread[0]:.3g}. That takes a KL of at "
            f"least {least[worst]:.2g} nats from the start; logged are {mean[worst]:.2g}.",
            reason,
        ),
        owed,
        1.0,
        "least KL that the rise of the reward takes, over the KL logged and its noise",
        (float(step[there][0]), float(step[there][-1])),
        (name, "reward"),
    )


def _least_kl(gain: float, spread: float, most: float) -> float:
    """Return the least KL, in nats, from a law of which a reward has some spread to one where it gains.

    Donsker and Varadhan's bound with Bennett's for a reward at most so far above its mean: with u =
    most·gain/spread², it is (spread/most)²·((1 + u)·log(1 + u) - u).
    """
    if gain <= 0 or spread <= 0:
        return 0.0
    most = max(most, gain)
    u = most * gain / spread**2
    return (spread / most) ** 2 * ((1 + u) * math.log1p(u) - u)


def _how_it_moves(step: Column, kl: Column, errors: Column) -> tuple[str, str]:
    if np.abs(kl).max() < 1e-9:
        return "shared weights", "The KL is 0 at every step: the reference is the policy itself."
    falls = np.flatnonzero((kl[:-1] > BELOW_ZERO * errors[:-1]) & (kl[1:] < kl[:-1] / 5)) + 1
    if len(falls):
        at = ", ".join(f"{step[i]:g}" for i in falls[:4])
        return "replaced", f"The KL falls to a fifth or less within one step, at step {at}."
    return "follows the policy", "The KL rises and falls back although the policy stays where it is."
