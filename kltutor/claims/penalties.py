"""Claims of section 5.6 on other penalties than the KL: what still cancels in a pair, and bounded ratios."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.comparisons import ARMS, ARMS_REF, over
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import agree, ensure, logp, num
from kltutor.divergences import chi2, js, kl
from kltutor.optimum import optimal_policy, rational_tilt
from kltutor.pairs import all_pairs

Penalty = Callable[[Tensor, Tensor], Tensor]
PENALTIES: dict[str, tuple[Penalty, Callable[[Tensor], Tensor]]] = {  # D_f(π ‖ ref), and f' of π/ref
    "KL(π‖ref)": (kl, lambda u: u.log() + 1),
    "KL(ref‖π)": (lambda p, ref: kl(ref, p), lambda u: -1 / u),
    "Jensen-Shannon": (js, lambda u: (2 * u / (1 + u)).log() / 2),
    "chi2": (chi2, lambda u: 2 * (u - 1)),
}


def _chi_po(p: Tensor, ref: Tensor) -> Tensor:
    """Return χPO's penalty, χ²(π ‖ ref)/2 + KL(π ‖ ref)."""
    return chi2(p, ref) / 2 + kl(p, ref)


@claim(
    "KL-525",
    section="5.6",
    says=r"With a penalty $\beta D_f(\pi \Vert \pi_{\mathrm{ref}})$ the reward is $\beta f'(\pi/"
    r"\pi_{\mathrm{ref}})$ plus a constant wherever the optimum has mass, and the constant cancels in a "
    r"pair: so DPO works for the other KL, Jensen-Shannon and $\chi^2$, each with its own link.",
    verdict="holds if",
    condition="f is convex and differentiable, and both completions of a pair keep mass at the optimum; "
    "chi-squared can take it all.",
    kind="exact",
    sources=("wang2024fdpo",),
)
def other_penalties_cancel_too() -> str:
    """Optima under four penalties, found without the formula; each link's loss over all pairs; no mass."""
    beta, reward, spread = 1.5, ARMS.reward, []
    pairs, weights = all_pairs(ARMS, ARMS_REF)
    for name, (penalty, link) in PENALTIES.items():
        best = exact.minimise(_objective(penalty, beta), ARMS_REF)
        left_over = reward - beta * link((best - ARMS_REF).exp())
        agree(left_over, left_over[:, :1].expand(1, 4), f"reward less the link of {name}", 1e-6)
        by_log = reward - beta * (best - ARMS_REF)
        spread.append((by_log.max() - by_log.min()).item())
        trained = exact.minimise(over(_loss_of(link, beta), pairs, weights, ARMS_REF), ARMS_REF)
        agree(trained.exp(), best.exp(), f"the minimum of the loss with the link of {name}", 1e-6)
    agree(spread[0], 0, "what DPO's own link leaves over", 1e-6)
    ensure(min(spread[1:]) > 0.1, f"DPO's link fits the other penalties too: {spread}")
    other = exact.minimise(_objective(PENALTIES["KL(ref‖π)"][0], beta), ARMS_REF)
    agree(other.exp(), rational_tilt(ARMS_REF, reward, beta).exp(), "optimum under KL(ref‖π)", 1e-7)

    half, gap = logp(0.5, 0.5), torch.tensor([0.0, 1.0]).double()
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    law = torch.stack([1 - grid, grid], 1)
    small = (law @ gap - 0.2 * chi2(law.log(), half.expand(101, 2))).argmax()
    agree(law[small], torch.tensor([0.0, 1.0]), "optimum under chi2 at beta .2")
    return (
        "Four links leave a constant and lead to the optimum; DPO's link leaves reward differences of "
        f"{listed(spread[1:])} for the other three. At beta .2 chi2 leaves the worse of two no mass."
    )


@claim(
    "KL-526",
    section="5.6",
    says=r"With $\chi$PO's link $\pi/\pi_{\mathrm{ref}} + \log(\pi/\pi_{\mathrm{ref}})$ the optimum raises "
    r"no probability by more than the factor $1 + \Delta/\beta$, $\Delta$ the range of the reward; DPO's "
    r"raises that of a rare best completion by nearly $e^{\Delta/\beta}$.",
    verdict="holds",
    kind="exact",
    sources=("huang2025chipo",),
)
def chi_po_bounds_the_ratio() -> str:
    """The optimum with the link against a search and its loss; random cases; an action ever rarer."""
    beta = 0.4
    best = _linked_optimum(ARMS_REF[0], ARMS.reward[0], beta)[None]
    agree(best.exp(), exact.minimise(_objective(_chi_po, beta), ARMS_REF).exp(), "the optimum", 1e-7)
    pairs, weights = all_pairs(ARMS, ARMS_REF)
    loss = over(_loss_of(lambda u: u + u.log(), beta), pairs, weights, ARMS_REF)
    agree(exact.minimise(loss, ARMS_REF).exp(), best.exp(), "the minimum of its loss", 1e-6)

    seed, broken = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        ref = (3 * torch.randn(5, generator=seed, dtype=torch.float64)).log_softmax(-1)
        reward = torch.rand(5, generator=seed, dtype=torch.float64)
        spread = (reward.max() - reward.min()).item()
        bound = 1 + spread / 0.1
        ratio = (_linked_optimum(ref, reward, 0.1) - ref).exp().max()
        ensure(ratio <= bound, f"a ratio of {ratio} where {bound} is the bound")
        broken += bool((optimal_policy(ref, reward, 0.1)[0] - ref).exp().max() > bound)
    ensure(broken > 50, f"DPO's optimum breaks the bound in {broken} of 200 cases only")

    reward, rows = torch.tensor([0.0, 1.0], dtype=torch.float64), []
    for rare in (1e-2, 1e-4, 1e-8):
        ref = logp(1 - rare, rare)
        rows.append(
            [
                (optimum - ref)[1].exp().item()
                for optimum in (_linked_optimum(ref, reward, 0.1), optimal_policy(ref, reward, 0.1)[0])
            ]
        )
    ensure(rows[-1][1] > 0.99 * math.exp(10) and rows[-1][0] < 11, f"the ratios are {rows}")
    return (
        "Best of two actions at probability 1e-2, 1e-4, 1e-8, beta .1: χPO raises it by "
        f"{listed([row[0] for row in rows])} (bound 11), DPO by {listed([row[1] for row in rows])} (e^10 = "
        f"{num(math.exp(10), 3)})."
    )


def _objective(penalty: Penalty, beta: float) -> Callable[[Tensor], Tensor]:
    """Return minus the regularised reward of a policy over the four arms."""
    return lambda p: (beta * penalty(p, ARMS_REF) - (p.exp() * ARMS.reward).sum(-1)).sum()


def _loss_of(
    link: Callable[[Tensor], Tensor], beta: float
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return DPO's loss with another link of π/ref in place of its logarithm."""

    def loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
        won, lost = link((chosen - ref_chosen).exp()), link((rejected - ref_rejected).exp())
        return softplus(-beta * (won - lost))

    return loss


def _linked_optimum(ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Return log π with π/ref + log(π/ref) = (reward - λ)/beta, λ such that the probabilities sum to 1."""
    from scipy.special import wrightomega  # its value w solves w + log w = z

    low, high = reward.min().item() - 2 * beta, reward.max().item()  # the link of a ratio of 1 is 1
    for _ in range(100):
        level = (low + high) / 2
        ratio = torch.from_numpy(wrightomega(((reward - level) / beta).numpy()))
        low, high = (level, high) if ref.exp() @ ratio > 1 else (low, level)
    return ref + ratio.log()
