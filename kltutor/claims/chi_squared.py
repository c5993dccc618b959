"""Claims of section 6.5 on the two chi-squared divergences between the optimum and the reference."""

import math

import torch

from kltutor.claims import claim
from kltutor.claims.lab import listed
from kltutor.claims.loop import ARMS, REWARD
from kltutor.claims.witnesses import agree, differ, ensure, logp, num
from kltutor.divergences import chi2, kl
from kltutor.estimators import k1, k3
from kltutor.moments import estimator_moments
from kltutor.optimum import optimal_policy

JACKPOT = logp(1e-8, 1 - 1e-8)  # a reference that almost never says the first of two answers


@claim(
    "KL-626",
    section="6.5",
    says=r"With $\psi(t) = \log \mathrm{E}_{\mathrm{ref}}[e^{tr}]$ and $t = 1/\beta$ the optimum has $\log(1 "
    r"+ \chi^2(\pi^* \Vert \pi_{\mathrm{ref}})) = \psi(2t) - 2\psi(t)$, never below $\mathrm{KL}(\pi^* "
    r"\Vert \pi_{\mathrm{ref}})$, and $\log(1 + \chi^2(\pi_{\mathrm{ref}} \Vert \pi^*)) = \psi(t) + "
    r"\psi(-t)$, which may lie below that KL by any amount; for a Gaussian reward both are twice the "
    "KL.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I17", "m:C09"),
)
def chi2_of_the_optimum() -> str:
    """Four arms at three beta, a Gaussian reward, and a rare answer that is lifted."""
    for beta in (0.1, 0.5, 3.0):
        best = optimal_policy(ARMS, REWARD, beta)[0]

        def psi(t: float) -> torch.Tensor:
            return (ARMS + t * REWARD).logsumexp(-1)

        t = 1 / beta
        forward, backward = chi2(best, ARMS).log1p(), chi2(ARMS, best).log1p()
        agree(forward, psi(2 * t) - 2 * psi(t), "log(1 + χ²(π* ‖ ref))")
        agree(backward, psi(t) + psi(-t), "log(1 + χ²(ref ‖ π*))")
        differ(forward, backward, "the two orders", 0.001)
        ensure(bool(kl(best, ARMS) < forward), "KL(π* ‖ ref) is above its bound")
        ensure(bool(kl(ARMS, best) < backward), "KL(ref ‖ π*) is above its bound")
    y = torch.linspace(-20, 24, 8801, dtype=torch.float64)
    normal = (-(y**2) / 2).log_softmax(-1)
    shifted = optimal_policy(normal, y, 0.5)[0]
    doubles = [f(shifted, normal).log1p() / kl(shifted, normal) for f in (chi2, lambda p, q: chi2(q, p))]
    agree(torch.stack(doubles), torch.full((2,), 2.0), "log(1 + χ²) over KL, Gaussian", 1e-9)

    rows = []
    for reward in (math.log(1e-2 / 1e-8 * (1 - 1e-8) / (1 - 1e-2)), math.log(1e8 - 1)):  # to 1e-2, to 1/2
        best = optimal_policy(JACKPOT, torch.tensor([reward, 0.0], dtype=torch.float64), 1.0)[0]
        rows.append([kl(best, JACKPOT), chi2(best, JACKPOT), chi2(JACKPOT, best)])
        ensure(bool(rows[-1][0] <= rows[-1][1].log1p()), "KL is above its bound")
    lifted, even = rows
    differ(lifted[0], lifted[2].log1p(), "KL and the swapped bound, lifted to 1e-2", 0.1)
    agree(lifted[0], 1e-2 * math.log(1e6) + 0.99 * math.log(0.99), "KL of 1e-8 lifted to 1e-2", 1e-7)
    agree(lifted[1] / 1e4, 1, "χ²(π* ‖ ref)", 2e-4)
    agree(lifted[2], 1 / 99, "χ²(ref ‖ π*)", 1e-6)
    ensure(bool(even[2] < 1), f"the swapped bound is not below log 2: {even[2].log1p()}")
    agree(
        even[0],
        math.log(1e8) / 2 - math.log(2),
        "KL of 1e-8 lifted to 1/2, without bound as 1e-8 falls",
        1e-7,
    )
    few = optimal_policy(ARMS, -REWARD, 0.02)[0]  # the reference's tail, abandoned
    ensure(bool(chi2(few, ARMS) < 2) and bool(chi2(ARMS, few) > 1e9), "abandoning is seen by the wrong one")
    return (
        f"1e-8 lifted to 1e-2: KL {num(lifted[0], 4)}, χ²(π* ‖ ref) {num(lifted[1], 4)}, χ²(ref ‖ π*) "
        f"{num(lifted[2], 3)}, so that order would bound KL by {num(lifted[2].log1p(), 3)}; lifted to 1/2: "
        f"KL {num(even[0], 4)} above {num(even[2].log1p(), 3)}. Gaussian: both "
        f"logarithms are {listed(doubles)} KL. Arms abandoned at β = .02: χ² {num(chi2(few, ARMS), 3)} and "
        f"{num(chi2(ARMS, few), 2)}."
    )


@claim(
    "KL-627",
    section="6.5",
    says=r"The trouble of estimators is $\chi^2(\pi_{\mathrm{ref}} \Vert \pi) = \mathrm{Var}_\pi"
    r"(\pi_{\mathrm{ref}}/\pi)$: it is the variance of the control variate of k3 and sets the effective "
    r"sample size $n/(1 + \chi^2)$ of weights back to the reference; lifting a rare answer leaves it small, "
    "abandoning one makes k3 read low in almost every batch and far too high in the others.",
    verdict="folklore is wrong",
    folklore=r"A large $\chi^2(\pi \Vert \pi_{\mathrm{ref}})$ beside a small KL is what makes the estimators "
    "unreliable.",
    kind="exact",
    source_rows=("m:I17",),
)
def the_chi2_that_hurts() -> str:
    """A rare answer lifted and a rarely needed one abandoned: the same pair of policies, swapped."""
    lifted = logp(1e-2, 1 - 1e-2)
    cases = {"lifted": (lifted, JACKPOT), "abandoned": (JACKPOT, lifted)}
    hard, spread = {}, {}
    for name, (policy, ref) in cases.items():
        probs, w = policy.exp(), (ref - policy).exp()
        hard[name] = chi2(ref, policy)
        agree(probs @ (w - 1) ** 2 / hard[name], 1, f"Var w of {name} over χ²(ref ‖ π)", 1e-6)
        effective = (probs @ w) ** 2 / (probs @ w**2)  # of each draw
        agree(effective * (1 + hard[name]), 1, f"effective share of {name}", 1e-6)
        moments = estimator_moments(policy, ref)
        spread[name] = {k: moments[k].variance.sqrt() / moments["k1"].mean for k in ("k1", "k3")}
    ensure(hard["lifted"] < 0.011 and hard["abandoned"] > 9999, f"χ² are {hard}")
    differ(chi2(*cases["lifted"]), hard["lifted"], "the two χ² of the lifted answer", 9000)
    ensure(spread["lifted"]["k3"] < spread["lifted"]["k1"], "k3 is worse than k1 where an answer is lifted")
    ensure(spread["abandoned"]["k3"] > 100 * spread["lifted"]["k3"], f"relative deviations {spread}")

    policy, ref = cases["abandoned"]
    truth, draws = kl(policy, ref).item(), 1000
    seldom = -math.expm1(draws * math.log1p(-1e-8))  # the rare answer is in the batch
    without = k3(policy, ref)[1].item()  # what all the other batches read
    seen = without + (k3(policy, ref)[0].item() - without) / draws  # what a batch reads that holds it once
    mean = without * (1 - 1e-8) + k3(policy, ref)[0].item() * 1e-8
    agree(mean / truth, 1, "the mean of k3 over KL", 1e-6)
    ensure(without < 0.01 * truth < truth < seen / 1000, f"k3 reads {without} or {seen}; KL is {truth}")
    agree(k1(policy, ref)[1] / truth, 1, "what k1 reads in the other batches, over KL", 1e-4)
    return (
        f"Lifted: χ²(ref ‖ π) = {num(hard['lifted'], 3)}, relative deviation of k3 "
        f"{num(spread['lifted']['k3'], 3)}, of k1 {num(spread['lifted']['k1'], 3)}. Abandoned: "
        f"{num(hard['abandoned'], 4)}, k3 {num(spread['abandoned']['k3'], 3)}; KL {num(truth, 4)}, read as "
        f"{num(without, 2)} by {draws} draws, and as {num(seen, 3)} in {num(seldom, 1)} of batches."
    )
