"""Whether a controller of beta settles."""

import math

import numpy as np

from kltutor.diagnostics.log import Log
from kltutor.diagnostics.noise import kl_errors, scatter, smooth, turns
from kltutor.diagnostics.report import Finding, Seen, Unseen

# A swing counts from this factor of beta on: a controller that holds a noisy KL moves beta by up to 2.
FACTOR = 2.5
# And in the running mean of the KL from so many standard errors and this share of its usual size on.
ERRORS = 4.0
SHARE = 0.3
TOGETHER = 3  # steps of the running mean
# Turns of either curve. One that settles overshoots once or twice, which is up to three.
TURNS = 4
# The last two swings of log beta are no smaller than this share of the largest; swings that halve each time
# fall below it by the fifth.
SUSTAINED = 0.2


def controller_oscillation(log: Log) -> Seen:
    """Ask whether beta and the KL swing against each other without settling."""
    name = "kl" if log.has("kl") else "k3"
    if not log.has("beta", name):
        return Unseen(f"The log has no {'beta' if log.has(name) else 'KL'}.")
    step, beta, kl = log.of_rows("beta", name)
    if (beta <= 0).any() or beta.max() < FACTOR * beta.min() or len(step) < 2 * TOGETHER:
        return None
    errors = kl_errors(log)[log.rows("beta", name)]
    noise = np.where(np.isfinite(errors), errors, scatter(kl)) / math.sqrt(TOGETHER)
    level = np.log(beta)
    mean, error = smooth(kl, TOGETHER), smooth(noise, TOGETHER)
    of_beta = turns(level, np.full(len(level), math.log(FACTOR)))
    of_kl = turns(mean, np.maximum(ERRORS * error, SHARE * np.median(np.abs(mean))))
    if min(len(of_beta), len(of_kl)) < TURNS:
        return None
    sizes = np.abs(np.diff(level[of_beta]))
    if sizes[-2:].mean() < SUSTAINED * sizes.max():
        return None
    high, low = (np.median([mean[i] for i in of_kl[first::2]]) for first in (0, 1))
    period = 2 * (step[of_kl[-1]] - step[of_kl[0]]) / (len(of_kl) - 1)
    return Finding(
        "controller-oscillation",
        "",
        (
            f"From step {step[of_beta[0]]:g} to {step[of_beta[-1]]:g} beta turns {len(of_beta)} times, "
            f"between {beta.min():.3g} and {beta.max():.3g} reward units per nat.",
            f"The KL turns {len(of_kl)} times, about every {period / 2:.0f} steps, between about "
            f"{min(high, low):.3g} and {max(high, low):.3g} nats per sequence; it does not settle.",
        ),
        float(min(len(of_beta), len(of_kl))),
        float(TURNS),
        f"turns of both curves, each of a factor {FACTOR:g} or more in beta and {ERRORS:g} standard errors "
        "in the KL",
        (float(step[of_beta[0]]), float(step[of_beta[-1]])),
        ("beta", name),
    )
