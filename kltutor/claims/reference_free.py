"""Claims of section 5.3 on losses without a reference: SimPO and ORPO."""

import math
from functools import partial

import torch
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.comparisons import PHRASES, REF, apart, over, over_means, writer
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import agree, differ, ensure, num
from kltutor.optimum import optimal_policy
from kltutor.pairs import all_pairs
from kltutor.preference import dpo_loss, orpo_loss, simpo_loss

RELEASED = {  # beta and gamma/beta of SimPO's released models
    "Mistral-Base": (2.0, 0.8),
    "Mistral-Instruct": (2.5, 0.1),
    "Llama3-Base": (2.0, 0.5),
    "Llama3-Instruct": (2.5, 0.55),
    "Llama3-Instruct v0.2": (10.0, 0.3),
    "Gemma": (10.0, 0.5),
}


@claim(
    "KL-515",
    section="5.3",
    says="Without the division by length SimPO is DPO with a reference that gives all completions one "
    "probability, and a target margin, so its anchor is the entropy of whole completions; with the division "
    "it is DPO with no reference.",
    verdict="folklore is wrong",
    folklore="SimPO regularises nothing, since it has no reference.",
    kind="exact",
    sources=("meng2024simpo",),
    source_rows=("m:I24",),
)
def simpo_without_lengths_is_dpo() -> str:
    """Losses and minima over all pairs; slopes of the loss in the two log-probabilities, by length."""
    beta, gamma = 0.5, 0.8
    uniform = torch.full_like(REF, 1 / PHRASES.size).log()
    pairs, weights = all_pairs(PHRASES, REF)
    prompt, chosen, rejected = pairs
    here = writer(7)
    seen, given = (here[prompt, chosen], here[prompt, rejected]), (REF[prompt, chosen], REF[prompt, rejected])
    simpo = simpo_loss(*seen, beta, 0.0)
    agree(simpo, dpo_loss(*seen, uniform[prompt, chosen], uniform[prompt, rejected], beta), "the two losses")
    differ(simpo, dpo_loss(*seen, *given, beta), "SimPO and DPO with its own reference", 0.1)
    margin = beta * (seen[0] - seen[1]) - gamma
    agree(simpo_loss(*seen, beta, gamma), (1 + (-margin).exp()).log(), "the target margin")

    rest = exact.minimise(over(lambda w, left, *_: simpo_loss(w, left, beta, 0.0), pairs, weights, REF), REF)
    best, _ = optimal_policy(uniform, PHRASES.reward, beta)
    agree(rest.exp(), best.exp(), "its minimum and the optimum with an entropy bonus", 1e-7)
    anchored, _ = optimal_policy(REF, PHRASES.reward, beta)
    scored = [_with_entropy(logp, beta) for logp in (rest, here, anchored)]
    ensure(scored[0] > max(scored[1:]) + 0.01, f"E[r] + β·entropy of it and of two others: {scored}")

    ratios = []
    for long, short in ((3.0, 1.0), (2.0, 2.0)):
        leaf = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (-4.0, -2.0)]
        slopes = torch.autograd.grad(simpo_loss(leaf[0] / long, leaf[1] / short, beta, gamma).sum(), leaf)
        agree(slopes[0] / slopes[1], -short / long, "ratio of the slopes")  # DPO's is -1 with any reference
        ratios.append(-slopes[1].item() / slopes[0].item())
    return (
        f"{len(simpo)} pairs agree, and so does the minimum, softmax(r/β) with E[r] + β·entropy "
        f"{num(scored[0], 4)}. With lengths 3 and 1, log π of the rejected weighs {num(ratios[0], 2)} times "
        "as much as that of the chosen; in DPO as much."
    )


@claim(
    "KL-516",
    section="5.3",
    says="On given data SimPO and ORPO have one minimum whatever the reference, so it is the optimum of at "
    "most one of two references.",
    verdict="holds",
    kind="exact",
    sources=("hong2024orpo", "meng2024simpo"),
    source_rows=("f:C11",),
)
def minima_without_a_reference() -> str:
    """Both minima over all pairs that one policy wrote, against the optima of three references."""
    beta = 0.5
    pairs, weights = all_pairs(PHRASES, REF)
    refs = [REF, writer(5), writer(6)]
    bests = [optimal_policy(ref, PHRASES.reward, beta)[0] for ref in refs]
    ensure(min(apart(bests[i], bests[j]) for i, j in ((0, 1), (1, 2), (2, 0))) > 0.1, "the optima agree")
    lines = []
    for name, loss in (
        ("SimPO", over_means(partial(simpo_loss, beta=2.0, gamma=1.0), pairs, weights)),
        ("ORPO", over_means(partial(orpo_loss, beta=0.1), pairs, weights)),
    ):
        rest, again = exact.minimise(loss, REF), exact.minimise(loss, writer(5))
        agree(rest.exp(), again.exp(), f"{name}'s minimum from two starts", 1e-6)
        far = [apart(rest, best) for best in bests]
        ensure(min(far) > 0.1, f"{name} is {far} nats from the optima")
        lines.append(f"{name} {listed(far)}")
    for ref, best in zip(refs[1:], bests[1:], strict=True):
        dpo = exact.minimise(over(partial(dpo_loss, beta=beta), pairs, weights, ref), REF)
        agree(dpo.exp(), best.exp(), "DPO's minimum on the same data", 1e-6)
    w, left = torch.tensor([[-0.7], [-1.9]], dtype=torch.float64)
    agree(orpo_loss(w, left, beta=0.4), _orpo_by_hand(-0.7, -1.9, 0.4), "ORPO's loss by hand")
    return f"KL to the optima of three references: {'; '.join(lines)}; DPO reaches each on the same data."


@claim(
    "KL-517",
    section="5.3",
    says=r"SimPO's released models use $\beta$ of 2 and 2.5, later 10, on means over tokens, with "
    r"$\gamma/\beta$ from 0.1 to 0.8; its authors call the learning rate the most critical setting of "
    "preference optimisation in general, so their notes rank no method by robustness.",
    verdict="folklore is wrong",
    folklore="SimPO is more sensitive to its settings than DPO, and worse in repetition and length.",
    kind="cited",
    sources=("meng2024simpo",),
    source_rows=("f:U05",),
)
def published_values_of_simpo() -> str:
    """At a gap of gamma/beta the loss is log 2; a mean over tokens at beta is a sum at beta over length."""
    level, targets = torch.tensor([-2.0], dtype=torch.float64), []
    for name, (beta, ratio) in RELEASED.items():
        agree(
            simpo_loss(level + ratio, level, beta, ratio * beta), math.log(2), f"loss at the target, {name}"
        )
        at_start = simpo_loss(level, level, beta, ratio * beta)
        agree(at_start, math.log(1 + math.exp(ratio * beta)), f"loss without a gap, {name}")
        targets.append(ratio * beta)
    agree(torch.tensor(targets), torch.tensor([1.6, 0.25, 1, 1.375, 3, 5]), "the target margins", 1e-6)
    tokens, (w, left) = 500, torch.tensor([[-900.0], [-950.0]], dtype=torch.float64)
    of_means, uniform = simpo_loss(w / tokens, left / tokens, 2.0, 0.0), torch.zeros(1).double()
    agree(of_means, dpo_loss(w, left, uniform, uniform, 2.0 / tokens), "2 on means and .004 on sums")
    values = ", ".join(f"{beta:g}/{ratio:g}" for beta, ratio in RELEASED.values())
    return (
        f"Read in SimPO's README, β and γ/β: {values}; DPO's β is .01 in all six. At 500 tokens, 2 on means "
        "is .004 on sums."
    )


def _with_entropy(seq_logp: Tensor, beta: float) -> float:
    """Return E[r] + beta times the entropy of whole completions, in reward units."""
    asked = torch.tensor(PHRASES.prompt_probs, dtype=torch.float64)
    return (asked @ (seq_logp.exp() * (PHRASES.reward - beta * seq_logp)).sum(-1)).item()


def _orpo_by_hand(chosen: float, rejected: float, weight: float) -> float:
    """Return ORPO's loss from the odds themselves."""
    odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (chosen, rejected)]
    return -chosen + weight * math.log(1 + odds[1] / odds[0])
