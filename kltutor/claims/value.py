"""Claims of section 6.2: the reward that a policy implies, and what the optimum is worth along beta."""

import math

import torch
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import listed
from kltutor.claims.loop import ARMS, REWARD
from kltutor.claims.witnesses import agree, differ, ensure, logp, num, proof, vector
from kltutor.divergences import kl
from kltutor.optimum import frontier, implicit_reward, optimal_policy
from kltutor.tasks import TabularPolicy, small


@claim(
    "KL-606",
    section="6.2",
    says=r"$\beta \log(\pi^*/\pi_{\mathrm{ref}}) = r - \beta \log Z(x)$ gives the reward back up to a "
    "constant for each prompt: reward gaps between answers to one prompt are exact, gaps across prompts are "
    "not, and rewards that differ by a function of the prompt have one optimum.",
    verdict="holds",
    kind="exact",
    sources=("rafailov2023dpo",),
    source_rows=("m:H17",),
)
def reward_up_to_a_constant() -> str:
    """All phrases to two prompts; the wrong beta, a shifted reward, and the best answer of each prompt."""
    task, beta = small(), 0.5
    ref_logp = exact.seq_logp(TabularPolicy.random(task, torch.Generator().manual_seed(0)), task).detach()
    best, log_z = optimal_policy(ref_logp, task.reward, beta)
    implied = implicit_reward(best, ref_logp, beta)
    agree(implied, task.reward - beta * log_z[:, None], "the implicit reward")
    gaps, within = (r[:, :, None] - r[:, None, :] for r in (implied, task.reward))
    agree(gaps, within, "gaps within a prompt")
    differ(
        implicit_reward(best, ref_logp, 2 * beta)[0, 1] - implied[0, 0], within[0, 1, 0], "twice beta", 0.1
    )
    differ(beta * (best[0, 0] - best[0, 1]), within[0, 0, 1], "without the reference", 0.1)
    shifted = task.reward + torch.tensor([[3.0], [-2.0]], dtype=torch.float64)
    agree(optimal_policy(ref_logp, shifted, beta)[0], best, "the optimum of a reward shifted by prompt")
    across = implied[0].max() - implied[1].max()
    truth = task.reward[0].max() - task.reward[1].max()
    agree(across - truth, beta * (log_z[1] - log_z[0]), "the error across prompts")
    differ(across, truth, "the gap across prompts", 0.1)
    return (
        f"{gaps.numel()} gaps within prompts exact; β log Z is {listed(beta * log_z, 4)}, so the best "
        f"answers of the two prompts seem {num(across, 4)} apart and are {num(truth, 4)} apart."
    )


@claim(
    "KL-607",
    section="6.2",
    says=r"Along $\beta$ the optimum has $dJ^*/d\beta = -\mathrm{KL}^*$, $d^2 J^*/d\beta^2 = "
    r"\mathrm{Var}^*/\beta^3$, $d\mathrm{KL}^*/d\beta = -\mathrm{Var}^*/\beta^3$ and "
    r"$d\mathrm{E}^*[r]/d\beta = -\mathrm{Var}^*/\beta^2$, with $\mathrm{Var}^*$ the variance of the reward "
    r"at $\pi^*$; so $d\mathrm{E}^*[r]/d\mathrm{KL}^* = \beta$ is the price of a nat.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:R2",),
)
def calculus_of_beta() -> str:
    """The derivation; then central differences of the sums over four arms at three values of beta."""
    proven = proof("beta_calculus", in_beta=False)
    prices = []
    for beta in (0.1, 0.4, 2.0):
        h = 1e-3 * beta
        along = torch.tensor([beta - h, beta, beta + h], dtype=torch.float64)
        value, reward, distance, spread = (torch.empty(3, dtype=torch.float64) for _ in range(4))
        for i, b in enumerate(along.tolist()):
            best, log_z = optimal_policy(ARMS, REWARD, b)
            probs = best.exp()
            value[i], reward[i], distance[i] = b * log_z, probs @ REWARD, kl(best, ARMS)
            spread[i] = probs @ (REWARD - probs @ REWARD) ** 2
        curve = frontier(ARMS, REWARD, along)
        for name, mine in (("value", value), ("reward", reward), ("kl", distance), ("variance", spread)):
            agree(getattr(curve, name), mine, f"{name} of the frontier")
        d_value, d_reward, d_kl = ((x[2] - x[0]) / (2 * h) for x in (value, reward, distance))
        var, scale = spread[1].item(), 2e-5
        agree(d_value, -distance[1], "dJ*/dβ", scale * distance[1].item())
        agree((value[2] - 2 * value[1] + value[0]) / h**2, var / beta**3, "d²J*/dβ²", scale * var / beta**3)
        agree(d_kl, -var / beta**3, "dKL*/dβ", scale * var / beta**3)
        agree(d_reward, -var / beta**2, "dE*/dβ", scale * var / beta**2)
        agree(d_reward / d_kl, beta, "dE*/dKL*", scale * beta)
        differ(d_kl, -var / beta**2, "dKL*/dβ with one power less", 0.1 * var / beta**2)
        differ(d_value, -distance[1] * (1 + beta**2), "dJ*/dβ of the broken derivation", 1e-4)
        prices.append(d_reward / d_kl)
    return f"{proven}; a nat is worth {listed(prices)} at β = .1, .4, 2; all slopes within 2e-5."


@claim(
    "KL-608",
    section="6.2",
    says=r"Along the optima $\mathrm{E}^*[r]$ rises with $\mathrm{KL}^*$ and bends down, with slope $\beta$: "
    "it is the most reward at each KL; along another path it need not rise, and where the optima of a reward "
    r"$s$ are followed, $d\mathrm{E}[r]/d(1/\beta) = \mathrm{Cov}(r, s)$, of either sign.",
    verdict="holds if",
    condition="the policies compared are the optima of that same reward.",
    kind="exact",
    source_rows=("m:C11",),
)
def reward_rises_along_the_optima() -> str:
    """Chords of the frontier, every policy of a grid below it, and the optima of another reward."""
    betas = torch.logspace(1.5, -1.5, 61, dtype=torch.float64)
    curve = frontier(ARMS, REWARD, betas)
    chord = curve.reward.diff() / curve.kl.diff()
    ensure((curve.reward.diff() > 0).all() and (curve.kl.diff() > 0).all(), "reward or KL does not rise")
    ensure(((chord < betas[:-1]) & (chord > betas[1:])).all(), "a chord is not between the two betas")
    seed, below = torch.Generator().manual_seed(0), []
    for _ in range(300):
        policy = (ARMS + 2 * torch.randn(4, generator=seed, dtype=torch.float64)).log_softmax(-1)
        # The tangent at beta lies above the curve: E*[r] + beta·(KL - KL*), and so above every policy.
        tangents = curve.reward + betas * (kl(policy, ARMS) - curve.kl)
        below.append((tangents - policy.exp() @ REWARD).min())
    ensure(min(below) > 0, f"a policy lies {min(below)} below the frontier")
    other = torch.tensor([2.0, 0.2, 0.1, 3.0], dtype=torch.float64)  # likes the worst and the best arm
    path, h = [], 1e-4
    for t in (0.0, 0.5, 3.0):
        before, now, after = ((ARMS + u * other).log_softmax(-1).exp() for u in (t - h, t, t + h))
        covariance = now @ (REWARD * other) - (now @ REWARD) * (now @ other)
        agree((after @ REWARD - before @ REWARD) / (2 * h), covariance, "slope along another path", 1e-6)
        path.append(covariance)
    ensure(path[0] < -0.02 and path[-1] > 0.02, f"the slopes along the other path are {path}")
    reached = frontier(ARMS, other, 1 / torch.tensor([0.01, 0.5], dtype=torch.float64))
    ensure(reached.kl[1] > reached.kl[0], "KL does not rise along the other path")
    return (
        f"{len(chord)} chords between their two β, 300 policies below the curve by {num(min(below), 2)} or "
        f"more; along the optima of another reward the slope is {listed(path, 2)} at 1/β = 0, .5, 3."
    )


@claim(
    "KL-609",
    section="6.2",
    says=r"As $\beta \to \infty$, $\pi^* \to \pi_{\mathrm{ref}}$ with $\mathrm{KL}^* \approx "
    r"\mathrm{Var}_{\mathrm{ref}}(r)/(2\beta^2)$ and $J^* \approx \mathrm{E}_{\mathrm{ref}}[r] + "
    r"\mathrm{Var}_{\mathrm{ref}}(r)/(2\beta)$; as $\beta \to 0$, $\pi^*$ tends to the reference restricted "
    r"to the best outcomes, ties included, with $\mathrm{KL}^* \to -\log \pi_{\mathrm{ref}}(\mathrm{best})$ "
    r"and $J^* \approx \max r + \beta \log \pi_{\mathrm{ref}}(\mathrm{best})$.",
    verdict="holds",
    kind="exact",
    source_rows=("m:R2",),
)
def both_limits() -> str:
    """Two best outcomes of unlike probability, from beta 1e-6 to 1e6."""
    ref, reward = logp(0.5, 0.3, 0.15, 0.05), torch.tensor([0.0, 0.4, 1.0, 1.0], dtype=torch.float64)
    betas = torch.tensor([1e-6, 0.02, 1e3, 1e6], dtype=torch.float64)
    curve = frontier(ref, reward, betas)
    mean = ref.exp() @ reward
    variance = ref.exp() @ (reward - mean) ** 2
    scaled = curve.kl * 2 * betas**2 / variance
    agree(scaled[3], 1, "KL over its form at beta 1e6", 2e-6)
    agree((scaled[2] - 1).abs(), 0, "the same at beta 1e3", 2e-3)
    differ(scaled[1], 1, "the same at beta .02", 0.5)
    gain = (curve.value - mean) * 2 * betas / variance
    agree(gain[2], 1, "the gain in J over its form at beta 1e3", 2e-3)
    differ((curve.reward - mean)[2] * 2 * betas[2] / variance, 1, "the gain in reward, which is twice that")
    agree(optimal_policy(ref, reward, 1e6)[0].exp(), ref.exp(), "the optimum at beta 1e6", 1e-5)
    tied = torch.tensor([0.0, 0.0, 0.75, 0.25], dtype=torch.float64)
    agree(optimal_policy(ref, reward, 0.02)[0].exp(), tied, "the optimum at beta .02", 1e-10)
    limit = -math.log(0.2)
    agree(curve.kl[:2], torch.full((2,), limit, dtype=torch.float64), "KL at beta 1e-6 and .02", 1e-10)
    differ(curve.kl[0], -math.log(0.15), "KL with the likelier of the tied outcomes alone", 0.2)
    agree(curve.value[1], 1 + 0.02 * math.log(0.2), "J at beta .02", 1e-12)
    differ(curve.value[1], 1, "J without its cost", 0.03)
    return (
        f"KL over its form: {num(scaled[3], 6)} at β = 1e6, {num(scaled[2], 4)} at 1e3; at .02 π* = "
        f"{vector(_rounded(optimal_policy(ref, reward, 0.02)[0].exp()))} and KL = {num(curve.kl[1], 6)} "
        f"= -log .2, not -log .15 = {num(-math.log(0.15), 3)}."
    )


def _rounded(values: Tensor) -> Tensor:
    return torch.where(values < 1e-6, 0, values)
