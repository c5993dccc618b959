"""Numeric questions on preference losses."""

import math

import torch

from kltutor import preference
from kltutor.interview import numbers
from kltutor.interview.drill import Draw, Made, Trap, factor, kind, tex


def _tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _pair(draw: Draw) -> tuple[dict[str, float], float, float]:
    """Return four sequence log-probabilities and the two log-ratios."""
    given = {
        "chosen": -draw.step(10, 40, 0.5),
        "rejected": -draw.step(10, 40, 0.5),
    }
    given["ref_chosen"] = given["chosen"] - draw.step(-4, 4, 0.5)
    given["ref_rejected"] = given["rejected"] - draw.step(-4, 4, 0.5)
    return given, given["chosen"] - given["ref_chosen"], given["rejected"] - given["ref_rejected"]


def _told(given: dict[str, float]) -> str:
    return (
        f"A pair has the log-probabilities ${given['chosen']:g}$ (chosen) and ${given['rejected']:g}$ "
        f"(rejected) under "
        f"the policy, ${given['ref_chosen']:g}$ and ${given['ref_rejected']:g}$ under the reference, summed "
        f"over tokens."
    )


@kind("implicit-margin", level=1, topic="preference", claims=("KL-501", "KL-503"), sections=("ch5-dpo",))
def _implicit_margin(draw: Draw) -> Made:
    given, chosen, rejected = _pair(draw)
    beta = draw.choice((0.05, 0.1, 0.2, 0.5))
    logps = [_tensor(given[name]) for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")]
    metrics = preference.preference_metrics(logps[0], logps[1], logps[2], logps[3], beta)
    answer = metrics["margin"]
    return Made(
        prompt=(
            f"{_told(given)} At $\\beta = {beta:g}$, what is the margin of the implicit rewards, chosen less "
            f"rejected?"
        ),
        inputs={**given, "beta": beta},
        answer=answer,
        unit="units of reward",
        solution=(
            rf"$\beta\,(\text{{chosen}} - \text{{rejected}}) = {beta:g} \cdot ({tex(chosen)} - "
            rf"{factor(rejected)}) = "
            rf"{tex(answer)}$, with log-ratios to the reference."
        ),
        traps=(
            Trap(-answer, "That is rejected less chosen."),
            Trap(answer / beta, r"Multiply by $\beta$."),
            Trap(
                beta * (given["chosen"] - given["rejected"]),
                "Subtract the reference: rewards are log-ratios.",
            ),
        ),
    )


@kind("dpo-weight", level=2, topic="preference", claims=("KL-502",), sections=("ch5-dpo",))
def _dpo_weight(draw: Draw) -> Made:
    given, chosen, rejected = _pair(draw)
    beta = draw.choice((0.1, 0.2, 0.5))
    first = torch.tensor([given["chosen"]], dtype=torch.float64, requires_grad=True)
    others = [_tensor(given[name]) for name in ("rejected", "ref_chosen", "ref_rejected")]
    loss = preference.dpo_loss(first, others[0], others[1], others[2], beta).sum()
    (grad,) = torch.autograd.grad(loss, first)
    answer, margin = -grad.item(), beta * (chosen - rejected)
    return Made(
        prompt=(
            f"{_told(given)} At $\\beta = {beta:g}$, by which number does the gradient of the DPO loss "
            f"multiply "
            r"$-(\nabla \log \pol(y_w) - \nabla \log \pol(y_l))$?"
        ),
        inputs={**given, "beta": beta},
        answer=answer,
        unit="",
        solution=(
            rf"$h = {tex(margin)}$, so $\beta \sigma(-h) = {beta:g} \cdot {tex(numbers.sigmoid(-margin))} = "
            rf"{tex(answer)}$."
        ),
        traps=(
            Trap(
                beta * numbers.sigmoid(margin), r"That is $\beta \sigma(h)$: it pushes what is already right."
            ),
            Trap(numbers.sigmoid(-margin), r"The factor $\beta$ in front is missing."),
        ),
    )


@kind("dpo-loss", level=2, topic="preference", claims=("KL-501",), sections=("ch5-dpo",))
def _dpo_loss(draw: Draw) -> Made:
    given, chosen, rejected = _pair(draw)
    beta = draw.choice((0.1, 0.2, 0.5))
    answer, margin = numbers.dpo(chosen, rejected, beta), beta * (chosen - rejected)
    raw = beta * (given["chosen"] - given["rejected"])
    return Made(
        prompt=f"{_told(given)} What is the DPO loss of the pair at $\\beta = {beta:g}$?",
        inputs={**given, "beta": beta},
        answer=answer,
        unit="nats",
        solution=rf"$h = {tex(margin)}$ and $-\log \sigma(h) = {tex(answer)}$.",
        traps=(
            Trap(numbers.dpo(rejected, chosen, beta), "Chosen and rejected are swapped."),
            Trap(math.log1p(math.exp(-raw)), "The reference is missing."),
            Trap(numbers.dpo(chosen, rejected, 1.0), r"$\beta$ is missing."),
        ),
    )


@kind("ipo-margin", level=2, topic="preference", claims=("KL-520",), sections=("ch5-others",))
def _ipo_margin(draw: Draw) -> Made:
    tau, share = draw.choice((0.05, 0.1, 0.2, 0.25, 0.4)), draw.step(0.6, 0.95, 0.05)
    answer = (share - 0.5) / tau
    return Made(
        prompt=(
            f"An answer wins a comparison with probability ${share:g}$. To which margin, its log-ratio less "
            f"that of the other, does IPO bring the pair at $\\tau = {tau:g}$, in nats?"
        ),
        inputs={"tau": tau, "share": share},
        answer=answer,
        unit="nats",
        solution=(
            rf"The two targets $\pm 1/(2\tau)$ are averaged: $({share:g} - {1 - share:g})/(2 \cdot {tau:g}) "
            rf"= {tex(answer)}$."
        ),
        traps=(
            Trap(1 / (2 * tau), "That is the target of a label that never errs."),
            Trap(numbers.logit(share) / tau, "That is DPO's margin, from the logit of the probability."),
        ),
    )
