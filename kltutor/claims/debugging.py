"""Claims of chapter 7 on what a run logs, and on the mistakes that leave it alive."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from kltutor import exact, tasks
from kltutor.claims import claim
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import REF, agree, differ, ensure, num
from kltutor.divergences import kl
from kltutor.estimators import k1, k3
from kltutor.libraries import terms
from kltutor.optimum import optimal_policy
from kltutor.pairs import all_pairs
from kltutor.policy_gradient import group_advantages
from kltutor.tasks import TabularPolicy


@claim(
    "KL-702",
    section="7.1",
    says=r"The mean of k1 over a batch of $n$ completions can be negative where the KL is not: near the "
    r"reference, where $\mathrm{Var}\, k_1 \approx 2\, \mathrm{KL}$, it is so with probability about "
    r"$\Phi(-\sqrt{n\, \mathrm{KL}/2})$, and at $8/n$ nats still so in a few batches of a hundred.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H10", "m:I21"),
)
def sign_of_a_batch_mean() -> str:
    """The law of the mean of n draws of three actions, summed over all counts, at two distances."""
    tilt, found = torch.tensor([1.0, -0.3, -0.8], dtype=torch.float64), {}
    for count in (64, 256):
        for times in (0.5, 8.0):
            low, high = 0.0, 3.0
            for _ in range(60):
                middle = (low + high) / 2
                near = kl((REF + middle * tilt).log_softmax(-1), REF) < times / count
                low, high = (middle, high) if near else (low, middle)
            policy = (REF + low * tilt).log_softmax(-1)
            agree(kl(policy, REF), times / count, "the distance", 1e-9)
            below = sum(chance for mean, chance in _means(k1(policy, REF), policy, count) if mean < 0)
            rule = Normal(0.0, 1.0).cdf(torch.tensor(-math.sqrt(times / 2))).item()
            agree(below, rule, f"{count} draws at {times}/n nats", 0.04 if times < 1 else 0.015)
            found[count, times] = below
    return (
        f"Three actions: below zero in {listed([100 * found[n, 0.5] for n in (64, 256)])} % of batches of 64 "
        f"and 256 at KL 0.5/n, in {listed([100 * found[n, 8.0] for n in (64, 256)])} % at 8/n nats."
    )


def _means(
    values: Float[Tensor, " action"], logps: Float[Tensor, " action"], count: int
) -> Iterator[tuple[float, float]]:
    """Yield every mean of `count` draws of three actions, and its probability."""
    (a, b, c), (p, q, r) = values.tolist(), logps.tolist()
    for i in range(count + 1):
        for j in range(count + 1 - i):
            k = count - i - j
            ways = math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(j + 1) - math.lgamma(k + 1)
            yield (i * a + j * b + k * c) / count, math.exp(ways + i * p + j * q + k * r)


@claim(
    "KL-704",
    section="7.2",
    says=r"GRPO's z-score divides by the deviation of the group as a population: one right answer in eight "
    r"gets $\sqrt{7} = 2.646$, the others $-1/\sqrt{7}$; with $N - 1$ all advantages of a group are smaller "
    r"by $\sqrt{1 - 1/G}$, as if $\beta$ were larger by its inverse.",
    verdict="holds",
    kind="exact",
    sources=("shao2024grpo",),
    source_rows=("m:H22",),
)
def z_score_of_a_population() -> str:
    """One success in eight, and any scores in groups of two to sixteen, by the definition."""
    scores = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    found = group_advantages(scores, torch.zeros(8, dtype=torch.long))
    agree(found[0], math.sqrt(7), "the one that is right")
    agree(found[1:], torch.full((7,), -1 / math.sqrt(7), dtype=torch.float64), "the others")
    for size in (2, 5, 16):
        some = torch.arange(size, dtype=torch.float64) ** 1.5
        ours = group_advantages(some, torch.zeros(size, dtype=torch.long))
        agree(ours.square().mean(), 1, f"the mean square in a group of {size}")
        theirs = (some - some.mean()) / some.std()  # N - 1
        agree(theirs, math.sqrt(1 - 1 / size) * ours, f"the two in a group of {size}")
    other = (scores - scores.mean()) / scores.std()
    differ(other[0], found[0], "the two for one in eight", 0.1)
    return (
        f"One of eight: {num(found[0])} and {num(found[1])}; with N - 1 {num(other[0])} and {num(other[1])}."
    )


@claim(
    "KL-706",
    section="7.3",
    says="The accuracy of implicit rewards over all pairs is at most the mean of $\\max(p, 1 - p)$, $p$ the "
    r"probability of the label; $\pi^*$ of every $\beta$ reaches it, and so does any policy whose log-ratios "
    "have the order of the rewards, so accuracy does not tell how far a policy went.",
    verdict="holds",
    kind="exact",
    sources=("rafailov2023dpo",),
)
def accuracy_has_a_ceiling() -> str:
    """The ceiling by its definition, three optima and a cube of the reward at it, 300 policies below it."""
    task, seed = tasks.small(), torch.Generator().manual_seed(0)
    ref = exact.seq_logp(TabularPolicy.random(task, seed), task).detach()
    pairs, weights = all_pairs(task, ref)
    here = [(pairs.prompt, side) for side in (pairs.chosen, pairs.rejected)]

    def accuracy(log_ratio: Tensor) -> float:
        margin = log_ratio[here[0]] - log_ratio[here[1]]
        return float(weights @ ((margin > 0).double() + (margin == 0).double() / 2) / weights.sum())

    gap = task.reward[here[0]] - task.reward[here[1]]
    each = torch.maximum(torch.sigmoid(gap), torch.sigmoid(-gap))
    ceiling = float(weights @ each / weights.sum())
    for beta in (0.05, 0.5, 5.0):
        best = optimal_policy(ref, task.reward, beta)[0]
        agree(accuracy(((best - ref) * beta).round(decimals=9)), ceiling, f"the optimum of beta {beta}")
    agree(accuracy(task.reward**3), ceiling, "the cube of the reward")
    others = [accuracy(torch.randn(ref.shape, generator=seed, dtype=ref.dtype)) for _ in range(300)]
    ensure(max(others) < ceiling - 0.01, f"another order has accuracy {max(others)}")
    ensure(accuracy(-task.reward) < 0.5, "turned round it is still above a half")
    return f"Ceiling {num(ceiling, 4)}; the best of 300 random policies {num(max(others), 3)}."


@claim(
    "KL-707",
    section="7.4",
    says="A detector that fires when gold has not risen four checkpoints in a row fires along 31 checkpoints "
    "of independent continuous noise with probability 0.18, and in a flat history for certain; the chance "
    "grows with the length of the run and does not depend on the law of the noise.",
    verdict="holds",
    kind="exact",
    source_rows=("m:W17",),
)
def alarms_of_falls_in_a_row() -> str:
    """Orders of n values without four falls in a row, from a series and by counting; small n by hand."""
    quiet = _quiet(31, 4)
    agree(float(_by_counting(31, 4)), float(quiet), "the two counts")
    agree(float(1 - _quiet(5, 4)), 1 / 120, "one window")
    agree(float(1 - _quiet(6, 4)), (6 + 6 - 1) / 720, "two windows, which share one order")
    chances = {n: float(1 - _quiet(n, 4)) for n in (11, 31, 101)}
    ensure(abs(chances[31] - 0.18) < 0.005, f"31 checkpoints fire in {chances[31]}")
    return f"11, 31 and 101 checkpoints: {listed([100 * p for p in chances.values()])} % of runs of noise."


def _quiet(length: int, falls: int) -> Fraction:
    """Return the share of orders without so many falls in a row, from its generating function."""
    series = [Fraction(0)] * (length + 1)
    for n in range(0, length + 1, falls + 1):
        series[n] += Fraction(1, math.factorial(n))
        if n < length:
            series[n + 1] -= Fraction(1, math.factorial(n + 1))
    inverse = [Fraction(1)]
    for n in range(1, length + 1):
        inverse.append(-sum((series[k] * inverse[n - k] for k in range(1, n + 1)), Fraction(0)))
    return inverse[length]


def _by_counting(length: int, falls: int) -> Fraction:
    """Return the same by adding one value after the other: its rank so far, and the falls that led to it."""
    ways = {(0, 0): 1}
    for size in range(1, length):
        after: dict[tuple[int, int], int] = {}
        for (rank, row), count in ways.items():
            for new in range(size + 1):
                now = row + 1 if new <= rank else 0
                if now < falls:
                    after[new, now] = after.get((new, now), 0) + count
        ways = after
    return Fraction(sum(ways.values()), math.factorial(length))


@claim(
    "KL-710",
    section="7.6",
    says=r"With $\Delta = \log(\pi_{\mathrm{ref}}/\pi)$ the slope of k3 in $\log \pi$ is $1 - e^\Delta$; "
    r"with $\Delta$ clamped at 10 it is 0 beyond, with the clamp in the exponential alone $+1$, and with the "
    r"value clamped at 10, as in some libraries, 0 from $\Delta = 2.6$ on; $e^\Delta$ overflows at 88.7 in "
    "float32.",
    verdict="folklore is wrong",
    folklore="A clamp in k3 is a guard against overflow and changes nothing else.",
    kind="exact",
    source_rows=("m:W10", "f:I24"),
)
def clamps_let_go() -> str:
    """Slopes by autograd on both sides of each clamp, and the limits of the number formats."""

    def slope(code: Any, delta: float) -> tuple[float, float]:
        logp = torch.full((1, 1), -delta - 30, dtype=torch.float64, requires_grad=True)
        value = code(logp, torch.full((1, 1), -30.0, dtype=torch.float64))
        return value.item(), torch.autograd.grad(value.sum(), logp)[0].item()

    def both(logp: Tensor, ref_logp: Tensor) -> Tensor:
        delta = (ref_logp - logp).clamp(max=10)
        return delta.exp() - 1 - delta

    def inside(logp: Tensor, ref_logp: Tensor) -> Tensor:
        return (ref_logp - logp).clamp(max=10).exp() - 1 - (ref_logp - logp)

    def library(logp: Tensor, ref_logp: Tensor) -> Tensor:
        return terms.k3_clamped(logp, ref_logp, logp, torch.ones_like(logp, dtype=torch.bool))

    for code in (k3, both, inside):
        agree(slope(code, 9.0)[1], -math.expm1(9), "the slope at 9 nats", 1e-6)
    agree(slope(k3, 11.0)[1], -math.expm1(11), "the slope of k3 at 11 nats", 1e-6)
    agree(slope(both, 11.0)[1], 0, "the slope with both clamped")
    agree(slope(inside, 11.0)[1], 1, "the slope with the exponential clamped")
    turn = math.expm1(10)
    ensure(slope(inside, turn - 1)[0] > 0 > slope(inside, turn + 1)[0], f"the value changes sign at {turn}")
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.expm1(middle) - middle < 10 else (low, middle)
    agree(slope(library, low - 1e-6)[1], -math.expm1(low), "the slope below the library's clamp", 1e-4)
    agree(slope(library, low + 1e-6)[1], 0, "the slope beyond the library's clamp")
    limits = {}
    for dtype in (torch.float32, torch.float16):
        limits[dtype] = math.log(torch.finfo(dtype).max)
        near = torch.tensor([limits[dtype] * 0.999, limits[dtype] * 1.001], dtype=dtype).exp()
        ensure(near.isfinite().tolist() == [True, False], f"{dtype} overflows at {limits[dtype]}")
    return (
        f"At 11 nats: k3 {num(-math.expm1(11), 6)}, clamped 0, in the exponential alone +1, where the value "
        f"falls below 0 beyond {num(turn, 6)}. A value held to 10 lets go at {num(low, 4)}. exp overflows at "
        f" {num(limits[torch.float32], 4)} (float32), {num(limits[torch.float16], 4)} (float16)."
    )
