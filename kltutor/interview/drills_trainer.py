"""Numeric questions on what trainers compute: advantages, masks, ratios and controllers."""

import math

import torch

from kltutor import masking, placement
from kltutor.interview import numbers
from kltutor.interview.drill import Draw, Made, Trap, factor, kind, row, tex


def _tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@kind("group-advantage", level=1, topic="placement", claims=("KL-704",), sections=("ch7-grpo", "ch5-grpo"))
def _group_advantage(draw: Draw) -> Made:
    size = draw.choice((4, 5, 6, 8))
    scores = tuple(draw.step(0, 1, 0.25) for _ in range(size))
    if scores[0] == sum(scores) / size:
        scores = (scores[0], *(1 - score for score in scores[1:-1]), 0.0)
    answer = numbers.z_scores(scores)[0]
    mean = sum(scores) / size
    return Made(
        prompt=(
            f"A group has the scores ${row(scores)}$. What is the advantage of the first one in GRPO, with "
            "the deviation of the group as a population and no epsilon?"
        ),
        inputs={"scores": scores},
        answer=answer,
        unit="",
        solution=(
            rf"The mean is ${tex(mean)}$. The deviation over the group as a population is "
            rf"${tex(_spread(scores, size))}$. So $({scores[0]:g} - "
            rf"{tex(mean)})/{tex(_spread(scores, size))} = {tex(answer)}$."
        ),
        traps=(
            Trap(answer * math.sqrt(1 - 1 / size), "That divides by $N - 1$ in the deviation."),
            Trap(scores[0] - mean, "That is Dr. GRPO's: not divided by the deviation."),
        ),
    )


def _spread(scores: tuple[float, ...], size: int) -> float:
    mean = sum(scores) / size
    return math.sqrt(sum((score - mean) ** 2 for score in scores) / size)


@kind("group-beta", level=2, topic="beta", claims=("KL-309",), sections=("ch3-loss", "ch5-grpo"))
def _group_beta(draw: Draw) -> Made:
    beta, rate = (
        draw.choice((0.001, 0.01, 0.02, 0.04, 0.1)),
        draw.choice((0.01, 0.02, 0.05, 0.1, 0.2, 0.9, 0.98)),
    )
    answer = beta * math.sqrt(rate * (1 - rate))
    return Made(
        prompt=(
            f"GRPO with rewards of 0 and 1, large groups, z-scores and ${beta:g}$ times the KL in the loss. "
            f"A prompt is "
            f"solved with probability ${rate:g}$. Without the z-score, which coefficient would set the same "
            f"ratio of "
            "reward to KL?"
        ),
        inputs={"beta": beta, "rate": rate},
        answer=answer,
        unit="",
        solution=(
            rf"The z-score divides the reward by $\sqrt{{p(1 - p)}} = {tex(math.sqrt(rate * (1 - rate)))}$ "
            rf"and leaves the KL. "
            rf"So the coefficient acts like ${beta:g}$ times that, ${tex(answer)}$."
        ),
        traps=(
            Trap(beta, "The KL is not divided, the reward is: the ratio of the two changes."),
            Trap(beta * rate * (1 - rate), "That is the variance; the z-score divides by its root."),
            Trap(beta / math.sqrt(rate * (1 - rate)), "Multiply by the deviation."),
        ),
    )


@kind("ziegler-step", level=2, topic="beta", claims=("KL-404", "KL-412"), sections=("ch4-loop",))
def _ziegler_step(draw: Draw) -> Made:
    target = draw.step(3, 9, 1)
    measured = round(target * draw.choice((0.5, 0.7, 1.5, 2.0, 3.0)), 10)
    beta, n, horizon = (
        draw.choice((0.05, 0.1, 0.2)),
        draw.choice((500, 1000, 2000)),
        draw.choice((2000, 2500, 5000)),
    )
    if 0.2 * n >= horizon:
        horizon = 5000
    answer = numbers.ziegler(beta, target, measured, n, horizon)
    error = measured / target - 1
    clipped = max(-0.2, min(0.2, error))
    return Made(
        prompt=(
            f"Ziegler's rule: $\\beta = {beta:g}$, target ${target:g}$ nats, measured ${measured:g}$ nats, "
            f"${n}$ episodes an "
            f"update, horizon ${horizon}$, clip $0.2$. What is the next $\\beta$?"
        ),
        inputs={
            "beta": beta,
            "target": target,
            "measured": measured,
            "n": n,
            "horizon": horizon,
            "clip": 0.2,
        },
        answer=answer,
        unit="",
        solution=(
            rf"The relative error ${tex(error)}$ is clipped to ${clipped:g}$, so $\beta$ is multiplied by "
            rf"$1 + {clipped:g} \cdot {n}/{horizon} = {tex(1 + clipped * n / horizon)}$: ${tex(answer)}$."
        ),
        traps=(
            Trap(beta * (1 + error * n / horizon), "The error has to be clipped."),
            Trap(beta * (1 + clipped), r"The factor $n/\mathrm{horizon}$ is missing."),
            Trap(beta * (1 - clipped * n / horizon), r"The sign: too much KL asks for more $\beta$."),
        ),
    )


def _batch(draw: Draw) -> tuple[tuple[tuple[float, ...], ...], dict[str, float]]:
    """Return two rows of token log-ratios of unlike lengths, and their three reductions."""
    rows = tuple(
        tuple(draw.step(-0.4, 0.8, 0.1) for _ in range(length)) for length in draw.sample((1, 2, 3, 4), 2)
    )
    width = max(len(values) for values in rows)
    values = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    return rows, {
        "sequence_sum": masking.reduce(values, mask, "sequence_sum").item(),
        "sequence_mean": masking.reduce(values, mask, "sequence_mean").item(),
        "token_mean": masking.reduce(values, mask, "token_mean").item(),
    }


REDUCTIONS = {
    "sequence_sum": "That is the mean of the row sums, the estimate of the KL of a completion.",
    "sequence_mean": "That is the mean of the row means.",
    "token_mean": "That is the mean over all tokens of the batch.",
}
ASKED = {
    "sequence_sum": "Estimate $\\KL{\\pol}{\\refp}$ of a completion, without bias, in nats.",
    "sequence_mean": "What is the mean of the row means?",
    "token_mean": "What is the mean over all tokens of the batch?",
}


def _reduction(draw: Draw, asked: str) -> Made:
    rows, results = _batch(draw)
    shown = " and ".join(f"${row(values)}$" for values in rows)
    sums = [tex(sum(values)) for values in rows]
    answer = results[asked]
    how = {
        "sequence_sum": f"$({sums[0]} + ({sums[1]}))/2$",
        "sequence_mean": f"$({sums[0]}/{len(rows[0])} + ({sums[1]})/{len(rows[1])})/2$",
        "token_mean": f"$({sums[0]} + ({sums[1]}))/{len(rows[0]) + len(rows[1])}$",
    }[asked]
    return Made(
        prompt=(
            rf"The tokens of two completions of the policy have $\log \pol - \log \refp$ of {shown}. "
            f"{ASKED[asked]}"
        ),
        inputs={"rows": rows},
        answer=answer,
        unit="nats",
        solution=f"The row sums are ${sums[0]}$ and ${sums[1]}$, so it is {how}, ${tex(answer)}$.",
        traps=tuple(Trap(results[other], says) for other, says in REDUCTIONS.items() if other != asked),
    )


@kind(
    "sequence-kl",
    level=1,
    topic="basics",
    claims=("KL-105", "KL-628"),
    sections=("ch1-sec-chain", "ch6-level"),
)
def _sequence_kl(draw: Draw) -> Made:
    return _reduction(draw, "sequence_sum")


@kind("masked-mean", level=1, topic="basics", claims=("KL-628",), sections=("ch6-level",))
def _masked_mean(draw: Draw) -> Made:
    return _reduction(draw, "token_mean")


@kind(
    "row-means", level=2, topic="placement", claims=("KL-307", "KL-628"), sections=("ch6-level", "ch3-loss")
)
def _row_means(draw: Draw) -> Made:
    return _reduction(draw, "sequence_mean")


@kind("ppo-clip", level=2, topic="placement", claims=("KL-304",), sections=("ch3-clip",))
def _ppo_clip(draw: Draw) -> Made:
    ratio = draw.choice((0.5, 0.6, 0.7, 1.3, 1.4, 1.5, 1.8))
    advantage, eps = draw.choice((-2.0, -1.5, -0.5, 0.5, 1.5, 2.0)), draw.choice((0.1, 0.2))
    answer = numbers.clipped(ratio, advantage, eps)[0]
    inside = min(max(ratio, 1 - eps), 1 + eps)
    other = max(ratio * advantage, inside * advantage)
    return Made(
        prompt=(
            f"A token has the ratio ${ratio:g}$ to the old policy and, net of KL, the advantage "
            f"${advantage:g}$. What is "
            f"PPO's clipped surrogate, to be maximised, at $\\epsilon = {eps:g}$?"
        ),
        inputs={"ratio": ratio, "advantage": advantage, "eps": eps},
        answer=answer,
        unit="",
        solution=(
            rf"The smaller of ${ratio:g} \cdot {factor(advantage)} = {tex(ratio * advantage)}$ and "
            rf"${inside:g} \cdot {factor(advantage)} = {tex(inside * advantage)}$, which is ${tex(answer)}$."
        ),
        traps=(Trap(other, "That is the larger of the two; the surrogate takes the smaller."),),
    )


@kind("last-reward", level=1, topic="placement", claims=("KL-302",), sections=("ch3-reward",))
def _last_reward(draw: Draw) -> Made:
    logp, ref_logp = -draw.step(0.5, 3, 0.5), -draw.step(0.5, 3, 0.5)
    if logp == ref_logp:
        ref_logp -= 0.5
    score, beta = draw.step(0.5, 3, 0.5), draw.choice((0.1, 0.2, 0.5))
    shaped = placement.kl_in_reward(
        _tensor(score), _tensor(logp)[None], _tensor(ref_logp)[None], torch.tensor([[True]]), beta
    )
    answer, delta = shaped.item(), logp - ref_logp
    return Made(
        prompt=(
            f"The KL is in the reward, with $\\beta = {beta:g}$ and $k_1$. The last token of a completion "
            f"has log-probability "
            f"${logp:g}$ under the policy and ${ref_logp:g}$ under the reference, and the score is "
            f"${score:g}$. What is the "
            "shaped reward of that token?"
        ),
        inputs={"logp": logp, "ref_logp": ref_logp, "score": score, "beta": beta},
        answer=answer,
        unit="units of reward",
        solution=rf"${score:g} - {beta:g} \cdot {factor(delta)} = {tex(answer)}$.",
        traps=(
            Trap(score + beta * delta, "The sign is turned: drift would be rewarded."),
            Trap(-beta * delta, "The score belongs on the last token."),
        ),
    )


@kind("prefix-ratio", level=3, topic="placement", claims=("KL-316",), sections=("ch3-offpolicy",))
def _prefix_ratio(draw: Draw) -> Made:
    logp = tuple(-draw.step(0.2, 2, 0.1) for _ in range(3))
    old_logp = tuple(round(value + draw.choice((-0.3, -0.2, 0.1, 0.2, 0.3)), 10) for value in logp)
    if max(old_logp) > 0:
        old_logp = tuple(min(value, -0.1) for value in old_logp)
    mask = torch.ones(1, 3, dtype=torch.bool)
    answer = placement.importance_weight(_tensor(*logp)[None], _tensor(*old_logp)[None], mask)[0, 1].item()
    steps = [a - b for a, b in zip(logp, old_logp, strict=True)]
    return Made(
        prompt=(
            f"The tokens of a completion have the log-probabilities ${row(logp)}$ under the policy and "
            f"${row(old_logp)}$ under "
            "the old policy that drew them. Which weight, from as few tokens as possible, makes the "
            "log-ratio of the second token an unbiased term of the KL of the completion?"
        ),
        inputs={"logp": logp, "old_logp": old_logp},
        answer=answer,
        unit="",
        solution=(
            rf"The ratio of the prefix up to and including it: $e^{{{tex(steps[0])} + ({tex(steps[1])})}} = "
            rf"{tex(answer)}$."
        ),
        traps=(
            Trap(
                math.exp(steps[1]),
                "That is the token's own ratio; its prefix was drawn by the old policy too.",
            ),
            Trap(math.exp(steps[0]), "Include the token itself."),
            Trap(
                math.exp(sum(steps)),
                "That is the ratio of the completion: unbiased too, but later tokens only add noise.",
            ),
        ),
    )
