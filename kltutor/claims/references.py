"""Claims of section 8.5 on the wrong reference: what it costs, what shows it, and one that moves."""

import torch

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import THREE, divergence_gradient, listed, reward_gradient, triple
from kltutor.claims.witnesses import POLICY, REF, agree, differ, ensure, num
from kltutor.divergences import kl
from kltutor.estimators import k1
from kltutor.optimum import optimal_policy, regularised_value

SFT, BASE = POLICY, REF
REWARD = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)


@claim(
    "KL-811",
    section="8.5",
    says=r"The optimum $\pi_b$ for the wrong reference $b$ falls short of the optimum $\pi_s$ for the "
    r"right one, $s$, by exactly $\beta\, \mathrm{KL}(\pi_b \Vert \pi_s)$, and $\log(\pi_b/\pi_s)$ is "
    r"$\log(b/s)$ up to a constant at every $\beta$; a run that starts at $s$ shows it at once: it logs "
    r"$\mathrm{KL}(s \Vert b)$ in the mean and not 0 for every token, and its first penalty pulls towards "
    "$b$.",
    verdict="holds",
    kind="exact",
)
def cost_of_the_wrong_reference() -> str:
    """Shortfalls at five betas with both limits; then the first record and step of completions."""
    lost = []
    for beta in (1e-3, 0.1, 1.0, 10.0, 1e4):
        right, wrong = (optimal_policy(ref, REWARD, beta)[0] for ref in (SFT, BASE))
        short = regularised_value(right, SFT, REWARD, beta) - regularised_value(wrong, SFT, REWARD, beta)
        agree(short, beta * kl(wrong, right), f"the shortfall at beta {beta}", 1e-8)
        away = (wrong - right) - (BASE - SFT)
        agree(away, away[0].expand(3), f"the log-ratio of the optima at beta {beta}", 1e-9)
        lost.append(kl(wrong, right).item())
        if 1 <= beta <= 10:
            differ(short, beta * kl(right, wrong), f"the other direction at beta {beta}", 1e-3)
    agree(lost[-1], kl(BASE, SFT), "the limit of a large beta", 1e-3)
    agree(lost[0], 0, "the limit of a small beta with one best answer", 1e-9)
    tied = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    right, wrong = (optimal_policy(ref, tied, 1e-3)[0] for ref in (SFT, BASE))
    among = [table[:2].log_softmax(-1) for table in (BASE, SFT)]
    agree(kl(wrong, right), kl(*among), "the limit with two best answers", 1e-9)

    sft, base, _ = triple(THREE)
    logps, other = (exact.token_logps(policy, THREE)[0].detach() for policy in (sft, base))
    agree(k1(logps, logps), torch.zeros_like(logps), "the first record of the right reference")
    first = logps.sum(-1).exp() @ k1(logps, other).sum(-1)
    agree(first, exact.kl(sft, base, THREE).detach(), "the first record of the wrong reference")
    differ(first, exact.kl(base, sft, THREE).detach(), "the other direction", 0.05)
    pull = divergence_gradient(lambda p: (p, base), sft)
    agree(reward_gradient(sft, base, "k1"), pull, "the first pull of the wrong reference")
    agree(reward_gradient(sft, sft, "k1"), torch.zeros_like(pull), "the first pull of the right one")
    differ(pull, torch.zeros_like(pull), "the pull", 0.05)
    return (
        f"KL(π_b ‖ π_s) at β = .1, 1, 10: {listed(lost[1:4])} nats; to {num(kl(BASE, SFT), 4)} as β grows, "
        f"{num(kl(*among), 3)} as β falls with two best answers; first record {num(first, 4)}, right 0."
    )


@claim(
    "KL-812",
    section="8.5",
    says=r"Rounds at $\beta_1, \dots, \beta_n$, each to its optimum, with the reference then set to it, "
    r"end at the optimum of one round at $1/\sum 1/\beta_i$ against the first reference: a reference that "
    r"moves is a $\beta$ that falls, on the same frontier of reward and KL, and the KL it logs is that of "
    r"the last round alone; moved in logarithms by the fraction $\alpha$ after each of $n$ rounds it gives "
    r"$\beta/(1 + (n - 1) \alpha)$.",
    verdict="folklore is wrong",
    folklore="The reference must be the SFT checkpoint from which the run started.",
    kind="exact",
    sources=("deepseek2025r1", "gorbatovski2025tr", "rame2024warp"),
    source_rows=("f:W22",),
)
def a_moving_reference_lowers_beta() -> str:
    """Rounds of three coefficients in two orders; then resets and averages."""
    for betas in ((2.0, 0.5, 1.0), (1.0, 2.0, 0.5)):
        here = SFT
        for beta in betas:
            here = optimal_policy(here, REWARD, beta)[0]
        once = optimal_policy(SFT, REWARD, 1 / sum(1 / beta for beta in betas))[0]
        agree(here, once, f"three rounds at {betas}")
    beta, rounds = 1.0, 20
    differ(here, optimal_policy(SFT, REWARD, 0.5)[0], "three rounds and the least beta alone", 0.01)

    here, logged, total = SFT, [], []
    for count in range(1, rounds + 1):
        before, here = here, optimal_policy(here, REWARD, beta)[0]
        agree(here, optimal_policy(SFT, REWARD, beta / count)[0], f"{count} resets")
        logged.append(kl(here, before).item())
        total.append(kl(here, SFT).item())
    ensure(max(logged[3:]) < 0.02 and total[-1] > 0.69, f"logged {logged}, in all {total}")
    agree(total[-1], -SFT[0], "the KL from the first reference at the end", 1e-6)

    alpha, anchor = 0.25, SFT
    for count in range(1, rounds + 1):
        policy = optimal_policy(anchor, REWARD, beta)[0]
        mean = optimal_policy(SFT, REWARD, beta / (1 + (count - 1) * alpha))[0]
        agree(policy, mean, f"an average moved {count - 1} times", 1e-9)
        anchor = ((1 - alpha) * anchor + alpha * policy).log_softmax(-1)

    return (
        "Done by DeepSeek-R1-Zero (every 400 steps), TR-DPO (reset or average) and WARP (moving average). β "
        f"= 1: rounds 1, 2, 4 log {listed([logged[0], logged[1], logged[3]])} nats and are "
        f"{listed([total[0], total[1], total[3]])} from the first reference."
    )
