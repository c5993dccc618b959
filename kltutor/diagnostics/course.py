"""Where a run goes: too far, nowhere, after the wrong reward, or after length."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kltutor.diagnostics.log import Column, Log
from kltutor.diagnostics.noise import END, FEWEST, ends, kl_errors, scatter, smooth
from kltutor.diagnostics.report import Finding, Seen, Unseen

# Standard errors past which a change along a curve is no noise.
SURE = 5.0
# Runaway: the KL ends at so many times the entropy of the first samples, which is what it takes to say one
# usual sample of the reference and nothing else.
BEYOND = 1.5
# And it still climbs, by this share of itself over the second half of the run, or the entropy is down to this
# share of what it was, so that there is hardly anywhere left to climb to, or the KL costs this share of the
# reward it bought, next to nothing, and the gold score has turned.
CLIMBS, SPENT, FREE = 0.06, 0.2, 0.05
# In any case beta times the KL is less than this share of the reward it bought; an optimum of J near the
# reference has a half, whatever the units.
CHEAP = 0.45
# And a gold score, if there is one, has turned: it has lost this share of what it had gained.
TURNED = 0.1
# The gold score falls if it loses this share of what it had gained. A healthy run that overshoots and comes
# back loses up to 0.2, and its reward and KL come back too.
FALL = 0.22
EVALUATIONS = 3  # whose mean is a level of the gold score
# Standard errors by which reward and KL have risen since; where both have not, the policy turned back.
RISES = 2.0
# Length drifts if it ends at so many times what it was, or less than its inverse, and this much of it,
# relative to what it was, was grown for the reward alone: the growth times how far the gold score is ahead.
# Where the reward is the gold score, this is 0 but for noise of up to 0.04.
LONGER, UNPAID = 1.3, 0.045
GROWING = (0.1, 0.9)  # between these parts of its way the length grows
# A policy is where it started while KL <= STUCK: by Pinsker's inequality no event has changed its probability
# by more than the root of half of that, 0.1. Its reward has not risen by a tenth of its standard deviation.
STUCK, FLAT = 0.02, 0.1


class Fall(NamedTuple):
    """How a gold score came down from its best level."""

    at: float  # step of the best level
    best: float
    last: float
    error: float  # standard error of the difference
    share: float  # of the gain over the first evaluation that was lost; inf if there was none

    @property
    def said(self) -> str:
        """The fall as a sentence."""
        return (
            f"The held-out score falls from {self.best:.3g} at step {self.at:g} to {self.last:.3g}, with a "
            f"standard error of {self.error:.2g}."
        )


def runaway(log: Log) -> Seen:
    """Ask whether the KL climbs beyond any usual sample of the reference while it costs next to nothing."""
    name = _kl(log)
    if not log.has(name, "entropy"):
        return Unseen("The log has no KL of a sequence beside an entropy to compare it with.")
    step, kl, entropy = log.of_rows(name, "entropy")
    late, said = ends(kl[len(kl) // 2 :]), ends(entropy)
    far = late.last / entropy[0] if entropy[0] > 0 else math.nan
    climbs = late.rise > SURE and late.change > CLIMBS * late.last
    fall, price = _fall(log), _price(log)
    if not far > BEYOND or price >= CHEAP or (fall is not None and fall.share < TURNED):
        return None
    if not (climbs or said.last < SPENT * entropy[0] or (fall is not None and price < FREE)):
        return None
    half = float(step[len(step) // 2])
    evidence = [
        f"From step {half:g} to {step[-1]:g} the KL goes from {late.first:.3g} to {late.last:.3g} nats per "
        f"sequence, {far:.2g} times the entropy of the first samples, {entropy[0]:.3g}; theirs is "
        f"{said.last:.3g} by now.",
    ]
    if math.isfinite(price):
        evidence.append(f"beta times the KL is {100 * price:.2g} % of the reward gained.")
    return Finding(
        "runaway",
        "",
        (*evidence, *([fall.said] if fall else [])),
        float(far),
        BEYOND,
        "KL at the end over the entropy of the first samples",
        (half, float(step[-1])),
        (name, "entropy", "reward", "gold"),
    )


def length_drift(log: Log) -> Seen:
    """Ask whether completions grow, or shrink, far beyond what the held-out score pays for."""
    if not log.has("length", "reward"):
        return Unseen("The log has no length beside a reward.")
    step, length, _ = log.of_rows("length", "reward")
    course = ends(length)
    start = float(length[:FEWEST].mean())
    times = course.last / start
    if not (abs(course.last - start) > SURE * scatter(length) and max(times, 1 / times) > LONGER):
        return None
    evidence = [f"The length goes from {start:.3g} to {course.last:.3g} tokens, {times:.2g} times."]
    if _fall(log) is not None:
        lead = _gold_ahead(log)
        if not lead * abs(times - 1) > UNPAID:
            return None
        evidence.append(
            f"While it does, the held-out score has made {100 * lead:.0f} % more of its way than the reward: "
            "what the length brings after that is reward alone."
            if math.isfinite(lead)
            else "The held-out score gains nothing by it."
        )
    else:
        evidence.append("Too few held-out scores say whether the length is worth it.")
    return Finding(
        "length-drift",
        "",
        tuple(evidence),
        float(max(times, 1 / times)),
        LONGER,
        "length at one end of the run over that at the other",
        (float(step[0]), float(step[-1])),
        ("length", "reward", "gold"),
    )


def _gold_ahead(log: Log) -> float:
    """Return by how much of its way the gold score is ahead of the reward while the length grows, on average.

    A reward that is the gold score is level with it, whatever the units; inf if the gold score gains nothing.
    """
    step, length, reward = log.of_rows("length", "reward")
    window = min(2 * FEWEST - 1, len(step))
    at, gold = log.of_rows("gold")
    if not abs(ends(reward).rise) > SURE:
        return 0.0
    gained = float(gold[-FEWEST:].mean() - gold[0])
    if not gained > SURE * scatter(gold) / math.sqrt(FEWEST):
        return math.inf
    middle = step[window // 2 : window // 2 + len(step) - window + 1]

    def way(values: Column) -> Float[np.ndarray, " evaluation"]:
        first, last = values[:FEWEST].mean(), ends(values).last
        there = np.interp(at, middle, smooth(values, window))
        return np.asarray((there - first) / (last - first))

    low, high = GROWING
    grown = way(length)
    ahead = ((gold - gold[0]) / gained - way(reward))[(grown > low) & (grown < high)]
    return float(ahead.mean()) if len(ahead) else 0.0


def over_optimisation(log: Log) -> Seen:
    """Ask whether a held-out score falls while the reward trained on and the KL still rise."""
    if not log.has("gold"):
        return Unseen("The log has no gold column: a score that is not trained on, now and then.")
    fall = _fall(log)
    if fall is None:
        return Unseen(f"The gold column has fewer than {2 * EVALUATIONS} evaluations.")
    name = _kl(log)
    if not log.has("reward", name):
        return Unseen("The log has no reward beside a KL.")
    if not (fall.share > FALL and fall.best - fall.last > SURE * fall.error):
        return None
    step, reward, kl = log.of_rows("reward", name)
    if len(step) < 2 * FEWEST:
        return Unseen("The log has too few steps.")
    rises = [_since(step, values, fall.at) for values in (reward, kl)]
    if min(rise for _, rise in rises) < RISES:
        return None
    return Finding(
        "over-optimisation",
        "",
        (
            fall.said,
            f"Since then the reward trained on rises by {rises[0][0]:.3g} and the KL by {rises[1][0]:.3g} "
            "nats per sequence.",
        ),
        float((fall.best - fall.last) / fall.error) if fall.error > 0 else math.inf,
        SURE,
        "standard errors by which the held-out score fell",
        (fall.at, float(step[-1])),
        ("gold", "reward", name),
    )


def collapse(log: Log) -> Seen:
    """Ask whether the policy never left its reference."""
    name = _kl(log)
    if not log.has(name, "reward"):
        return Unseen("The log has no KL of a sequence beside a reward.")
    step, kl, reward = log.of_rows(name, "reward")
    if len(step) < 2 * FEWEST:
        return Unseen("The log has too few steps.")
    course, last = ends(reward), ends(kl).last
    many = max(FEWEST, round(END * len(kl)))
    errors = kl_errors(log)[log.rows(name, "reward")][-many:]
    error = math.sqrt(float((errors**2).mean()) / many) if np.isfinite(errors).all() else scatter(kl)
    spread = log["reward_sd"][log.rows(name, "reward")][0]
    flat = abs(course.change) <= FLAT * spread if np.isfinite(spread) else False
    if abs(last) > STUCK or not (flat or abs(course.rise) < SURE):
        return None
    dead = log["entropy"][log.rows(name, "reward")][0] < STUCK
    return Finding(
        "collapse",
        "no entropy to start with" if dead else "",
        (
            f"At the end the KL is {last:.2g} nats per sequence, with a standard error of {error:.1g}: no "
            f"event has changed its probability by more than {math.sqrt(max(last, 0) / 2 + error):.2g}.",
            f"The reward goes from {course.first:.3g} to {course.last:.3g}, with a standard error of "
            f"{course.error:.2g}.",
        ),
        abs(last),
        STUCK,
        "KL at the end in nats per sequence",
        (float(step[0]), float(step[-1])),
        (name, "reward", "beta"),
    )


def _fall(log: Log) -> Fall | None:
    """Return how the gold score came down from its best level, None if it has too few evaluations."""
    step, gold = log.of_rows("gold")
    if len(step) < 2 * EVALUATIONS:
        return None
    levels = smooth(gold, EVALUATIONS)
    best = int(levels.argmax())
    gained, lost = float(levels[best] - gold[0]), float(levels[best] - levels[-1])
    error = scatter(gold) * math.sqrt(2 / EVALUATIONS)
    share = lost / gained if gained > 0 else math.inf if lost > 0 else 0.0
    middle = step[best + EVALUATIONS // 2]
    return Fall(float(middle), float(levels[best]), float(levels[-1]), error, share)


def _since(step: np.ndarray, values: np.ndarray, start: float) -> tuple[float, float]:
    """Return by how much a column is higher at the end than around a step, also in standard errors."""
    many = max(FEWEST, round(END * len(values)))
    first = min(max(int(np.searchsorted(step, start)) - many // 2, 0), len(values) - many)
    rise = float(values[-many:].mean() - values[first : first + many].mean())
    error = scatter(values) * math.sqrt(2 / many)
    return rise, rise / error if error > 0 else math.copysign(math.inf, rise)


def _price(log: Log) -> float:
    """Return beta·KL at the end over the reward gained, nan if it is not known or nothing was gained."""
    name = _kl(log)
    if not log.has("beta", name, "reward"):
        return math.nan
    _, beta, kl, reward = log.of_rows("beta", name, "reward")
    gained = ends(reward).last - float(reward[:FEWEST].mean())
    return float(ends(beta).last * ends(kl).last / gained) if gained > 0 else math.nan


def _kl(log: Log) -> str:
    """Return the column that stands for the KL: that of k1 if there is one."""
    return "kl" if log.has("kl") else "k3"
