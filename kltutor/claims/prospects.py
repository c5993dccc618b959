"""Claims of section 5.4 on KTO and IPO: a reference point that is no KL, and where both come to rest."""

import dataclasses
import itertools
from functools import partial

import torch
from torch import Tensor

from kltutor import exact, tasks
from kltutor.claims import claim
from kltutor.claims.comparisons import ARMS, ARMS_REF, PHRASES, REF, apart, no_minimum, over, writer
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import agree, differ, ensure, logp, num, proof
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy
from kltutor.pairs import Pairs, all_pairs
from kltutor.preference import bradley_terry, ipo_loss, kto_loss, kto_reference_point


@claim(
    "KL-518",
    section="5.4",
    says=r"KTO's $z_0$ is no estimate of $\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$: it is a mean log-ratio "
    r"in nats over completions that the policy did not draw, clamped at 0 and held fixed, and $\beta$ "
    "multiplies its difference from the log-ratio.",
    verdict="folklore is wrong",
    folklore=r"KTO compares each implicit reward with $\beta$ times the KL of the policy.",
    kind="exact",
    sources=("ethayarajh2024kto",),
    source_rows=("m:I32", "f:I12"),
)
def kto_reference_point_is_no_kl() -> str:
    """Every batch of two mismatched completions of the reference, at an optimum; the loss at its own z0."""
    task = dataclasses.replace(tasks.small(), horizon=2)  # two prompts, 13 completions each
    ref = writer(4, task)
    best, _ = optimal_policy(ref, task.reward, 0.5)
    ratio, drawn = best - ref, ref.exp()
    plain = clamped = 0.0
    for y, other in itertools.product(range(task.size), repeat=2):
        batch = best[[0, 1], [y, other]], ref[[0, 1], [y, other]]  # y answers prompt 1, other prompt 0
        z0 = kto_reference_point(*batch)
        mean = (ratio[0, y] + ratio[1, other]).item() / 2
        agree(z0, max(mean, 0.0), "z0 of a batch")
        weight = (drawn[1, y] * drawn[0, other]).item()
        plain, clamped = plain + weight * mean, clamped + weight * z0.item()
    true = kl(best, ref).mean().item()
    swapped = drawn.flip(0)
    agree(plain, (swapped * ratio).sum(-1).mean(), "mean of the unclamped estimate")
    agree((best.exp() * ratio).sum(-1).mean(), true, "mean log-ratio over matched samples of the policy")
    ensure(plain < 0 < clamped, f"unclamped {plain}, clamped {clamped}")
    differ(clamped, true, "mean of z0 and the KL", 0.3)

    live = torch.tensor([-3.0, -4.0], dtype=torch.float64, requires_grad=True)
    z0 = kto_reference_point(live, live.detach() - 1.5)
    ensure(z0.item() == 1.5 and not z0.requires_grad, f"z0 is {z0}")
    wanted = torch.tensor([True, False])
    for beta, shift in itertools.product((0.1, 2.0), (0.0, 1.2, -0.7)):
        here = live.detach() - 1.5 + z0 + shift
        found = kto_loss(here, live.detach() - 1.5, wanted, z0, beta, undesirable_weight=3.0)
        expected = torch.tensor([-shift, shift], dtype=torch.float64)
        expected = (beta * expected).sigmoid() * torch.tensor([1.0, 3.0]).double()
        agree(found, expected, f"the loss {shift} nats from z0 at beta {beta}")
        inside = torch.sigmoid(z0 - beta * (z0 + shift))
        differ(found[0], inside, "the loss and the one with z0 outside beta", 0.02)
    return (
        f"Batches of two: z0 {num(clamped, 3)} on average, the mean log-ratio without the clamp "
        f"{num(plain, 3)}, KL(π‖ref) {num(true, 3)} nats."
    )


@claim(
    "KL-519",
    section="5.4",
    says=r"At a given $z_0$ KTO's mean loss of a completion is linear in $\sigma(\beta(\log(\pi/"
    r"\pi_{\mathrm{ref}}) - z_0))$, so the majority of its labels decides: what is mostly undesirable goes "
    "to probability 0 at no finite log-ratio, and there is no minimum among policies that keep it.",
    verdict="holds",
    kind="exact",
    sources=("ethayarajh2024kto",),
    source_rows=("f:I12",),
)
def kto_follows_the_majority() -> str:
    """Slopes at shares of desirable labels around one half, and around three quarters; two searches."""
    beta, z0 = 0.5, torch.tensor(0.3, dtype=torch.float64)
    ratios = torch.tensor([-30.0, -2.0, 0.3, 1.0, 30.0], dtype=torch.float64)
    level = torch.full_like(ratios, -40.0)
    rises = torch.sigmoid(beta * (ratios - z0))
    good, bad = (
        kto_loss(level + ratios, level, torch.full((5,), wanted), z0, beta, undesirable_weight=3.0)
        for wanted in (True, False)
    )
    slopes = []
    for share in (0.01, 0.74, 0.76, 0.99):
        mean = share * good + (1 - share) * bad
        agree(mean, share + (3 * (1 - share) - share) * rises, f"mean loss at a share of {share}")
        slopes.append((mean[-1] - mean[0]).item())
    ensure(slopes[0] > slopes[1] > 0 > slopes[2] > slopes[3], f"the losses change by {slopes}")

    best, _ = optimal_policy(ARMS_REF, ARMS.reward, beta)
    ends = []
    for threshold in (0.7, -0.5):
        shares = torch.sigmoid(ARMS.reward - threshold)[0]  # desirable: better than the threshold, with noise
        loss = partial(_kto_mean, share=shares, beta=beta, z0=z0)
        if threshold > 0:
            no_minimum(loss, ARMS_REF)
            lowered = torch.where(shares > 0.5, 0.0, -1000.0)
            tilts = [(best + k * lowered).log_softmax(-1) for k in (0.0, 0.01, 0.1)]
            values = torch.stack([loss(tilt) for tilt in tilts])
            ensure((values.diff() < 0).all(), f"losses as the minority's mass goes: {values.tolist()}")
        else:
            ends.append(exact.minimise(loss, ARMS_REF))
    missed = apart(ends[0], best, ARMS)
    ensure(missed > 0.1, f"with a majority for every action KTO is {missed} nats from the optimum")
    return (
        f"Undesirable weight 3: the loss turns at a share of 3/4 (changes {listed(slopes, 2)} at .01, .74, "
        f".76, .99). All shares above 1/2: a minimum, {num(missed, 3)} nats from the optimum."
    )


@claim(
    "KL-520",
    section="5.4",
    says=r"IPO brings the log-ratio margin of a pair to $(p - \frac{1}{2})/\tau$, which is $1/(2\tau)$ at "
    "certain labels: finite, and measured from the reference.",
    verdict="folklore is wrong",
    folklore="IPO does without the KL, like SimPO.",
    kind="symbolic",
    sources=("azar2024ipo",),
    source_rows=("m:C15", "f:I13", "f:W20"),
)
def margin_of_ipo() -> str:
    """The derivation, and the minimum for one pair at three preferences and two references."""
    proven, tau = proof("ipo_optimum", squared=False), 0.25
    task, margins = tasks.bandit((0.0, 1.0)), []
    for p in (0.6, 0.9, 1.0):

        def preference(reward: Tensor, other: Tensor, p: float = p) -> Tensor:
            return torch.where(reward > other, p, torch.where(reward < other, 1 - p, 0.5)).double()

        for ref in (logp(0.7, 0.3)[None], logp(0.2, 0.8)[None]):
            pairs, weights = all_pairs(task, ref, preference=preference)
            rest = exact.minimise(over(partial(ipo_loss, beta=tau), pairs, weights, ref), ref)
            margin = (rest - ref)[0, 1] - (rest - ref)[0, 0]
            agree(margin, (p - 0.5) / tau, f"margin at p = {p}", 1e-7)
        margins.append(margin)
    agree(margins[-1], 1 / (2 * tau), "margin at certain labels", 1e-7)
    return f"{proven}; τ = .25, p = .6, .9, 1: margins {listed(margins)} nats from either reference."


@claim(
    "KL-521",
    section="5.4",
    says=r"Over all pairs of independent draws from $\mu$ IPO rests at $\pi_{\mathrm{ref}}(y)\, "
    r"\exp(\mathrm{E}_{y' \sim \mu}[p(y \succ y')]/\tau)/Z$; that depends on who wrote the pairs, moves no "
    r"log-ratio by more than $1/\tau$ against another, and under Bradley-Terry is the optimum of its reward "
    r"at no $\beta$.",
    verdict="holds",
    kind="exact",
    sources=("azar2024ipo",),
    source_rows=("f:I13",),
)
def where_ipo_rests() -> str:
    """The minimum for two writers against the formula, without some pairs, and against the optima."""
    tau, ends = 0.1, []
    reward = PHRASES.reward
    wins = bradley_terry(*torch.broadcast_tensors(reward[:, :, None], reward[:, None]))
    for seed in (4, 5):
        drawn = writer(seed)
        pairs, weights = all_pairs(PHRASES, drawn)
        loss = over(partial(ipo_loss, beta=tau), pairs, weights, REF)
        rate = (wins * drawn.exp()[:, None]).sum(-1)
        formula, _ = optimal_policy(REF, rate, tau)
        ends.append(exact.minimise(loss, REF))
        agree(ends[-1].exp(), formula.exp(), "IPO's minimum", 1e-7)
    differ(ends[0].exp(), ends[1].exp(), "the minima of two writers", 0.003)
    kept = (pairs.chosen < 30) | (pairs.rejected < 30)
    fewer = over(partial(ipo_loss, beta=tau), Pairs(*(part[kept] for part in pairs)), weights[kept], REF)
    differ(exact.minimise(fewer, REF).exp(), formula.exp(), "the minimum without some pairs", 0.003)

    ratio = (ends[0] - REF)[0]
    span = (ratio.max() - ratio.min()).item()
    ensure(span < 1 / tau, f"the log-ratios span {span} nats")
    levels = reward[0].unique()
    heights = torch.stack([ratio[reward[0] == level].mean() for level in levels])
    betas = levels.diff() / heights.diff()  # the same at every step if it were the optimum of some beta
    ensure(betas.max() / betas.min() > 1.5, f"the betas are {betas.tolist()}")
    return (
        f"τ = .1: two writers' minima {num(apart(ends[0], ends[1]), 2)} nats apart; log-ratios span "
        f"{num(span, 3)} of 10 nats; reward per nat from {num(betas.min(), 2)} to {num(betas.max(), 2)}."
    )


def _kto_mean(logp: Tensor, share: Tensor, beta: float, z0: Tensor) -> Tensor:
    """Return KTO's mean loss over actions of the reference, desirable with the given shares."""
    good, bad = (
        kto_loss(logp[0], ARMS_REF[0], torch.full(share.shape, wanted), z0, beta) for wanted in (True, False)
    )
    return ARMS_REF[0].exp() @ (share * good + (1 - share) * bad)
