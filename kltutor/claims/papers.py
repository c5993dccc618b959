"""Claims of section 5.6 on who wrote what, and what recent papers on the KL really say."""

import torch
from torch import Tensor

from kltutor import exact
from kltutor.atlas import angle
from kltutor.claims import claim
from kltutor.claims.comparisons import PHRASES, REF, apart, over, writer
from kltutor.claims.lab import (
    THREE,
    TWO,
    divergence_gradient,
    loss_gradient,
    mean_gradient,
    reward_gradient,
    reward_to_go,
    rows,
    triple,
)
from kltutor.claims.witnesses import POLICY, agree, differ, ensure, num
from kltutor.claims.witnesses import REF as OTHER
from kltutor.divergences import kl
from kltutor.estimators import k3
from kltutor.optimum import optimal_policy
from kltutor.pairs import all_pairs
from kltutor.policy_gradient import reinforce


@claim(
    "KL-524",
    section="5.6",
    says="DRO comes from Google DeepMind, with one author at Cohere, OPO from Microsoft Research and CoPG "
    "from Cohere: DRO and CoPG learn offline from scores, with a KL penalty and no importance weights, and "
    "OPO is on-policy without KL.",
    verdict="folklore is wrong",
    folklore="DRO and OPO are Cohere's, and correct offline data by importance weights.",
    kind="cited",
    sources=("fletberliac2024copg", "hao2025opo", "richemond2024dro"),
    source_rows=("f:W19", "f:C10"),
)
def who_wrote_what() -> str:
    """Both offline losses over data of another policy, unweighted; OPO's baseline and the mean gradient."""
    beta, reward, data = 0.5, PHRASES.reward, writer(5)
    best, log_z = optimal_policy(REF, reward, beta)
    asked = torch.tensor(PHRASES.prompt_probs, dtype=torch.float64)
    pairs, weights = all_pairs(PHRASES, data)
    gap = reward[pairs.prompt, pairs.chosen] - reward[pairs.prompt, pairs.rejected]

    def copg(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
        return (gap - beta * (chosen - ref_chosen - rejected + ref_rejected)).square()

    def dro(seq_logp: Tensor, value: Tensor) -> Tensor:
        short = reward - value[:, None] - beta * (seq_logp - REF)
        return asked @ (data.exp() * short.square()).sum(-1) / 2

    def dro_with_best_value(seq_logp: Tensor) -> Tensor:
        return dro(seq_logp, (data.exp() * (reward - beta * (seq_logp - REF))).sum(-1))

    ends = [exact.minimise(loss, REF) for loss in (over(copg, pairs, weights, REF), dro_with_best_value)]
    for name, end in zip(("CoPG", "DRO"), ends, strict=True):
        ensure(apart(end, best) < 1e-8, f"{name} is {apart(end, best)} nats from the optimum")
    agree(dro(best, beta * log_z), 0, "DRO's loss at the optimum and its value, beta log Z")

    policy, _, _ = triple(TWO)
    probs, length, scores = rows(policy, TWO).sum(-1).exp(), TWO.mask.sum(-1).double(), TWO.reward[0]
    means = {}
    for name, baseline in (("none", 0.0), ("OPO", probs @ (length * scores) / (probs @ length))):
        found = exact.expected_gradient(
            lambda logp, mask, weight: reinforce(logp, weight, mask),
            policy,
            TWO,
            given=((scores - baseline)[:, None].expand(len(scores), TWO.horizon),),
        )
        means[name] = found
    agree(means["OPO"].mean, means["none"].mean, "the mean gradient with OPO's baseline and without")
    ensure(means["OPO"].trace < means["none"].trace, "OPO's baseline does not lower the variance")
    lowered = means["OPO"].trace / means["none"].trace
    return (
        "Read: arXiv 2405.19107, 2505.23585 v2, EMNLP 2024 (2406.19185). On data of another policy both "
        "offline losses rest below 1e-8 nats from the optimum; OPO's baseline leaves the mean gradient and "
        f"{num(lowered, 2)} of the variance."
    )


@claim(
    "KL-527",
    section="5.6",
    says="Amini et al. sum the KL of each token over the vocabulary, without bias and with no more variance; "
    "Tang and Munos show that differentiating an estimate of the KL, or summing token losses, need not give "
    "its gradient; Liu et al. find k2 as a loss equal to k1 in the reward on policy, and k3 a first-order "
    "approximation; Zhang et al. read k3 as an unnormalised KL and give it its importance ratio; Yao et al. "
    "add to GRPO the KL to go; Shah et al. find unbiased gradients best on policy.",
    verdict="holds",
    kind="cited",
    sources=(
        "amini2025rb",
        "liu2025rethinking",
        "shah2025comedy",
        "tang2025pitfalls",
        "yao2026frpo",
        "zhang2025rpg",
    ),
    source_rows=("f:C06", "f:C15"),
)
def what_recent_papers_say() -> str:
    """Each on completions of up to three tokens: value, variance, and gradients against ∇KL(π ‖ ref)."""
    policy, ref, old = triple(THREE)
    logp, ref_logp = rows(policy, THREE), rows(ref, THREE)
    probs, ratio = logp.sum(-1).exp(), (logp - ref_logp).sum(-1)
    per_prefix = kl(exact.prefix_logps(policy, THREE)[0], exact.prefix_logps(ref, THREE)[0]).detach()
    summed = (per_prefix[exact.prefix_index(THREE)] * THREE.mask).sum(-1)
    truth = probs @ ratio
    agree(probs @ summed, truth, "mean of the KL of each token (Amini et al.)")
    spreads = [(probs @ (value - truth) ** 2).item() for value in (summed, ratio)]
    ensure(spreads[0] < spreads[1], f"variances are {spreads}")

    true = divergence_gradient(lambda p: (p, ref), policy)
    tokens = {name: loss_gradient(policy, ref, name) for name in ("k1", "k2", "k3")}
    agree(tokens["k1"], torch.zeros_like(true), "k1 as a loss (Tang and Munos)")
    turned = angle(tokens["k2"], true)
    ensure(turned > 5, f"token k2 as a loss is {turned}° from ∇KL (Tang and Munos)")
    agree(loss_gradient(policy, ref, "k2", level="sequence"), true, "k2 of whole completions as a loss")
    agree(reward_gradient(policy, ref, "k1"), true, "k1 in the reward (Liu et al.)")
    forward = divergence_gradient(lambda p: (ref, p), policy)
    agree(loss_gradient(policy, ref, "k3", level="sequence"), forward, "k3 as a loss")
    differ(forward, true, "k3 as a loss and ∇KL(π ‖ ref)", 0.05)

    with_ratio = mean_gradient(
        lambda live, mask, ref_live, drawn: _weighted_k3(live, ref_live, drawn),
        policy,
        ref_logp,
        rows(old, THREE),
        sampler=old,
    )
    agree(with_ratio, true, "stale k3 with its ratio (Zhang et al.)")
    measure, unnormalised = POLICY.exp(), OTHER.exp() * 1.3  # of mass 1.3
    read = measure @ (unnormalised / measure - 1 - (unnormalised / measure).log())
    agree(read, measure @ (POLICY - unnormalised.log()) + 1.3 - 1, "k3 as an unnormalised KL (Zhang et al.)")

    def to_go(live: Tensor, mask: Tensor, gap: Tensor) -> Tensor:
        return -reinforce(live, reward_to_go(gap), mask)

    agree(mean_gradient(to_go, policy, logp - ref_logp), true, "log-ratios to go (Yao et al.)")
    return (
        f"Abstracts read. KL {num(truth, 3)}: variance {num(spreads[0], 2)} over the vocabulary, "
        f"{num(spreads[1], 2)} sampled; token k2 as a loss {num(turned, 2)}° off ∇KL, with the KL to go 0°."
    )


def _weighted_k3(live: Tensor, ref_logp: Tensor, drawn: Tensor) -> Tensor:
    """Return k3 of whole completions times the live ratio policy/sampler, one value a completion."""
    whole = live.sum(-1)
    return (whole - drawn.sum(-1)).exp() * k3(whole, ref_logp.sum(-1))
