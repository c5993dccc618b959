"""Claims of section 6.1 on the optimum of E[r] - beta·KL(policy ‖ ref): three proofs and two conditions."""

import math

import torch
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import POLICY, REF, agree, differ, ensure, logp, num, proof, simplex, vector
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy, rational_tilt, regularised_value
from kltutor.tasks import TabularPolicy, small

BETA = 0.5
REWARD = torch.tensor([1.0, -0.4, 0.3], dtype=torch.float64)


@claim(
    "KL-601",
    section="6.1",
    says=r"By Lagrange: $\pi^* = \pi_{\mathrm{ref}}\, e^{r/\beta}/Z$ is where the slope of "
    r"$\mathrm{E}_\pi[r] - \beta\, \mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$ is the same for every outcome, "
    r"$\beta(\log Z - 1)$; the Hessian $\mathrm{diag}(-\beta/\pi)$ makes it the only such point, and $\pi "
    r"\ge 0$ never binds.",
    verdict="holds",
    kind="symbolic",
    sources=("rafailov2023dpo",),
    source_rows=("m:H17",),
)
def stationary_point() -> str:
    """The derivation; then slopes and Hessian in π by autograd, chords between policies, and the border."""
    proven = proof("optimal_policy_lagrangian", normalised=False)
    best, log_z = optimal_policy(REF, REWARD, BETA)

    def slopes(at: Tensor) -> Tensor:  # in π, not in log π
        live = at.clone().requires_grad_()
        (slope,) = torch.autograd.grad(regularised_value(live, REF, REWARD, BETA), live)
        return slope / at.exp()

    agree(slopes(best), (BETA * (log_z - 1)).expand(3), "the slope at the optimum and the multiplier")
    differ(slopes(POLICY), slopes(POLICY)[0].expand(3), "the slopes at another policy", 0.5)
    differ(slopes(best), (BETA * log_z).expand(3), "the multiplier without its -beta", 0.4)
    free = (REF + REWARD / BETA - 1).exp().sum()  # stationary if nothing holds the sum at 1
    agree(free, (log_z - 1).exp(), "the sum without a multiplier")
    differ(free, 1, "the same and 1", 0.3)

    def value(probs: Tensor) -> Tensor:  # of any positive numbers, so that each can move alone
        return probs @ REWARD - BETA * (probs * (probs.log() - REF)).sum()

    curvature = torch.autograd.functional.hessian(value, POLICY.exp())
    agree(curvature, torch.diag(-BETA / POLICY.exp()), "the Hessian", 1e-12)
    grid = simplex(3, 12)
    one, other = grid[:, None].expand(-1, len(grid), -1), grid.expand(len(grid), -1, -1)
    between = ((one.exp() + other.exp()) / 2).log()
    worth = [regularised_value(p, REF.expand_as(p), REWARD.expand_as(p), BETA) for p in (one, other, between)]
    bend = worth[2] - (worth[0] + worth[1]) / 2
    apart = ~torch.eye(len(grid), dtype=torch.bool)
    ensure(bend[apart].min() > 1e-4, f"J bends by {bend[apart].min()} between two policies")
    edge = slopes(logp(1e-9, 0.4, 0.6 - 1e-9))
    ensure(edge[0] > edge[1:].max() + 5, "the slope at the border does not point inwards")
    return (
        f"{proven}; slope {num(slopes(best)[0])} at all outcomes of π* {vector(best.exp())}; without the "
        f"constraint the sum is {num(free, 4)}; {int(apart.sum())} chords lie below J; at probability 1e-9 "
        f"the slope is {num(edge[0] - edge[1:].max(), 3)} above the others."
    )


@claim(
    "KL-602",
    section="6.1",
    says=r"With $J(\pi) = \mathrm{E}_\pi[r] - \beta\, \mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$ every "
    r"policy falls short of the maximum by $J(\pi^*) - J(\pi) = \beta\, \mathrm{KL}(\pi \Vert \pi^*)$, on "
    r"several prompts by the mean of these; so $\nabla J = -\beta \nabla\, \mathrm{KL}(\pi \Vert \pi^*)$.",
    verdict="holds",
    kind="symbolic",
    source_rows=("m:H17",),
)
def shortfall_is_a_kl() -> str:
    """The derivation; then five random policies of whole phrases to two prompts, in value and in gradient."""
    proven = proof("value_gap", normalised=False)
    task, seed = small(), torch.Generator().manual_seed(0)
    ref = TabularPolicy.random(task, seed)
    ref_logp = exact.seq_logp(ref, task).detach()
    asked = torch.tensor(task.prompt_probs, dtype=torch.float64)
    best, log_z = optimal_policy(ref_logp, task.reward, BETA)
    gaps, alike = [], []
    for _ in range(5):
        policy = TabularPolicy.random(task, seed)
        seq_logp = exact.seq_logp(policy, task).detach()
        reward = exact.expectation(task.reward, seq_logp, task)
        short = BETA * asked @ log_z - (reward - BETA * exact.kl(policy, ref, task).detach())
        agree(short, BETA * asked @ kl(seq_logp, best), "the shortfall", 1e-12)
        agree(
            short,
            BETA * asked @ log_z - asked @ regularised_value(seq_logp, ref_logp, task.reward, BETA),
            "the shortfall by regularised_value",
            1e-12,
        )
        differ(short, BETA * asked @ kl(best, seq_logp), "the other KL", 0.01)
        gaps.append(short)
        alike.append(BETA * kl(seq_logp, best).mean())
    differ(torch.stack(gaps), torch.stack(alike), "prompts weighted alike", 0.01)
    up = exact.gradient(
        lambda p: (
            exact.expectation(task.reward, exact.seq_logp(p, task), task) - BETA * exact.kl(p, ref, task)
        ),
        policy,
    )
    down = exact.gradient(lambda p: asked @ kl(exact.seq_logp(p, task), best), policy)
    agree(up, -BETA * down, "the gradient of J", 1e-12)
    differ(up, down, "the same with the wrong sign", 0.01)
    return f"{proven}; five policies of {task.size} completions, within 1e-12: short by {listed(gaps)}."


@claim(
    "KL-603",
    section="6.1",
    says=r"Where $Z = \mathrm{E}_{\mathrm{ref}}[e^{r/\beta}]$ is infinite there is no optimum: with "
    r"$\pi_{\mathrm{ref}} = \mathrm{Exp}(1)$ and $r = y$ the best policy that stays below $L$ reaches "
    r"$J = \log L$ at $\beta = 1$ and about $(1 - \beta) L$ at $\beta < 1$, without bound, while no "
    r"policy reaches more than $2 \log 2$ at $\beta = 2$.",
    verdict="folklore is wrong",
    folklore="The regularised objective is strictly concave, so it has a unique optimum.",
    kind="exact",
    source_rows=("m:I07", "f:I06"),
)
def without_z_no_optimum() -> str:
    """The exponential cut into cells of .01 and at three lengths; its J against the integral."""
    cell, lengths = 0.01, (10, 100, 1000)
    values: dict[float, list[Tensor]] = {}
    for beta in (0.5, 1.0, 2.0):
        values[beta] = []
        for length in lengths:
            start = torch.arange(0, length, cell, dtype=torch.float64)
            mass = -math.expm1(-length)  # of Exp(1) below the length
            ref = -start + math.log(-math.expm1(-cell) / mass)
            log_z = optimal_policy(ref, start + cell / 2, beta)[1]
            values[beta].append(beta * (log_z + math.log(mass)))  # J against the whole of Exp(1)
    agree(torch.stack(values[1.0]), torch.tensor(lengths).double().log(), "J at beta 1 and log L", 1e-4)
    agree(values[0.5][-1], 500, "J at beta 1/2 and L/2", 0.01)
    agree(values[2.0][-1], 2 * math.log(2), "J at beta 2", 1e-4)
    ensure(values[2.0][0] < 2 * math.log(2), "J at beta 2 is above its bound")
    differ(values[1.0][-1], values[1.0][0], "J at beta 1 for two lengths", 4)
    return (
        f"Cut at {', '.join(map(str, lengths))}: J = {listed(values[0.5], 4)} at β = .5, "
        f"{listed(values[1.0], 4)} at 1, {listed(values[2.0], 4)} at 2, where 2 log 2 = 1.386."
    )


@claim(
    "KL-604",
    section="6.1",
    says=r"Where $\pi_{\mathrm{ref}}$ is zero $\pi^*$ is zero, whatever the reward there, and a policy with "
    r"mass there has $J = -\infty$; $\pi_{\mathrm{ref}} > 0$ everywhere is no condition, as $\pi^*$ is the "
    "one optimum among the policies that the reference covers.",
    verdict="folklore is wrong",
    folklore="The closed form needs a reference that is positive everywhere, and a large enough reward "
    "outweighs a missing reference.",
    kind="exact",
    source_rows=("m:I07",),
)
def no_reference_no_mass() -> str:
    """Three outcomes, the third of them never said by the reference and paid a million."""
    ref, jackpot = logp(0.7, 0.3, 0.0), torch.tensor([0.0, 1.0, 1e6], dtype=torch.float64)
    best, log_z = optimal_policy(ref, jackpot, BETA)
    two, two_z = optimal_policy(ref[:2], jackpot[:2], BETA)
    ensure(best[2] == -torch.inf, "the optimum has mass where the reference has none")
    agree(best[:2], two, "the optimum with the outcome left out", 1e-14)
    agree(log_z, two_z, "log Z with the outcome left out", 1e-14)
    agree(regularised_value(best, ref, jackpot, BETA), BETA * log_z, "the maximum")
    grid = simplex(3, 20)
    worth = regularised_value(grid, ref.expand_as(grid), jackpot.expand_as(grid), BETA)
    said = grid[:, 2] > -torch.inf
    ensure((worth[said] == -torch.inf).all(), "a policy with mass there has a finite value")
    ensure((worth[~said] < BETA * log_z).all(), "another covered policy is as good")
    agree(worth[~said], BETA * (log_z - kl(grid[~said], best.expand_as(grid[~said]))), "J of those covered")
    other = rational_tilt(ref, jackpot, BETA).exp()  # KL(ref ‖ policy) costs nothing there
    differ(other[2], best.exp()[2], "the optimum of the other direction", 0.9)
    return (
        f"π* = {vector(best.exp())}, J = {num(BETA * log_z)}; of {len(grid)} policies {int(said.sum())} have "
        f"mass there and J = -∞; KL(ref ‖ π) as the penalty would put {num(other[2], 6)} there."
    )


@claim(
    "KL-605",
    section="6.1",
    says=r"$-J(\pi)/\beta = \mathrm{KL}(\pi \Vert \pi^*) - \log Z$ is the loss of variational inference: "
    r"$\pi_{\mathrm{ref}}$ is the prior, $e^{r/\beta}$ the likelihood, $\pi^*$ the posterior and $J/\beta$ a "
    "lower bound on the log evidence; any reward will do, no Bradley-Terry model is needed.",
    verdict="folklore is wrong",
    folklore="The closed form holds for rewards of the Bradley-Terry kind.",
    kind="exact",
    sources=("korbak2022",),
    source_rows=("f:I05",),
)
def posterior_of_a_prior() -> str:
    """Accept draws of the reference with the likelihood; a second observation; the bound and its gap."""
    likelihood = (REWARD / BETA).exp()
    accept = likelihood / likelihood.max()
    joint = REF.exp() * accept
    best, log_z = optimal_policy(REF, REWARD, BETA)
    agree(best.exp(), joint / joint.sum(), "the law of the accepted draws")
    agree(joint.sum(), (log_z - REWARD.max() / BETA).exp(), "the rate of acceptance")
    second = torch.tensor([-1.0, 2.0, 0.0], dtype=torch.float64)
    agree(
        optimal_policy(best, second, BETA)[0],
        optimal_policy(REF, REWARD + second, BETA)[0],
        "two observations one after the other and at once",
    )
    grid = simplex(3, 20)
    loss = -regularised_value(grid, REF.expand_as(grid), REWARD.expand_as(grid), BETA) / BETA
    agree(loss, kl(grid, best.expand_as(grid)) - log_z, "the loss of a policy")
    ensure((-loss < log_z).all(), "J/beta is above the log evidence")
    inside = grid[(grid > -torch.inf).all(-1)]
    wrong = kl(best.expand_as(inside), inside) - log_z
    worth = regularised_value(inside, REF.expand_as(inside), REWARD.expand_as(inside), BETA)
    differ(-worth / BETA, wrong, "the KL to the posterior the other way", 0.1)
    return (
        f"Posterior {vector(best.exp())}, log evidence {num(log_z)}, acceptance {num(joint.sum(), 4)}; of "
        f"{len(grid)} policies the closest bound is {num((log_z + loss).min(), 2)} below."
    )
