"""Claims of sections 1.2 and 1.4 that rest on papers: what a KL penalty does, who has none, and its name."""

import math

import torch

from kltutor.claims import claim, get
from kltutor.claims.witnesses import KL, POLICY, REF, agree, differ, ensure, logp, num
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy


@claim(
    "KL-123",
    section="1.4",
    says="A KL penalty does not cure over-optimisation of a proxy reward: in the experiments of Gao et al. "
    "it leaves the curve of gold reward against KL where it was and acts like stopping early.",
    verdict="folklore is wrong",
    folklore="The KL penalty keeps the gold reward from falling however strong the proxy reward is.",
    kind="cited",
    sources=("gao2023",),
    source_rows=("f:W05",),
)
def penalty_acts_like_early_stopping() -> str:
    """A toy with proxy x and gold x - x²/4 under N(0, 1): every penalty is a stop on the unpenalised path."""
    x = torch.linspace(-16, 16, 641, dtype=torch.float64)
    ref = (-(x**2) / 2).log_softmax(-1)
    gold = x - x**2 / 4
    start = ref.exp() @ gold
    gains = []
    for stop in (1, 2, 5):
        penalised, _ = optimal_policy(ref, x, 1 / stop)
        free = ref.clone()
        for _ in range(10 * stop):  # natural-gradient steps on the proxy alone
            free = (free + 0.1 * x).log_softmax(-1)
        agree(penalised.exp(), free.exp(), f"beta 1/{stop} and stopping there", 1e-9)
        distance = kl(penalised, ref).sqrt().item()
        gains.append((penalised.exp() @ gold - start).item())
        agree(gains[-1], math.sqrt(2) * distance - distance**2 / 2, "gold gain in the distance", 1e-6)
    ensure(gains[0] < gains[1] > 0 > gains[2], f"gold gains {gains} do not rise and then fall below 0")
    return (
        "Gao et al. (2023), section 3.6. Toy: beta 1, ½, ⅕ give gold gains "
        + ", ".join(num(gain) for gain in gains)
        + ", the same as stopping an unpenalised ascent."
    )


@claim(
    "KL-124",
    section="1.4",
    says="DAPO drops the KL term, and GRPO in TRL has had a coefficient of 0 by default since version 0.19; "
    "without the term nothing bounds the distance but $-\\log \\pi_{\\mathrm{ref}}$ of the best answer.",
    verdict="folklore is wrong",
    folklore="Every current recipe keeps a KL penalty, DAPO's being k3 in the loss with a small coefficient.",
    kind="cited",
    sources=("yu2025dapo",),
    source_rows=("f:W17", "f:I20"),
)
def practice_without_a_penalty() -> str:
    """The distance of the optimum as beta goes to 0, in a bandit with one best answer."""
    ref, reward = logp(0.6, 0.3, 0.1), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    distances = [kl(optimal_policy(ref, reward, beta)[0], ref).item() for beta in (1.0, 0.1, 0.01)]
    ensure(distances[0] < distances[1] < distances[2], f"KL does not grow as beta falls: {distances}")
    agree(distances[2], -ref[2], "KL of the optimum and -log ref(best)", 1e-9)
    differ(distances[0], -ref[2], "KL at beta 1", 0.5)
    where = "Yu et al. (2025), section 2.3, and trl@f2cd5771, grpo_config.py: beta 0.0, 0.04 up to 0.18.2"
    return (
        f"Read in {where}. Bandit, beta 1, .1, .01: KL {', '.join(num(d) for d in distances)}; "
        f"-log ref(best) {num(-ref[2])}."
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
