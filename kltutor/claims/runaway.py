"""Claims of section 8.2 on runaway: what its first steps show, and what small updates add up to."""

import math
from functools import partial

import torch

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.collapse import GRID, NORMAL, objective
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import REF, agree, differ, ensure, num
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy
from kltutor.tasks import TabularPolicy, bandit


@claim(
    "KL-804",
    section="8.2",
    says=r"For one action $n$ natural steps of size $\eta$ tilt the reference by $r\, (1 - (1 - \beta "
    r"\eta)^n)/\beta$, without a penalty by $r\, n \eta$: to leading order, for a normal reward exactly, "
    r"the KL at time $t = n \eta$ of small steps is $((1 - e^{-\beta t})/(\beta t))^2$ of that without, "
    r"still 0.9 of it at $t = 0.1/\beta$, so the start of a KL curve does not show whether $\beta$ will "
    "hold.",
    verdict="holds",
    kind="exact",
)
def start_of_a_curve() -> str:
    """Steps of three arms against the closed form; a normal reward at five times; where each curve ends."""
    arms = bandit((0.0, 2.0, 1.0))
    ref = TabularPolicy(arms, REF[None, None])
    for beta in (0.0, 0.5):
        for steps, size in ((1, 0.3), (5, 0.3), (40, 0.05)):
            end = exact.ascend(
                ref,
                partial(objective, ref=ref, beta=beta),
                arms,
                steps=steps,
                step_size=size,
            )
            tilt = (1 - (1 - beta * size) ** steps) / beta if beta else steps * size
            found, expected = exact.seq_logp(end, arms)[0], optimal_policy(REF, arms.reward[0], 1 / tilt)[0]
            agree(kl(found, expected), 0, f"the policy after {steps} steps at beta {beta}", 1e-12)

    beta, shares, loose = 0.5, [], []
    for times in (0.1, 0.5, 1.0, 3.0):
        t = times / beta
        held, free = (
            kl(optimal_policy(NORMAL, GRID, 1 / tilt)[0], NORMAL)
            for tilt in ((1 - math.exp(-times)) / beta, min(t, 4.0))
        )
        if t <= 4:
            agree(free, t**2 / 2, f"the KL without a penalty at t = {t}", 1e-6)
        shares.append((held / (t**2 / 2)).item())
        agree(shares[-1], ((1 - math.exp(-times)) / times) ** 2, f"the share at {times}/beta", 1e-6)
    ensure(shares[0] > 0.9 and shares[-1] < 0.11, f"the shares are {shares}")
    for t in (10.0, 30.0):
        loose.append(kl(optimal_policy(REF, arms.reward[0], 1 / t)[0], REF).item())
    agree(loose[-1], -REF[1], "where the KL without a penalty ends", 1e-6)
    differ(kl(optimal_policy(REF, arms.reward[0], 0.5)[0], REF), loose[-1], "the ends of the two", 0.3)
    return (
        f"The share at t = .1, .5, 1 and 3 over β: {listed(shares)}. Three arms: without a penalty the KL "
        f"ends at {num(loose[-1], 4)} = -log .15, at β = .5 at "
        f"{num(kl(optimal_policy(REF, arms.reward[0], 0.5)[0], REF), 4)} nats."
    )


@claim(
    "KL-805",
    section="8.2",
    says="A bound on each update is no bound on a run: $n$ updates of $s$ nats each, all ratios well "
    "inside the clip, lie to leading order $n^2 s$ nats from their start if they go one way and $n s$ if "
    "their directions are orthogonal in the Fisher metric; the logged KL over the sum of the updates' "
    "tells how much of the way was drift.",
    verdict="folklore is wrong",
    folklore="A clip and a small KL of each update keep the policy near the reference.",
    kind="exact",
)
def small_updates_add_up() -> str:
    """Sixty-four arms tilted fifty times by one direction of a Hadamard matrix, and by fifty of them."""
    signs = torch.ones(1, 1, dtype=torch.float64)
    while len(signs) < 64:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    agree(signs @ signs.T, 64 * torch.eye(64, dtype=torch.float64), "the directions")
    start, steps = torch.full((64,), -math.log(64), dtype=torch.float64), 50
    found = {}
    for size in (0.0005, 0.02):
        for name, directions in (("one way", signs[[1] * steps]), ("orthogonal", signs[1 : steps + 1])):
            here, moved, widest = start, 0.0, 0.0
            for direction in directions:
                after = (here + size * direction).log_softmax(-1)
                moved += kl(here, after).item()
                widest = max(widest, (after - here).exp().sub(1).abs().max().item())
                here = after
            ensure(widest < 0.04, f"a ratio is {widest} away from 1")
            found[size, name] = (kl(here, start).item(), moved)
    for name, power in (("one way", 2), ("orthogonal", 1)):
        total, moved = found[0.0005, name]
        agree(moved / steps, 0.0005**2 / 2, f"the KL of one update, {name}", 1e-8)
        agree(total / (steps**power * moved / steps), 1, f"the KL of the run, {name}", 0.03)
    agree(found[0.02, "one way"][0], math.tanh(1) - math.log(math.cosh(1)), "the closed form of one way")
    far, near = found[0.02, "one way"][0], found[0.02, "orthogonal"][0]
    ensure(far > 15 * near, f"one way {far}, orthogonal {near}")
    return (
        f"50 updates of 0.0002 nats, ratios within 4 % of 1: {num(far, 3)} nats one way, {num(near, 3)} "
        f"orthogonal, {num(far / found[0.02, 'one way'][1], 3)} and "
        f"{num(near / found[0.02, 'orthogonal'][1], 3)} times the sum."
    )
