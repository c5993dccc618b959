"""Claims of section 8.4 on length: groups that divide by it, means over tokens, and biased labels."""

import dataclasses

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import THREE, listed, triple
from kltutor.claims.witnesses import agree, differ, ensure, logp, num
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy
from kltutor.pairs import all_pairs
from kltutor.policy_gradient import dr_grpo_advantages, group_advantages
from kltutor.preference import dpo_loss
from kltutor.tasks import TabularPolicy, bandit, small


@claim(
    "KL-808",
    section="8.4",
    says="With a free logit for each completion, 0/1 rewards and GRPO's $1/$length, a natural-gradient "
    "step makes wrong answers longer and right ones shorter: the mean length of each kind moves at the "
    r"rate $A\, \mathrm{Cov}(L, 1/L)$, with $A$ the mean advantage of the kind and the covariance, never "
    "above 0, within it; without the division it stays.",
    verdict="holds",
    kind="exact",
    sources=("liu2025drgrpo",),
    source_rows=("f:I25",),
)
def wrong_answers_grow() -> str:
    """All groups of three completions of six lengths, with and without z-scores and the division."""
    scores = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    task, start = bandit(scores), logp(0.3, 0.2, 0.15, 0.15, 0.1, 0.1)
    lengths = torch.tensor([2.0, 5.0, 9.0, 3.0, 4.0, 8.0], dtype=torch.float64)
    policy, size, probs = TabularPolicy(task, start[None, None]), 3, start.exp()
    kinds, right = {"wrong": slice(0, 3), "right": slice(3, 6)}, probs[3:].sum()

    def rates(divided: bool, z_scores: bool, tokens: Tensor = lengths) -> dict[str, float]:
        def loss(logp: Tensor, mask: Tensor, scores: Tensor, tokens: Tensor) -> Tensor:
            advantages = group_advantages if z_scores else dr_grpo_advantages
            weight = advantages(scores, torch.zeros(len(scores), dtype=torch.long))
            return -((weight / tokens if divided else weight) * logp[:, 0]).mean()

        given = (task.reward[0], tokens)
        down = exact.expected_group_gradient(loss, policy, task, size, given=given).mean
        step = -down / probs  # the natural step of the logits
        found = {}
        for kind, rows in kinds.items():
            share = probs[rows] / probs[rows].sum()
            found[kind] = float(share @ (step[rows] * (tokens[rows] - share @ tokens[rows])))
        return found

    def covariance(kind: str) -> float:
        share, each = probs[kinds[kind]] / probs[kinds[kind]].sum(), lengths[kinds[kind]]
        return 1 - float((share @ each) * (share @ (1 / each)))

    evidence = []
    for z_scores in (False, True):
        found, plain = rates(True, z_scores), rates(False, z_scores)
        ensure(found["wrong"] > 0.01 > -0.01 > found["right"], f"the rates are {found}")
        for kind in kinds:
            agree(plain[kind], 0, f"the rate of {kind} answers without the division", 1e-12)
        even = rates(True, z_scores, torch.full_like(lengths, 5.0))
        agree(even["wrong"], 0, "the rate at one length", 1e-12)
        evidence.append(f"{num(found['wrong'], 3)} and {num(found['right'], 3)} tokens")
        means = {kind: found[kind] / covariance(kind) for kind in kinds}  # advantages of each kind
        agree(right * means["right"] + (1 - right) * means["wrong"], 0, "the mean advantage", 1e-12)
        if not z_scores:
            agree(means["right"], (1 - 1 / size) * (1 - right), "the advantage of right answers", 1e-12)
    return f"Rates of wrong and right answers: {evidence[0]}; with z-scores {evidence[1]}."


@claim(
    "KL-809",
    section="8.4",
    says=r"A KL summed over tokens has no opinion on length: at the optimum $d\mathrm{E}[L]/d(1/\beta) = "
    r"\mathrm{Cov}(L, r)$, and a constant reward stays at the reference; with the mean over the tokens of "
    r"each completion in its place a constant reward rests at $\pi_{\mathrm{ref}}\, e^{cL - 1}$ with $c > "
    "0$, which is longer wherever lengths differ, and logs a mean below zero.",
    verdict="folklore is wrong",
    folklore="Dividing the KL of a completion by its length takes a length bias away.",
    kind="exact",
)
def a_mean_over_tokens_lengthens() -> str:
    """The optimum of both objectives over completions of up to three tokens, by slopes and by trial."""
    _, ref, _ = triple(THREE)
    ref_logp = exact.seq_logp(ref, THREE).detach()[0]
    lengths, reward, beta = THREE.mask.sum(-1).double(), THREE.reward[0], 0.5

    def length(tilt: float) -> Tensor:
        mean: Tensor = optimal_policy(ref_logp, reward, 1 / tilt)[0].exp() @ lengths
        return mean

    probs = optimal_policy(ref_logp, reward, beta)[0].exp()
    cov = probs @ (lengths * reward) - (probs @ lengths) * (probs @ reward)
    agree((length(2 + 1e-4) - length(2 - 1e-4)) / 2e-4, cov, "the slope of the length in 1/beta", 1e-6)
    differ(cov, 0, "that slope", 0.05)
    agree(optimal_policy(ref_logp, torch.full_like(reward, 3.0), beta)[0], ref_logp, "a constant reward")

    def value(logits: Float[Tensor, " completion"], scores: Tensor) -> Tensor:
        logps = logits.log_softmax(-1)
        worth: Tensor = logps.exp() @ (scores - beta * (logps - ref_logp) / lengths)
        return worth

    def rest(scores: Tensor) -> Tensor:
        def mass(level: float) -> float:
            return (ref_logp + lengths * (scores - level) / beta - 1).logsumexp(-1).item()

        level = float(brentq(mass, -50, 50, xtol=1e-14))
        return ref_logp + lengths * (scores - level) / beta - 1

    seed, longer = torch.Generator().manual_seed(0), []
    for scores in (torch.full_like(reward, 3.0), reward):
        best = rest(scores).requires_grad_()
        agree(best.detach().logsumexp(-1), 0, "the mass of the resting place")
        (slope,) = torch.autograd.grad(value(best, scores), best)
        agree(slope, torch.zeros_like(slope), "the slope at the resting place")
        top = value(best.detach(), scores)
        for scale in (0.1, 1.0):
            noise = scale * torch.randn(50, len(best), generator=seed, dtype=torch.float64)
            ensure(all(value(best.detach() + n, scores) < top for n in noise), "another policy is better")
        longer.append(best.detach().exp() @ lengths)
    flat = rest(torch.full_like(reward, 3.0))
    c = ((flat - ref_logp + 1) / lengths)[0]
    ensure(c > 0, f"c is {c}")
    agree(flat, ref_logp + c * lengths - 1, "the resting place of a constant reward", 1e-9)
    logged = flat.exp() @ ((flat - ref_logp) / lengths)
    start = ref_logp.exp() @ lengths
    ensure(logged < -0.01 and longer[0] > start + 0.1, f"logged {logged}, lengths {start}, {longer[0]}")
    differ(longer[1], length(1 / beta), "the length with a reward, mean and sum", 0.1)
    return (
        f"Constant reward: mean length {num(start, 4)} with the sum, {num(longer[0], 4)} with the mean, c = "
        f"{num(c, 3)}, {num(kl(flat, ref_logp), 2)} nats away, logged {num(logged, 3)}; the lab's reward at "
        f"β = .5: {num(length(1 / beta), 4)} and {num(longer[1], 4)}; Cov(L, r) {num(cov, 3)}."
    )


@claim(
    "KL-810",
    section="8.4",
    says=r"If Bradley-Terry labels pay $\lambda$ a token, DPO on all pairs rests at the optimum of $r + "
    r"\lambda L$; pairs of equal length take the bias out exactly, as the true optimum is then a minimum, "
    "but say nothing of how much mass each length gets: that optimum times any function of the length is "
    "one too.",
    verdict="holds",
    kind="exact",
    source_rows=("f:W21",),
)
def pairs_of_equal_length() -> str:
    """Slopes of the loss over all pairs and over those of equal length, at three policies."""
    plain, price, beta = small(), 0.3, 0.5
    lengths = plain.mask.sum(-1).double()

    def paid(prompt: tuple[str, ...], said: tuple[str, ...], ended: bool) -> float:
        return plain.score(prompt, said, ended) + price * (len(said) + ended)

    biased = dataclasses.replace(plain, score=paid)
    agree(biased.reward, plain.reward + price * lengths, "the reward of the labels")
    seed = torch.Generator().manual_seed(0)
    ref = exact.seq_logp(TabularPolicy.random(plain, seed), plain).detach()
    pairs, weights = all_pairs(biased, ref)
    equal = lengths[pairs.chosen] == lengths[pairs.rejected]
    ensure(0.1 < weights[equal].sum() < 0.9 * weights.sum(), f"{weights[equal].sum()} of the pairs match")

    def slope(policy: Tensor, matched: bool) -> Tensor:
        logits = policy.clone().requires_grad_()
        logps = logits.log_softmax(-1)
        (x, chosen, rejected), rows = pairs, equal if matched else torch.ones_like(equal)
        won, lost = (x[rows], chosen[rows]), (x[rows], rejected[rows])
        loss = dpo_loss(logps[won], logps[lost], ref[won], ref[lost], beta)
        return torch.autograd.grad(weights[rows] @ loss, logits)[0]

    best, tilted = (optimal_policy(ref, task.reward, beta)[0] for task in (plain, biased))
    zero, asked = torch.zeros_like(ref), torch.tensor(plain.prompt_probs, dtype=torch.float64)
    agree(slope(tilted, False), zero, "the slope over all pairs at the biased optimum")
    differ(slope(best, False), zero, "the slope over all pairs at the true optimum", 0.003)
    agree(slope(best, True), zero, "the slope over pairs of equal length at the true optimum")
    other = (best - 0.7 * lengths + 0.2 * lengths**2).log_softmax(-1)
    agree(slope(other, True), zero, "the slope at another mass of each length")
    steeper = (best + plain.reward).log_softmax(-1)
    differ(slope(steeper, True), zero, "the slope at another tilt", 5e-4)
    means = [asked @ (policy.exp() @ lengths) for policy in (ref, best, tilted, other)]
    differ(means[2], means[1], "the mean lengths of the two optima", 0.2)
    differ(means[3], means[1], "the mean lengths of two minima", 0.2)
    return (
        f"λ = .3, β = .5, {len(weights)} pairs, {num(100 * weights[equal].sum() / weights.sum(), 2)} % of "
        f"equal length. Mean length: reference {num(means[0], 3)}, true optimum {num(means[1], 3)}, all "
        f"pairs {num(means[2], 3)}, minima over equal pairs {listed([means[1], means[3]])} among others."
    )
