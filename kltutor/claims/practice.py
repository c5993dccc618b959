"""Claims of sections 1.2 and 1.4 that rest on papers: what a KL penalty does, who has none, and its name."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.claims import claim, get
from kltutor.claims.witnesses import KL, POLICY, REF, agree, differ, ensure, logp, num
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy


@claim(
    "KL-123",
    section="1.4",
    says="A KL penalty is no known cure for over-optimisation of a proxy reward: in the experiments of Gao "
    "et al., and by no theorem, it did not raise the curve of gold reward against KL and acted like stopping "
    "early.",
    verdict="folklore is wrong",
    folklore="The KL penalty keeps the gold reward from falling however strong the proxy reward is.",
    kind="cited",
    sources=("gao2023",),
    source_rows=("f:W05",),
)
def penalty_acts_like_early_stopping() -> str:
    """Four arms, the rarest overrated by the proxy: one unpenalised path is the optima, another is not."""
    ref = logp(0.6, 0.3, 0.08, 0.02)
    proxy, gold = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, -2.0]], dtype=torch.float64)
    natural = plain = ref
    for _ in range(100):
        natural = (natural + 0.01 * proxy).log_softmax(-1)
    agree(natural.exp(), optimal_policy(ref, proxy, 1.0)[0].exp(), "natural ascent for a time of 1", 1e-9)
    for _ in range(800):
        probs = plain.exp()
        plain = (plain + 0.01 * probs * (proxy - probs @ proxy)).log_softmax(-1)
    beta = _beta_at(kl(plain, ref).item(), ref, proxy)
    best, _ = optimal_policy(ref, proxy, beta)
    agree(kl(best, ref), kl(plain, ref), "the two distances", 1e-6)
    there, on_curve = plain.exp() @ gold, best.exp() @ gold
    differ(there, on_curve, "gold on the plain path and on the curve of optima", 0.5)
    return (
        "Gao et al. (2023), section 3.6. Toy: natural ascent without a penalty is the curve of optima by "
        f"construction; plain ascent leaves it, with gold {num(there)} at {num(kl(plain, ref))} nats where "
        f"the optimum of beta {num(beta)} has {num(on_curve)}."
    )


@claim(
    "KL-124",
    section="1.4",
    says="DAPO drops the KL term, and GRPO in TRL has had a coefficient of 0 by default since version 0.19; "
    "as the coefficient goes to 0 the optimum tends to the reference restricted to the best answers, at "
    "$-\\log$ of their total reference probability, the nearest of all maximisers.",
    verdict="folklore is wrong",
    folklore="Every current recipe keeps a KL penalty, DAPO's being k3 in the loss with a small coefficient.",
    kind="cited",
    sources=("yu2025dapo",),
    source_rows=("f:W17", "f:I20"),
)
def practice_without_a_penalty() -> str:
    """The distance of the optimum as beta goes to 0, in a bandit with two best answers."""
    ref, reward = logp(0.5, 0.3, 0.15, 0.05), torch.tensor([0.0, 0.5, 1.0, 1.0], dtype=torch.float64)
    bests = [optimal_policy(ref, reward, beta)[0] for beta in (1.0, 0.1, 0.01)]
    distances = [kl(best, ref).item() for best in bests]
    ensure(distances[0] < distances[1] < distances[2], f"KL does not grow as beta falls: {distances}")
    agree(distances[2], -math.log(0.2), "KL of the optimum and -log ref(all best answers)", 1e-9)
    agree(bests[2].exp(), torch.tensor([0.0, 0.0, 0.75, 0.25]), "the reference restricted to them", 1e-9)
    differ(distances[0], distances[2], "KL at beta 1", 0.5)
    others = torch.linspace(0, 1, 101, dtype=torch.float64)
    split = torch.stack([torch.zeros_like(others), torch.zeros_like(others), others, 1 - others], -1).log()
    every = kl(split, ref.expand(101, -1))
    agree(every.min(), distances[2], "the nearest maximiser", 1e-9)
    agree(every.max(), -ref[3], "the farthest maximiser", 1e-9)
    where = "Yu et al. (2025), section 2.3, and trl@f2cd5771, grpo_config.py: beta 0.0, 0.04 up to 0.18.2"
    return (
        f"Read in {where}. Bandit with a tie, beta 1, .1, .01: KL {', '.join(num(d) for d in distances)}; "
        f"maximisers lie {num(every.min())} to {num(every.max())} away."
    )


@claim(
    "KL-125",
    section="1.2",
    says=f"Several papers on RLHF call {KL} the reverse KL; the word alone fixes no order of arguments, so "
    "write both.",
    verdict="holds",
    kind="cited",
    sources=("liu2025rethinking", "shah2025comedy", "wang2024fdpo", "zhang2025rpg"),
    source_rows=("f:U04",),
)
def who_says_reverse() -> str:
    """Nothing to compute but that the order matters."""
    forth, back = kl(POLICY, REF), kl(REF, POLICY)
    differ(forth, back, "the two orders", 0.1)
    papers = (
        "Wang et al. (2024), title; Liu et al. (2025), Shah et al. (2025), Zhang et al. (2026), abstracts"
    )
    count = len(get("KL-125").sources)
    return f"{papers}: {count} papers. On one pair the two orders give {num(forth)} and {num(back)}."


def _beta_at(distance: float, ref: Float[Tensor, " o"], reward: Float[Tensor, " o"]) -> float:
    """Return the coefficient whose optimum lies `distance` nats from the reference."""
    from scipy.optimize import brentq

    return float(
        brentq(lambda beta: kl(optimal_policy(ref, reward, beta)[0], ref).item() - distance, 0.1, 100)
    )
