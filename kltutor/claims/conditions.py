"""Claims of section 6.3: from Bradley-Terry to DPO's population loss, and each of its conditions broken."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.comparisons import over
from kltutor.claims.lab import THREE, listed, mean_gradient, rows, triple
from kltutor.claims.witnesses import REF, agree, differ, ensure, logp, num
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy
from kltutor.pairs import Pairs, all_pairs
from kltutor.preference import bradley_terry, dpo_loss
from kltutor.tasks import TabularPolicy, bandit, small

BETA = 0.5
DPO = partial(dpo_loss, beta=BETA)
REWARD = (0.0, 2.0, 1.0)
ARMS = bandit(REWARD)
Loss = Callable[[Tensor], Tensor]  # of log-probabilities
Law = Callable[[Tensor, Tensor], Tensor]  # P(first preferred) from two rewards
SAMPLERS = (REF[None], logp(0.6, 0.3, 0.1)[None])  # two policies that could have written what is compared


@claim(
    "KL-610",
    section="6.3",
    says=r"The Hessian of DPO's population loss in the logits of completions is, at every policy and "
    r"whatever the labels, $\beta^2$ times the Laplacian of the comparison graph with edge weights $w\, "
    r"\sigma(h)\, \sigma(-h)$; its rank is the number of completions less that of connected components, so "
    "the minimum, where there is one, is unique up to a constant for each component.",
    verdict="holds",
    kind="exact",
    sources=("rafailov2023dpo",),
    source_rows=("m:I22",),
)
def hessian_is_a_laplacian() -> str:
    """Two prompts of 13 completions: all compared, then in two groups each; three starts of the minimum."""
    task, seed = replace(small(), horizon=2), torch.Generator().manual_seed(0)
    ref_logp, policy, *starts = (
        exact.seq_logp(TabularPolicy.random(task, seed), task).detach() for _ in range(5)
    )
    prompts, size = ref_logp.shape
    pairs, weights = all_pairs(task, ref_logp)
    differing = torch.tensor(task.prompt_probs, dtype=torch.float64) * (1 - (2 * ref_logp).exp().sum(-1))
    agree(torch.bincount(pairs.prompt, weights), differing, "the weights of the pairs of each prompt")
    group = torch.arange(size) % 2
    ranks, minima = [], []
    for kept in (torch.ones_like(weights).bool(), group[pairs.chosen] == group[pairs.rejected]):
        some, seen = Pairs(*(part[kept] for part in pairs)), weights[kept]
        loss = over(DPO, some, seen, ref_logp)
        hessian = torch.autograd.functional.hessian(
            lambda logits, loss=loss: loss(logits.view(prompts, size).log_softmax(-1)), policy.flatten()
        )
        laplacian = _laplacian(policy - ref_logp, some, seen)
        agree(hessian, BETA**2 * laplacian, "the Hessian and beta² times the Laplacian", 1e-12)
        differ(hessian, BETA * laplacian, "the Hessian and beta times the Laplacian", 1e-3)
        ranks.append(int(torch.linalg.matrix_rank(hessian, hermitian=True)))
        minima.append(torch.stack([exact.minimise(loss, start) for start in starts]) - ref_logp)
    turned = Pairs(pairs.prompt, pairs.rejected, pairs.chosen)
    agree(
        _laplacian(policy - ref_logp, turned, weights), _laplacian(policy - ref_logp, pairs, weights), "flip"
    )
    ensure(ranks == [prompts * (size - 1), prompts * (size - 2)], f"the ranks are {ranks}")

    best = optimal_policy(ref_logp, task.reward, BETA)[0] - ref_logp
    whole, split = minima
    agree(whole, best.expand_as(whole), "the minimum with one component for each prompt", 1e-7)
    free = split - best
    for member in (0, 1):
        part = free[..., group == member]
        agree(part, part[..., :1].expand_as(part), "the minimum within a component, up to a constant", 1e-7)
    apart = free[..., 1] - free[..., 0]
    differ(apart.amax(0), apart.amin(0), "the constant between components from three starts", 0.1)
    return (
        f"{prompts * size} completions: rank {ranks[0]} with one component for each of {prompts} prompts, "
        f"{ranks[1]} with two; there three starts end {listed(apart[:, 0], 2)} nats off between the two, "
        "each with the right ratios within."
    )


@claim(
    "KL-611",
    section="6.3",
    says="Where no reward gives the preferences by Bradley-Terry (a probit link, a cycle), the minimum of "
    r"DPO's population loss is in general not $\pi_{\mathrm{ref}}\, e^{r/\beta}/Z$ and depends on which "
    r"policy wrote the compared answers; where they are Bradley-Terry in $c\, r$, it is the optimum of "
    r"$c\, r$, whoever wrote them.",
    verdict="folklore is wrong",
    folklore="DPO and KL-regularised RL on the reward behind the preferences have one optimum.",
    kind="exact",
    source_rows=("m:I22",),
)
def other_preferences_other_optima() -> str:
    """Three arms, labels by three laws, answers written by two policies; then a cycle."""
    best = optimal_policy(REF, torch.tensor(REWARD, dtype=torch.float64), BETA)[0]

    def probit(reward: Tensor, other: Tensor) -> Tensor:
        return (1 + torch.erf((reward - other) / math.sqrt(2))) / 2

    def cycle(reward: Tensor, other: Tensor) -> Tensor:  # 0 beats 2, 2 beats 1, 1 beats 0, each in 80 %
        return 0.5 + 0.3 * torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)[(reward - other).long() % 3]

    ends = {}
    for name, law in (("Bradley-Terry", bradley_terry), ("probit", probit), ("cycle", cycle)):
        ends[name] = [_dpo_optimum(sampler, law) for sampler in SAMPLERS]
    for end in ends["Bradley-Terry"]:
        agree(kl(end, best), 0, "Bradley-Terry's minimum and the optimum", 1e-12)
    twice = optimal_policy(REF, 2 * torch.tensor(REWARD, dtype=torch.float64), BETA)[0]
    for sampler in SAMPLERS:
        sharp = _dpo_optimum(sampler, lambda reward, other: bradley_terry(2 * reward, 2 * other))
        agree(
            kl(sharp, twice), 0, "the minimum with half the noise and the optimum of twice the reward", 1e-12
        )
    away, between = {}, {}
    for name in ("probit", "cycle"):
        away[name] = torch.stack([kl(end, best) for end in ends[name]])
        between[name] = kl(*ends[name])
        ensure(away[name].min() > 5e-3, f"{name} is {away[name]} nats from the optimum")
        ensure(between[name] > 1e-3, f"the sampler moves the minimum with {name} by {between[name]} only")
    level = _dpo_optimum(torch.full((1, 3), 1 / 3, dtype=torch.float64).log(), cycle)
    agree(kl(level, REF), 0, "a cycle compared evenly and the reference", 1e-12)
    return (
        f"KL(π_DPO ‖ π*): 0 with Bradley-Terry, {listed(away['probit'])} with a probit link, "
        f"{listed(away['cycle'])} with a cycle; the two policies that wrote the answers put the minimum "
        f"{num(between['probit'], 2)} and {num(between['cycle'], 2)} nats apart."
    )


@claim(
    "KL-612",
    section="6.3",
    says=r"In a class of policies without $\pi^*$ DPO and the regularised objective in general choose "
    r"different members: RL the one of least $\mathrm{KL}(\pi \Vert \pi^*)$, DPO one that also depends "
    r"on which policy wrote the compared answers; in a class that contains $\pi^*$ both choose it.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I22",),
)
def a_class_without_the_optimum() -> str:
    """Tilts of the reference along one feature of three arms: first not the reward, then the reward."""
    reward = torch.tensor(REWARD, dtype=torch.float64)
    best = optimal_policy(REF, reward, BETA)[0]
    losses = [over(DPO, *all_pairs(ARMS, sampler), REF[None]) for sampler in SAMPLERS]
    found = {}
    for name, feature in (("narrow", torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)), ("wide", reward)):
        worth = _member(feature, lambda p: -(p[0].exp() @ reward - BETA * kl(p[0], REF)))
        near = _member(feature, lambda p: kl(p[0], best))
        agree(worth, near, f"J and KL(π ‖ π*) in the {name} class", 1e-5)
        found[name] = (worth, *(_member(feature, loss) for loss in losses))
    agree(torch.tensor(found["wide"]).double(), torch.full((3,), 1 / BETA).double(), "the wide class", 1e-5)
    narrow = torch.tensor(found["narrow"]).double()
    gaps = (narrow[:, None] - narrow).abs()[~torch.eye(3).bool()]
    ensure(gaps.min() > 0.05, f"the choices in the narrow class are {narrow}")
    return (
        f"Tilt along a feature that is not the reward: RL {num(narrow[0], 4)}, DPO {num(narrow[1], 4)} and "
        f"{num(narrow[2], 4)} with answers of two policies; along the reward all three {num(1 / BETA)}."
    )


@claim(
    "KL-613",
    section="6.3",
    says=r"$\nabla J = \mathrm{E}_\pi[\nabla \log \pi\, (r - \beta \log(\pi/\pi_{\mathrm{ref}}))]$: the KL "
    r"enters as a reward that is held fixed; the derivative of the logarithm adds $-\beta\, "
    r"\mathrm{E}_\pi[\nabla \log \pi] = 0$ to the mean, and changes the variance alone.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H19",),
)
def policy_gradient_of_j() -> str:
    """All completions of up to three tokens: the reward held fixed, with the extra -beta, and attached."""
    policy, ref, _ = triple(THREE)
    ref_seq, reward = rows(ref, THREE).sum(-1), THREE.reward[0]
    truth = exact.gradient(
        lambda p: (
            exact.expectation(THREE.reward, exact.seq_logp(p, THREE), THREE) - BETA * exact.kl(p, ref, THREE)
        ),
        policy,
    )

    def spread(extra: float, held: bool = True) -> tuple[Tensor, Tensor]:
        def loss(logp: Tensor, mask: Tensor, ref_seq: Tensor, reward: Tensor) -> Tensor:
            seq_logp = (logp * mask).sum(-1)
            kept = seq_logp.detach() if held else seq_logp
            return -seq_logp * (reward - BETA * (kept - ref_seq) - extra)

        result = exact.expected_gradient(loss, policy, THREE, given=(ref_seq, reward))
        return result.mean, result.variance.sum()

    (held, least), (shifted, other) = spread(0.0), spread(BETA)
    agree(held, -truth, "the score times the reward less the log-ratio", 1e-12)
    agree(shifted, held, "the same with the extra -beta", 1e-12)
    differ(other, least, "its variance", 0.05)
    best = optimal_policy(ref_seq, reward, BETA)[0]
    toward = mean_gradient(
        lambda logp, mask, best: logp.sum(-1) * BETA * (logp.sum(-1).detach() - best), policy, best
    )
    agree(toward, -truth, "the score times beta log(π/π*)", 1e-12)
    differ(spread(0.0, held=False)[0], held, "the reward attached to the graph", 0.05)
    return (
        f"Equal within 1e-12, of length {num(truth.norm(), 4)}; variance {num(least, 4)}, with the extra -β "
        f"{num(other, 4)}; with the log-ratio attached the mean is "
        f"{num((spread(0.0, held=False)[0] - held).norm(), 3)} off."
    )


def _laplacian(
    log_ratio: Float[Tensor, "prompt completion"], pairs: Pairs, weights: Float[Tensor, " pair"]
) -> Float[Tensor, "completions completions"]:
    """Return Σ w σ(h) σ(-h) (e_chosen - e_rejected)(...)ᵀ over pairs."""
    h = BETA * (log_ratio[pairs.prompt, pairs.chosen] - log_ratio[pairs.prompt, pairs.rejected])
    edge = torch.zeros(len(weights), log_ratio.numel(), dtype=torch.float64)
    each, start = torch.arange(len(weights)), pairs.prompt * log_ratio.shape[1]
    edge[each, start + pairs.chosen] = 1
    edge[each, start + pairs.rejected] = -1
    return (edge.T * (weights * h.sigmoid() * (-h).sigmoid())) @ edge


def _dpo_optimum(sampler: Tensor, law: Law) -> Float[Tensor, " arm"]:
    """Return the minimum of DPO's population loss on the arms."""
    pairs, weights = all_pairs(ARMS, sampler, preference=law)
    return exact.minimise(over(DPO, pairs, weights, REF[None]), REF[None])[0]


def _member(feature: Float[Tensor, " arm"], loss: Loss) -> float:
    """Return the tilt of the reference along the feature at which a loss of log-probabilities is least."""
    found = minimize_scalar(
        lambda tilt: float(loss((REF + tilt * feature).log_softmax(-1)[None])),
        bounds=(-9, 9),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(found.x)
