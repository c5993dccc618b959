"""Claims of section 5.1 on DPO's loss: its derivation, its gradient, what its rewards mean, and length."""

import itertools
import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kltutor import exact, tasks
from kltutor.claims import claim
from kltutor.claims.comparisons import PHRASES, REF, over
from kltutor.claims.lab import THREE, listed, triple
from kltutor.claims.witnesses import agree, differ, ensure, logp, num, proof
from kltutor.divergences import kl
from kltutor.masking import masked_mean, masked_sum
from kltutor.optimum import optimal_policy
from kltutor.pairs import all_pairs
from kltutor.preference import bradley_terry, dpo_loss, preference_metrics
from kltutor.tasks import TabularPolicy

BETAS = {  # published coefficients of DPO on sums over tokens
    "SimPO's baselines": 0.01,
    "DPO": 0.1,
    "DPO on TL;DR": 0.5,
}


@claim(
    "KL-501",
    section="5.1",
    says=r"DPO's loss is $-\log$ of the Bradley-Terry probability of the label, with $\beta \log(\pi/"
    r"\pi_{\mathrm{ref}}) + \beta \log Z$ put for the reward; $\log Z$ cancels only because both completions "
    "answer one prompt.",
    verdict="holds",
    kind="symbolic",
    sources=("rafailov2023dpo",),
    source_rows=("m:H17", "f:C07"),
)
def loss_from_the_optimum() -> str:
    """The derivation; every pair of two prompts at the optimum; one completion to the two prompts."""
    proven, beta, reward = proof("dpo_from_the_optimum", same_prompt=False), 0.5, PHRASES.reward
    best, log_z = optimal_policy(REF, reward, beta)
    (x, chosen, rejected), _ = all_pairs(PHRASES, REF)
    loss = dpo_loss(best[x, chosen], best[x, rejected], REF[x, chosen], REF[x, rejected], beta)
    agree(loss, softplus(reward[x, rejected] - reward[x, chosen]), "the loss at the optimum")
    label = bradley_terry(reward[x, chosen], reward[x, rejected])
    agree(loss, -label.log(), "the loss and Bradley-Terry")
    other = dpo_loss(best[x, chosen], best[x, rejected], REF[x, chosen], REF[x, rejected], 2 * beta)
    differ(loss, other, "the loss with another beta than the optimum's", 0.1)
    across = dpo_loss(best[0], best[1], REF[0], REF[1], beta)
    gap = reward[0] - reward[1]
    left_over = beta * (log_z[0] - log_z[1])
    agree(across, softplus(left_over - gap), "the loss across prompts, log Z in it")
    differ(across, softplus(-gap), "the loss across prompts and Bradley-Terry", 0.1)
    return (
        f"{proven}; {len(loss)} pairs agree; across the two prompts {num(left_over, 3)} of β log Z is left."
    )


@claim(
    "KL-502",
    section="5.1",
    says=r"The gradient of DPO's loss is $-\beta\, \sigma(-h)\, (\nabla \log \pi(y_w) - \nabla \log "
    r"\pi(y_l))$ with $h$ equal to $\beta$ times the difference of log-ratios: $\beta$ scales the step and "
    r"also sets where it dies, half of it being gone at $\log 3/\beta$ nats.",
    verdict="holds",
    kind="exact",
    sources=("rafailov2023dpo",),
    source_rows=("m:H18",),
)
def gradient_of_dpo() -> str:
    """Automatic gradients through three tokens against scores, for three betas and every pair of some."""
    policy, ref, _ = triple(THREE)
    ref_logp = exact.seq_logp(ref, THREE)[0].detach()
    here = exact.seq_logp(policy, THREE)[0].detach()
    picked = (0, 4, 13)

    def score(index: int) -> Tensor:
        return exact.gradient(lambda p: _logps(p)[index], policy)

    def push(chosen: int, rejected: int, beta: float) -> Tensor:
        def loss(p: nn.Module) -> Tensor:
            live, w, left = _logps(p), [chosen], [rejected]
            return dpo_loss(live[w], live[left], ref_logp[w], ref_logp[left], beta).sum()

        return exact.gradient(loss, policy)

    scores = {index: score(index) for index in picked}
    for beta in (0.1, 1.0, 5.0):
        for w, left in itertools.permutations(picked, 2):
            gap, found = (here - ref_logp)[w] - (here - ref_logp)[left], push(w, left, beta)
            difference = scores[w] - scores[left]
            agree(found, -beta * torch.sigmoid(-beta * gap) * difference, f"gradient at beta {beta}")
            if beta == 0.1:
                differ(found, -torch.sigmoid(-beta * gap) * difference, "beta inside only", 0.05)
                differ(found, -beta * torch.sigmoid(-gap) * difference, "beta outside only", 0.002)
    pulls = []
    for beta in (0.1, 1.0, 5.0):
        at = [_slope(gap, beta) for gap in (0.0, math.log(3) / beta, 4.0)]
        agree(at[0], -beta / 2, f"pull at the reference, beta {beta}")
        agree(at[1], at[0] / 2, f"pull at log 3/beta, beta {beta}")
        pulls.append(-at[2])
    ensure(pulls[1] < pulls[0] and pulls[2] < pulls[1] / 1e5, f"pulls at 4 nats are {pulls}")
    return f"Pull at a difference of 4 nats, beta .1, 1, 5: {listed(pulls, 2)}; at 0 nats .05, .5, 2.5."


@claim(
    "KL-503",
    section="5.1",
    says=r"The mean implicit reward $\beta \log(\pi/\pi_{\mathrm{ref}})$ is $\beta\, \mathrm{KL}(\pi \Vert "
    r"\pi_{\mathrm{ref}})$ over the policy's own samples only: over the reference's it is $-\beta\, "
    r"\mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi)$, and over the chosen completions of the data it has either "
    "sign.",
    verdict="folklore is wrong",
    folklore="DPO's implicit reward is the KL, so the logged rewards show how far the policy has moved.",
    kind="exact",
    source_rows=("m:C10", "m:H23", "m:I29"),
)
def implicit_reward_is_no_kl() -> str:
    """Two hundred pairs that are a whole population, at the optima of a small and of a large beta."""
    task, ref = tasks.bandit((0.0, math.log(3), math.log(9))), logp(0.5, 0.25, 0.25)[None]
    pairs, weights = all_pairs(task, ref)
    copies = (320 * weights).round().long()  # Bradley-Terry gives 3/4 and 9/10 here
    agree(copies.double(), 320 * weights, "counts of pairs", 1e-9)
    x, chosen, rejected = (part.repeat_interleave(copies) for part in pairs)
    agree(len(x), 320 * (1 - 3 / 8), "pairs whose two draws differ")
    means = {}
    for beta in (0.1, 10.0):
        best, log_z = optimal_policy(ref, task.reward, beta)
        reward = beta * (best - ref)
        agree(reward, task.reward - beta * log_z[:, None], "the implicit reward")
        seen = best[x, chosen], best[x, rejected], ref[x, chosen], ref[x, rejected]
        logged = preference_metrics(*seen, beta)
        for name, index in (("chosen", chosen), ("rejected", rejected)):
            agree(logged[f"{name}_reward"], reward[x, index].mean(), f"{name} reward at beta {beta}")
        agree(logged["margin"], logged["chosen_reward"] - logged["rejected_reward"], "the margin")
        agree(logged["accuracy"], 0.81, "share of pairs in the right order")
        far = beta * kl(best, ref)
        agree((best.exp() * reward).sum(-1), far, "mean over the policy's samples")
        agree((ref.exp() * reward).sum(-1), -beta * kl(ref, best), "mean over the reference's samples")
        differ(logged["chosen_reward"], far, "the mean over chosen completions and the KL", 0.05)
        means[beta] = logged["chosen_reward"], logged["rejected_reward"], far.item()
    ensure(means[0.1][0] < 0 < means[10.0][0], f"chosen rewards are {means}")
    rows = (f"beta {beta:g}: {listed(mean)}" for beta, mean in means.items())
    return f"Chosen, rejected, β KL. {'; '.join(rows)}."


@claim(
    "KL-504",
    section="5.1",
    says="The implicit rewards of chosen and of rejected completions can both fall while DPO's loss falls "
    "and the margin grows, since the loss holds their difference only and the mass goes to other "
    "completions; one pair alone does it through shared parameters, never with a free logit for each "
    "completion.",
    verdict="folklore is wrong",
    folklore="Training on preferences makes the chosen completions more likely.",
    kind="exact",
    source_rows=("f:C07",),
)
def both_rewards_fall() -> str:
    """Exact descent on all pairs of a task; one pair with free logits, one with one shared parameter."""
    beta = 0.1
    pairs, weights = all_pairs(PHRASES, REF)
    x, chosen, rejected = pairs
    loss = over(partial(dpo_loss, beta=beta), pairs, weights, REF)
    policy = TabularPolicy.random(PHRASES, torch.Generator().manual_seed(4))
    rows = []
    for _ in range(5):
        here = exact.seq_logp(policy, PHRASES).detach()
        implicit = beta * (here - REF)
        up, down = (weights @ implicit[x, index] / weights.sum() for index in (chosen, rejected))
        rows.append((loss(here), up, down, up - down))
        moved = exact.ascend(
            policy,
            lambda p: -loss(exact.seq_logp(p, PHRASES)),
            PHRASES,
            steps=20,
            step_size=100.0,
            natural=False,
        )
        assert isinstance(moved, TabularPolicy)
        policy = moved
    losses, ups, downs, margins = (torch.stack(column) for column in zip(*rows, strict=True))
    for name, falling in (("loss", losses), ("chosen", ups), ("rejected", downs), ("margin", -margins)):
        ensure((falling.diff() < 0).all(), f"{name} goes {falling.tolist()}")

    policy = TabularPolicy.random(tasks.bandit((0.0, 1.0, 2.0)), torch.Generator().manual_seed(0))
    for w, left in ((0, 1), (1, 2), (2, 0)):
        logits = policy.logits[0, 0].detach().clone().requires_grad_()
        (step,) = torch.autograd.grad(-_one_pair(logits, w, left), logits)
        rise = step[w] - logits.detach().softmax(-1) @ step
        ensure(rise > 0, f"a free logit lets completion {w} change by {rise}")
    words = torch.arange(3.0).double()  # one parameter, on the number of words
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(_one_pair(theta * words, 1, 0), theta)
    (own,) = torch.autograd.grad((theta * words).log_softmax(-1)[1], theta)
    ensure(-slope > 0 and -slope * own < 0, f"the step is {-slope}, and log π of the chosen moves by {own}")
    agree(own, 1 - (theta.detach() * words).softmax(-1) @ words, "slope of log π of the chosen")
    return (
        f"Every 20 steps: chosen {listed(ups)}; rejected {listed(downs)}; margin {listed(margins)}. One pair "
        f"with one parameter: log π of the chosen moves by {num(own, 3)} of the step."
    )


@claim(
    "KL-508",
    section="5.1",
    says=r"A more negative $\log \pi(y_w)$ lowers DPO's margin and raises the loss; at the start the loss is "
    r"$\log 2$ at any length, and length enters later: a shift of every token's log-ratio by $\epsilon$ adds "
    r"$\beta \epsilon\, (L_w - L_l)$ to the margin.",
    verdict="folklore is wrong",
    folklore="A longer chosen completion has a more negative log-probability, hence a larger difference of "
    "log-ratios and a smaller loss.",
    kind="exact",
    source_rows=("m:W06", "f:W21"),
)
def length_and_the_margin() -> str:
    """Completions of 1 to 400 tokens: the loss at the start, and with every token shifted; its slopes."""
    beta, shift = 0.1, 0.02
    gains = []
    for long, short in ((1, 1), (40, 10), (400, 100), (10, 40)):
        seed = torch.Generator().manual_seed(long)
        old_w, old_l = (-torch.rand(1, n, generator=seed).double() - 1 for n in (long, short))
        all_w, all_l = (torch.ones(1, n, dtype=torch.bool) for n in (long, short))
        ref_w, ref_l = masked_sum(old_w, all_w), masked_sum(old_l, all_l)
        start = dpo_loss(ref_w, ref_l, ref_w, ref_l, beta)
        agree(start, math.log(2), f"the loss at the start, lengths {long} and {short}")
        agree(preference_metrics(ref_w, ref_l, ref_w, ref_l, beta)["accuracy"], 0.5, "accuracy at the start")
        new_w, new_l = masked_sum(old_w + shift, all_w), masked_sum(old_l + shift, all_l)
        margin = preference_metrics(new_w, new_l, ref_w, ref_l, beta)["margin"]
        agree(margin, beta * shift * (long - short), f"margin of lengths {long} and {short}", 1e-9)
        even = preference_metrics(
            masked_mean(old_w + shift, all_w),
            masked_mean(old_l + shift, all_l),
            masked_mean(old_w, all_w),
            masked_mean(old_l, all_l),
            beta,
        )
        agree(even["margin"], 0, "margin of means over tokens", 1e-9)
        new_w.requires_grad_(), new_l.requires_grad_()
        slopes = torch.autograd.grad(dpo_loss(new_w, new_l, ref_w, ref_l, beta).sum(), (new_w, new_l))
        pull = beta / (1 + math.exp(margin))
        agree(torch.cat(slopes), torch.tensor([-pull, pull]).double(), "slopes of the loss", 1e-7)
        gains.append(margin)
    return f"Shift of .02 nats a token at beta .1: margins {listed(gains)}; without a shift 0."


@claim(
    "KL-509",
    section="5.1",
    says=r"Published coefficients of DPO run from $0.01$ to $0.5$ on sums over tokens, and to 5 on means "
    "over tokens: these are two units, and 5 on means over $L$ tokens is $5/L$ on sums.",
    verdict="holds",
    kind="cited",
    sources=("lambert2024tulu3", "meng2024simpo", "rafailov2023dpo"),
    source_rows=("f:I14",),
)
def published_coefficients_of_dpo() -> str:
    """Means over 500 tokens with 5 are sums with .01; the nats at which half the pull is gone."""
    tokens, seed = 500, torch.Generator().manual_seed(0)
    w, left, ref_w, ref_l = -900 * torch.rand(4, 3, generator=seed, dtype=torch.float64)
    of_means = dpo_loss(w / tokens, left / tokens, ref_w / tokens, ref_l / tokens, beta=5.0)
    agree(of_means, dpo_loss(w, left, ref_w, ref_l, beta=5.0 / tokens), "5 on means and .01 on sums")
    differ(of_means, dpo_loss(w, left, ref_w, ref_l, beta=5.0), "5 on means and 5 on sums", 1)
    half = [math.log(3) / beta for beta in BETAS.values()]
    for beta, gap in zip(BETAS.values(), half, strict=True):
        agree(_slope(gap, beta), _slope(0.0, beta) / 2, f"half the pull at beta {beta}")
    named = ", ".join(f"{beta} {name}" for name, beta in BETAS.items())
    return (
        f"Read in appendix B of the paper, SimPO's README and open-instruct: {named}; 5 Tulu 3, on means, "
        f"which at 500 tokens is .01 on sums. Half the pull is gone at {listed(half, 2)} nats."
    )


def _logps(policy: nn.Module) -> Tensor:
    """Return the log-probabilities of every completion of up to three tokens."""
    assert isinstance(policy, TabularPolicy)
    return exact.seq_logp(policy, THREE)[0]


def _one_pair(logits: Tensor, chosen: int, rejected: int) -> Tensor:
    """Return DPO's loss of one pair of three completions, the reference being uniform."""
    here, level = logits.log_softmax(-1), logp(*3 * [1 / 3])
    return dpo_loss(here[[chosen]], here[[rejected]], level[[chosen]], level[[rejected]], beta=0.1).sum()


def _slope(gap: float, beta: float) -> float:
    """Return d loss/d log π(chosen) at a difference of log-ratios of the given nats."""
    chosen = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-1.0 - gap], dtype=torch.float64)
    level = torch.tensor([-1.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(dpo_loss(chosen, other, level, level, beta).sum(), chosen)
    return slope.item()
