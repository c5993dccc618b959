"""Claims of section 5.1 on what the labels decide: where DPO comes to rest, and when it does not."""

import math
from functools import partial

import torch
from torch import Tensor

from kltutor import exact, tasks
from kltutor.claims import claim
from kltutor.claims.comparisons import ARMS, ARMS_REF, PHRASES, REF, apart, certain, no_minimum, over, writer
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import agree, differ, ensure, logp, num, proof
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy
from kltutor.pairs import Pairs, all_pairs
from kltutor.preference import bradley_terry, dpo_loss


@claim(
    "KL-505",
    section="5.1",
    says=r"The mean of DPO's loss over all pairs is least at the optimum $\pi_{\mathrm{ref}}\, "
    r"e^{r/\beta}/Z$, whoever wrote the completions.",
    verdict="holds if",
    condition="labels follow Bradley-Terry with reward r, the policies searched include the optimum, and "
    "the comparisons connect all completions.",
    kind="exact",
    sources=("rafailov2023dpo",),
    source_rows=("m:I22",),
)
def minimum_over_all_pairs() -> str:
    """The minimum over all policies, for two writers and two betas, from another start."""
    distances = []
    for beta in (0.5, 2.0):
        best, _ = optimal_policy(REF, PHRASES.reward, beta)
        for seed in (4, 5):
            pairs, weights = all_pairs(PHRASES, writer(seed))
            for x, asked in enumerate(PHRASES.prompt_probs):
                differing = asked * (1 - (2 * writer(seed)[x]).exp().sum())
                agree(weights[pairs.prompt == x].sum(), differing, "how often two draws differ")
            loss = over(partial(dpo_loss, beta=beta), pairs, weights, REF)
            rest = exact.minimise(loss, writer(5))
            distances.append(apart(rest, best))
            ensure(distances[-1] < 1e-8, f"beta {beta}, writer {seed}: {distances[-1]} nats from the optimum")
            differ(rest, REF, "the minimum and the reference", 0.1)
    other, _ = optimal_policy(REF, PHRASES.reward, 1.0)
    ensure(apart(rest, other) > 0.01, "the minimum does not depend on beta")
    return f"KL to the optimum below 1e-8 in all {len(distances)} cases, over {len(weights)} pairs each."


@claim(
    "KL-506",
    section="5.1",
    says="A completion in no pair is free: DPO leaves its logit where it started, so every start ends at its "
    "own policy, all with the same loss and the right ratio of the compared completions.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I22",),
)
def uncompared_completions_are_free() -> str:
    """Three actions, the pair of the first two, three starts: by Newton's method and by descent."""
    task, ref, beta = tasks.bandit((0.0, 0.7, 0.3)), logp(0.5, 0.3, 0.2)[None], 0.4
    pairs, weights = all_pairs(task, ref)
    compared = (pairs.chosen < 2) & (pairs.rejected < 2)
    seen = Pairs(*(part[compared] for part in pairs))
    loss = over(partial(dpo_loss, beta=beta), seen, weights[compared], ref)
    best, _ = optimal_policy(ref, task.reward, beta)
    ends, losses = [], []
    for start in (ref, logp(0.3, 0.3, 0.4)[None], logp(0.2, 0.1, 0.7)[None]):
        end = exact.minimise(loss, start)
        agree(end[0, 1] - end[0, 0], best[0, 1] - best[0, 0], "log-ratio of the compared completions", 1e-7)
        logits = start.clone()
        for _ in range(300):
            leaf = logits.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss(leaf.log_softmax(-1)), leaf)
            agree(slope[0, 2], 0, "slope of the free logit", 1e-15)
            logits = logits - 50 * slope
        agree(logits[0, 1] - logits[0, 0], best[0, 1] - best[0, 0], "the same by descent", 1e-6)
        ends.append(end[0, 2].exp())
        losses.append(loss(end))
    agree(max(losses) - min(losses), 0, "spread of the losses", 1e-12)
    for first, second in ((0, 1), (1, 2)):
        differ(ends[first], ends[second], "the free completion from two starts", 0.05)
    whole = exact.minimise(over(partial(dpo_loss, beta=beta), pairs, weights, ref), logp(0.2, 0.1, 0.7)[None])
    agree(whole.exp(), best.exp(), "the minimum with all pairs", 1e-7)
    ratio = (best[0, 1] - best[0, 0]).exp()
    return f"Free completion ends at {listed(ends)}; the others always in the ratio {num(ratio, 4)}."


@claim(
    "KL-507",
    section="5.1",
    says=r"With labels that never err DPO has no minimum at any $\beta$: the loss goes to 0 only as the "
    r"margins grow without bound, and every $\beta$ leads to the same policy, all of its mass on the "
    "preferred completion.",
    verdict="folklore is wrong",
    folklore=r"DPO keeps the policy near the reference implicitly, through $\beta$.",
    kind="exact",
    sources=("azar2024ipo",),
    source_rows=("m:I23",),
)
def no_minimum_without_errors() -> str:
    """The search for a minimum at three betas; a family of tilts along which the loss goes to 0."""
    proven = proof("ipo_optimum", squared=False)
    pairs, weights = all_pairs(ARMS, ARMS_REF, preference=certain)
    noisy, noisy_weights = all_pairs(ARMS, ARMS_REF)
    far = []
    for beta in (0.1, 1.0, 10.0):
        best, _ = optimal_policy(ARMS_REF, ARMS.reward, beta)
        rest = exact.minimise(over(partial(dpo_loss, beta=beta), noisy, noisy_weights, ARMS_REF), ARMS_REF)
        agree(rest.exp(), best.exp(), f"the minimum under Bradley-Terry, beta {beta}", 1e-6)
        loss = over(partial(dpo_loss, beta=beta), pairs, weights / weights.sum(), ARMS_REF)
        tilts = [optimal_policy(ARMS_REF, ARMS.reward, 0.5 * beta / h)[0] for h in (1, 4, 16, 64)]
        for h, tilt in zip((1, 4), tilts, strict=False):  # the closest rewards differ by .5
            margin = beta * ((tilt - ARMS_REF)[0, 1] - (tilt - ARMS_REF)[0, 0])
            agree(margin, h, "the least margin of a tilt", 1e-9)
        no_minimum(loss, ARMS_REF)
        values = torch.stack([loss(tilt) for tilt in tilts])
        ensure((values.diff() < 0).all() and values[-1] < 1e-9, f"losses of the tilts: {values.tolist()}")
        far.append((kl(best, ARMS_REF).item(), kl(tilts[-1], ARMS_REF).item()))
    limit = -ARMS_REF[0, -1].item()
    agree(torch.tensor([last for _, last in far]), limit, "KL of the limit at three betas", 1e-3)
    differ(far[2][0], limit, "KL of the optimum under Bradley-Terry at beta 10 and of the limit", 1)
    return (
        f"{proven}; refused at beta .1, 1, 10; KL(π‖ref) tends to {num(limit, 3)} nats at each, where "
        f"Bradley-Terry labels give {listed([first for first, _ in far])}."
    )


@claim(
    "KL-510",
    section="5.1",
    says=r"Label smoothing by $\epsilon$ is flipping labels with probability $\epsilon$: a pair that always "
    r"goes one way gets the finite margin $\log((1 - \epsilon)/\epsilon)$, and Bradley-Terry labels, learnt "
    r"as $(1 - 2\epsilon) p + \epsilon$, no longer lead to the optimum.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I23",),
)
def label_smoothing() -> str:
    """One certain pair; flipped labels in the population and in a sample; the minimum over all pairs."""
    beta, eps = 0.5, 0.1
    two, ref = tasks.bandit((0.0, 1.0)), logp(0.7, 0.3)[None]
    pairs, weights = all_pairs(two, ref, preference=certain)
    smoothed = partial(dpo_loss, beta=beta, label_smoothing=eps)
    rest = exact.minimise(over(smoothed, pairs, weights, ref), ref)
    margin = beta * ((rest - ref)[0, 1] - (rest - ref)[0, 0])
    agree(margin, math.log((1 - eps) / eps), "margin of a certain pair", 1e-8)
    no_minimum(over(partial(dpo_loss, beta=beta), pairs, weights, ref), ref)

    clean, clean_weights = all_pairs(PHRASES, REF)

    def flipped(reward: Tensor, other: Tensor) -> Tensor:
        return (1 - 2 * eps) * bradley_terry(reward, other) + eps

    noisy, noisy_weights = all_pairs(PHRASES, REF, preference=flipped)
    here = writer(7)
    by_loss = over(smoothed, clean, clean_weights, REF)
    by_label = over(partial(dpo_loss, beta=beta), noisy, noisy_weights, REF)
    agree(by_loss(here), by_label(here), "smoothed loss and flipped labels")
    differ(by_loss(here), over(partial(dpo_loss, beta=beta), clean, clean_weights, REF)(here), "unsmoothed")
    best, _ = optimal_policy(REF, PHRASES.reward, beta)
    ends = [exact.minimise(loss, REF) for loss in (by_loss, by_label)]
    agree(ends[0].exp(), ends[1].exp(), "the two minima", 1e-7)
    missed = apart(ends[0], best)
    ensure(missed > 0.01, f"the smoothed minimum is {missed} nats from the optimum")
    ensure(apart(ends[0], REF) < apart(best, REF), "the smoothed minimum is farther from the reference")
    return (
        f"Certain pair, ε = .1: margin {num(margin)}; phrases: {num(missed, 3)} nats from the optimum; "
        f"KL(π‖ref) {num(apart(ends[0], REF), 3)} instead of {num(apart(best, REF), 3)}."
    )
