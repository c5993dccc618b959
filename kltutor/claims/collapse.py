"""Claims of section 8.1 on collapse: what a large beta costs, a KL near zero, groups of equal rewards."""

from functools import partial

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor, nn

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import THREE, listed, triple
from kltutor.claims.witnesses import OLD, POLICY, REF, agree, differ, ensure, logp, num
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy
from kltutor.policy_gradient import dr_grpo_advantages
from kltutor.tasks import TabularPolicy, bandit

GRID = torch.linspace(-9, 9, 361, dtype=torch.float64)
NORMAL = (-(GRID**2) / 2).log_softmax(-1)  # a reference under which the reward GRID is standard normal


def objective(policy: nn.Module, ref: TabularPolicy, beta: float, scale: float = 1.0) -> Tensor:
    """Return E[scale·reward] - beta·KL(policy ‖ ref) of whole completions."""
    assert isinstance(policy, TabularPolicy)
    reward = exact.expectation(scale * policy.task.reward, exact.seq_logp(policy, policy.task), policy.task)
    return reward - beta * exact.kl(policy, ref, policy.task)


@claim(
    "KL-801",
    section="8.1",
    says=r"At the optimum of $\beta$ the gain in reward over the reference is exactly $\beta\, "
    r"(\mathrm{KL}(\pi^* \Vert \pi_{\mathrm{ref}}) + \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi^*))$, so the "
    r"penalty eats the share of the first KL in that sum; as $\beta$ grows the share tends to a half, and "
    r"ten times the $\beta$ leaves a tenth of the gain and a hundredth of the KL.",
    verdict="holds",
    kind="exact",
)
def price_of_a_large_beta() -> str:
    """The identity for unlike references at five betas, a normal reward, and the limits at large beta."""
    reward, shares = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64), []
    for ref in (POLICY, REF, OLD):
        for beta in (0.1, 0.5, 1.0, 5.0, 50.0):
            best = optimal_policy(ref, reward, beta)[0]
            gain, both = (best.exp() - ref.exp()) @ reward, kl(best, ref) + kl(ref, best)
            agree(gain, beta * both, f"the gain at beta {beta}")
            shares.append((beta * kl(best, ref) / gain).item())
            if beta <= 0.5:
                differ(gain, 2 * beta * kl(best, ref), f"the gain and twice the penalty at beta {beta}", 1e-3)
    ensure(0 < min(shares) < 0.1 and 0.5 < max(shares) < 1, f"the penalty eats between {shares}")
    for beta in (0.5, 2.0, 20.0):
        best = optimal_policy(NORMAL, GRID, beta)[0]
        share = beta * kl(best, NORMAL) / ((best.exp() - NORMAL.exp()) @ GRID)
        agree(share, 0.5, f"the share for a normal reward at beta {beta}", 1e-9)
    near, far = (optimal_policy(REF, reward, beta)[0] for beta in (100.0, 1000.0))
    gains = [((p.exp() - REF.exp()) @ reward).item() for p in (near, far)]
    kls = [kl(p, REF).item() for p in (near, far)]
    agree(gains[0] / gains[1], 10, "how much gain a tenth of beta adds", 0.1)
    agree(kls[0] / kls[1], 100, "how much KL a tenth of beta adds", 1)
    agree(100 * kls[0] / gains[0], 0.5, "the share at beta 100", 0.01)
    return (
        f"15 optima of three arms: the penalty eats {num(100 * min(shares), 2)} to "
        f"{num(100 * max(shares), 2)} % of the gain, 50 % for a normal reward; from β = 100 to 1000 the gain "
        f"falls {num(gains[0] / gains[1], 4)} times, the KL {num(kls[0] / kls[1], 4)} times."
    )


@claim(
    "KL-802",
    section="8.1",
    says=r"Near the reference $2 \beta^2\, \mathrm{KL}/\mathrm{Var}(r)$, with the variance of the reward "
    r"within a prompt, is about 1 where $\beta$ holds the policy and about $s^2$ where a run has gone the "
    r"share $s$ of its way: it tells a $\beta$ that is large for its rewards from an optimiser that hardly "
    r"moves; a large $\beta$ and a flat reward are one cause, as only $r/\beta$ enters.",
    verdict="folklore is wrong",
    folklore="A KL that stays near zero shows that beta is too large.",
    kind="exact",
)
def causes_of_a_small_kl() -> str:
    """The ratio for a normal reward and for completions, at rest and on the way; gradients of two scales."""
    for beta in (2.0, 20.0):
        for share in (1.0, 0.5, 0.1):
            there = optimal_policy(NORMAL, share * GRID, beta)[0]
            agree(2 * beta**2 * kl(there, NORMAL), share**2, f"a normal reward, share {share}", 1e-8)

    policy, ref, _ = triple(THREE)
    before, beta = exact.seq_logp(ref, THREE).detach(), 50.0
    spread = exact.variance(THREE.reward, before, THREE)
    found = []
    for steps in (60, 7, 1):  # each step goes a tenth of the way that is left
        run = exact.ascend(
            ref, partial(objective, ref=ref, beta=beta), THREE, steps=steps, step_size=0.1 / beta
        )
        ratio = 2 * beta**2 * exact.kl(run, ref, THREE).detach() / spread
        agree(ratio, (1 - 0.9**steps) ** 2, f"completions after {steps} steps", 0.03)
        found.append(ratio.item())
    ensure(found[2] < 0.02 < 0.9 < found[0], f"the ratios are {found}")
    whole, tenth, flat = (
        exact.gradient(partial(objective, ref=ref, beta=b, scale=scale), policy)
        for b, scale in ((0.5, 1.0), (0.05, 0.1), (0.5, 0.1))
    )
    agree(tenth, 0.1 * whole, "the gradients of two scales")
    differ(flat, 0.1 * whole, "the gradient of the flat reward alone", 0.01)
    return (
        f"Normal reward: 1, .25, .01 at shares 1, .5, .1. {THREE.size} completions at β = 50: "
        f"{listed(found)} after 60, 7 and 1 steps of a tenth."
    )


@claim(
    "KL-803",
    section="8.1",
    says="A group of equal rewards has no advantage, and the KL gradient that it keeps belongs to the "
    "objective: with 0/1 rewards and such groups left out, a KL in the loss has its term of a right "
    "completion weighted by $1 - p^{G-1}$ and of a wrong one by $1 - (1-p)^{G-1}$, with $p$ the success "
    "rate and $G$ the group, so its mean gradient is not that of the KL and lets go of the right answers "
    "as $p$ nears 1.",
    verdict="folklore is wrong",
    folklore="Where all rewards of a group are equal its KL gradient is spurious and ought to be masked.",
    kind="exact",
)
def groups_of_equal_rewards() -> str:
    """All groups of four draws of four arms, with and without the mask; then where two arms come to rest."""
    size, task = 4, bandit((1.0, 1.0, 0.0, 0.0))
    start, ref = logp(0.45, 0.15, 0.3, 0.1), logp(0.1, 0.3, 0.2, 0.4)
    policy = TabularPolicy(task, start[None, None])
    given = (ref[:, None], task.reward[0])

    def mean_gradient(masked: bool, advantage: bool = False) -> Tensor:
        def loss(logp: Tensor, mask: Tensor, ref_logp: Tensor, scores: Tensor) -> Tensor:
            keep = 0.0 if masked and bool((scores == scores[0]).all()) else 1.0
            group = torch.zeros(len(scores), dtype=torch.long)
            gain = (dr_grpo_advantages(scores, group)[:, None] * logp).mean()
            penalty = keep * (logp - ref_logp).square().mean() / 2
            return -gain if advantage else penalty

        return exact.expected_group_gradient(loss, policy, task, size, given=given).mean

    right = start[:2].exp().sum().item()
    weight = torch.tensor([1 - right**3] * 2 + [1 - (1 - right) ** 3] * 2, dtype=torch.float64)

    def weighted(each: Tensor) -> Tensor:
        probs = start.exp()
        pull = each * (start - ref)
        return probs * (pull - probs @ pull)

    agree(mean_gradient(False), weighted(torch.ones_like(weight)), "the KL gradient of all groups")
    agree(mean_gradient(True), weighted(weight), "the KL gradient of the groups with unequal rewards")
    differ(mean_gradient(True), mean_gradient(False), "the two", 0.02)
    gain = -(1 - 1 / size) * start.exp() * (task.reward[0] - right)
    for masked in (True, False):
        agree(mean_gradient(masked, True), gain, "the reward gradient, which the mask leaves alone")
    zero = dr_grpo_advantages(torch.full((4,), 0.5), torch.zeros(4, dtype=torch.long))
    agree(zero, torch.zeros(4), "the advantages of equal rewards")

    rests = [_rest(0.5, 0.25, 8, masked) for masked in (False, True)]
    agree(torch.tensor(rests[0]).double().logit(), (1 - 1 / 8) / 0.25, "the rest without the mask", 1e-6)
    ensure(1 - rests[1] < 0.6 * (1 - rests[0]), f"with the mask it rests at {rests[1]}, else {rests[0]}")
    return (
        f"p = {num(right, 2)}, G = 4: weights {num(weight[0], 3)} and {num(weight[2], 3)}; G = 8, β = .25, "
        f"reference .5: rests at {num(rests[0], 4)}, without such groups at {num(rests[1], 4)}; weight of a "
        f"right answer at p = .99: {num(1 - 0.99**7, 2)}."
    )


def _rest(ref: float, beta: float, group: int, masked: bool) -> float:
    """Return the success rate at rest of one right arm and one wrong, with k2 in the loss."""

    def push(logit: float) -> float:
        p: Float[Tensor, ""] = torch.tensor(logit, dtype=torch.float64).sigmoid()
        right, wrong = (p / ref).log(), torch.log((1 - p) / (1 - ref))
        if masked:
            right, wrong = (1 - p ** (group - 1)) * right, (1 - (1 - p) ** (group - 1)) * wrong
        return (1 - 1 / group - beta * (right - wrong)).item()

    return torch.tensor(brentq(push, 0, 30)).double().sigmoid().item()
