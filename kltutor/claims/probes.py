"""Claims of section 8.7 on what a check of a function can see: gradients, distances, shapes, clamps."""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kltutor.claims import claim
from kltutor.claims.lab import (
    TWO,
    divergence_gradient,
    listed,
    loss_gradient,
    mean_gradient,
    rows,
    triple,
)
from kltutor.claims.witnesses import POLICY, REF, agree, differ, ensure, gradient, logp, num
from kltutor.divergences import kl
from kltutor.estimators import k1, k2, k3
from kltutor.masking import reduce
from kltutor.tasks import Policy, bandit


def _with(ref: Policy, policy: nn.Module) -> tuple[Policy, Policy]:
    return policy, ref


@claim(
    "KL-815",
    section="8.7",
    says="The values of a function and its gradient do not fix each other: where the policy covers the "
    r"reference every $k_1 + \lambda (w - 1)$, $w = \pi_{\mathrm{ref}}/\pi$, is unbiased and has as a loss "
    r"the mean gradient $\lambda \nabla\, \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi)$; and whatever has the "
    r"slope $\delta = \log(\pi/\pi_{\mathrm{ref}})$ in $\log \pi$ has, at any value, that of "
    r"$\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$, which is $\mathrm{E}[\delta\, \nabla \log \pi]$, as its "
    r"other part $\mathrm{E}[\nabla \log \pi]$ is 0.",
    verdict="holds",
    kind="exact",
    source_rows=("m:H15",),
)
def values_and_gradients_are_two() -> str:
    """One action and whole completions: means and mean gradients of five functions."""
    truth, other = kl(POLICY, REF), kl(REF, POLICY)
    logits = POLICY.clone().requires_grad_()
    live = logits.log_softmax(-1)
    forward = gradient(kl(REF, live), logits)
    backward = gradient(kl(live, REF), logits)
    for slope in (-1.0, 0.0, 1.0, 3.0):
        value = k1(live, REF) + slope * torch.expm1(REF - live)
        agree(POLICY.exp() @ value, truth, f"the mean at lambda {slope}")
        agree(gradient(POLICY.exp() @ value, logits), slope * forward, f"the gradient at lambda {slope}")
    differ(forward, torch.zeros(3), "that gradient", 0.1)
    frozen = k1(POLICY, REF) * live
    agree(gradient(POLICY.exp() @ frozen, logits), backward, "the gradient with the log-ratio held fixed")
    agree(gradient(POLICY.exp() @ k2(live, REF), logits), backward, "the gradient of k2")
    agree(gradient(POLICY.exp() @ live, logits), torch.zeros(3), "E[score]")
    values = [(POLICY.exp() @ v).item() for v in (k2(live, REF), frozen)]
    differ(values[0], truth, "k2 and the KL", 0.05)
    ensure(values[1] < 0.5 * truth, f"the fixed log-ratio has the mean {values[1]}")
    differ(truth, other, "the two directions", 0.05)

    policy, ref, _ = triple(TWO)
    ref_logp = rows(ref, TWO)
    whole = divergence_gradient(lambda p: (p, ref), policy)

    def score(logp: Tensor, mask: Tensor, ref_logp: Tensor) -> Tensor:
        return (logp.detach() - ref_logp).sum(-1) * logp.sum(-1)

    agree(mean_gradient(score, policy, ref_logp), whole, "E[score·δ] of completions")
    zero = mean_gradient(lambda logp, mask: logp.sum(-1), policy)
    agree(zero, torch.zeros_like(whole), "E[score] of completions")
    agree(loss_gradient(policy, ref, "k2", level="sequence"), whole, "k2 of completions")
    differ(whole, zero, "the gradient of the KL", 0.05)
    return (
        f"KL {num(truth, 4)}: four values of λ have this mean and 0, 1, 3, -1 times a gradient of norm "
        f"{num(forward.norm(), 3)}; k2 and fixed δ·log π have the KL's, and means {listed(values, 4)}."
    )


@claim(
    "KL-816",
    section="8.7",
    says=r"A check at one pair can be blind: at $\pi = \pi_{\mathrm{ref}}$ every estimate is 0; where "
    r"$\pi_{\mathrm{ref}}$ is $\pi$ with outcomes swapped in pairs, both directions are one number; and at "
    r"$d$ nats $\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$ exceeds the other direction, and the mean of k2 "
    r"exceeds it, by the share $\gamma \sqrt{2d}/3$ to leading order, with $\gamma$ the skewness of the "
    "log-ratio, so near pairs cannot tell the three apart.",
    verdict="holds",
    kind="exact",
)
def one_pair_can_be_blind() -> str:
    """Three kinds of blind pairs, then a skew one at four distances and a symmetric one."""
    for estimator in (k1, k2, k3):
        agree(estimator(POLICY, POLICY), torch.zeros(3), f"{estimator.__name__} at the reference")
    skew, level = logp(0.7, 0.2, 0.1), torch.full((3,), -math.log(3), dtype=torch.float64)
    for swapped in (skew[[2, 1, 0]], skew[[1, 0, 2]]):
        agree(kl(skew, swapped), kl(swapped, skew), "the directions of a swapped pair")
        differ(kl(skew, swapped), 0, "how far that pair is apart", 0.05)
    cycled = skew[[1, 2, 0]]
    differ(kl(skew, cycled), kl(cycled, skew), "the directions of three outcomes moved in a ring", 0.02)
    differ(kl(skew, level), kl(level, skew), "the directions of another pair", 0.02)

    tilt = torch.tensor([1.0, -0.2, -0.8], dtype=torch.float64)
    base = logp(0.2, 0.5, 0.3)
    central = tilt - base.exp() @ tilt
    variance, third = (base.exp() @ central**n for n in (2, 3))
    gamma, shares = third / variance**1.5, []
    differ(gamma, 0, "the skewness", 0.3)
    for distance in (1e-6, 1e-4, 1e-2, 0.3):
        low, high = 0.0, 20.0
        for _ in range(80):
            middle = (low + high) / 2
            near = kl((base + middle * tilt).log_softmax(-1), base) < distance
            low, high = (middle, high) if near else (low, middle)
        policy = (base + low * tilt).log_softmax(-1)
        by_direction = (kl(policy, base) - kl(base, policy)) / distance
        by_k2 = (policy.exp() @ k2(policy, base) - kl(policy, base)) / distance
        rule = gamma * math.sqrt(2 * distance) / 3
        if distance <= 1e-4:
            agree(by_direction / rule, 1, f"the share of the directions at {distance}", 0.05)
            agree(by_k2 / rule, 1, f"the share of k2 at {distance}", 0.05)
        shares.append(by_direction.abs().item())
    ensure(shares[1] < 0.01 and shares[3] > 0.05, f"the shares are {shares}")
    far = abs(kl(POLICY, REF) - kl(REF, POLICY)) / kl(POLICY, REF)
    return (
        f"Skewness {num(gamma, 3)}: the directions differ by {listed([100 * s for s in shares], 2)} % at "
        f"1e-6, 1e-4, .01 and .3 nats, by {num(100 * far, 3)} % for an unlike pair, by 0 for a swapped one."
    )


@claim(
    "KL-817",
    section="8.7",
    says="Rows of one token cannot tell a sum over tokens from a mean, nor the gradient of k2 of each "
    "token from that of the completion; rows of one length cannot tell the mean over all tokens from that "
    "of each row; padding that holds zeros hides a sum without a mask: a check needs several tokens, "
    "unequal lengths and padding filled with other numbers.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I25",),
)
def shapes_that_hide_a_mistake() -> str:
    """The three reductions and a sum without a mask on four batches; gradients at one and two tokens."""
    seed = torch.Generator().manual_seed(0)

    def apart(lengths: list[int], time: int, fill: float | None) -> dict[str, float]:
        mask = torch.arange(time) < torch.tensor(lengths)[:, None]
        values = torch.randn(len(lengths), time, generator=seed, dtype=torch.float64)
        padded = values if fill is None else values.masked_fill(~mask, fill)
        total = reduce(padded, mask, "sequence_sum")
        tokens, each = reduce(padded, mask, "token_mean"), reduce(padded, mask, "sequence_mean")
        return {
            "sum and mean": float((total - tokens).abs()),
            "the means": float((tokens - each).abs()),
            "the mask": float((total - padded.sum(-1).mean()).abs()),
        }

    blind = {
        "one token": (apart([1] * 4, 1, None), ("sum and mean", "the means", "the mask")),
        "one length": (apart([3] * 4, 3, None), ("the means", "the mask")),
        "zeros": (apart([1, 4, 2, 3], 4, 0.0), ("the mask",)),
        "other": (apart([1, 4, 2, 3], 4, None), ()),
    }
    for name, (found, hidden) in blind.items():
        for mistake, gap in found.items():
            ensure((gap < 1e-12) == (mistake in hidden), f"{name}: {mistake} makes {gap}")

    gaps = []
    for task in (bandit((0.0, 0.0, 0.0)), TWO):
        policy, ref, _ = triple(task)
        token, whole = (loss_gradient(policy, ref, "k2", level=level) for level in ("token", "sequence"))
        truth = divergence_gradient(partial(_with, ref), policy)
        agree(whole, truth, f"k2 of completions on {task.name}")
        gaps.append((token - truth).abs().max().item())
    agree(gaps[0], 0, "k2 of each token, one token")
    ensure(gaps[1] > 0.02, f"k2 of each token, two tokens: {gaps[1]}")
    other = blind["other"][0]
    return (
        f"Unequal lengths, padding filled: sum and mean {num(other['sum and mean'], 3)} apart, the two means "
        f"{num(other['the means'], 3)}, no mask {num(other['the mask'], 3)}; k2 of each token off by 0 at "
        f"one token and up to {num(gaps[1], 2)} at two."
    )


@claim(
    "KL-818",
    section="8.7",
    says=r"Samples of the policy have $\log(\pi_{\mathrm{ref}}/\pi) > c$ with probability below $e^{-c}$, "
    "so $n$ of them meet a clamp there with probability below $n e^{-c}$, though it can take almost 1 nat "
    "off the mean of k3; within its range it changes no value and no gradient; the other sign has no such "
    "bound: a check must place its log-ratios itself.",
    verdict="folklore is wrong",
    folklore="A function that gives the right mean and gradient on many samples of the policy has no "
    "clamp that matters.",
    kind="exact",
    source_rows=("f:I24", "m:W10"),
)
def clamps_that_samples_do_not_meet() -> str:
    """A tight case and random ones for the bound; what a clamp at 10 takes off k3; values inside it."""
    cut, seed = 10.0, torch.Generator().manual_seed(0)
    rare = math.exp(-cut - 0.01)
    policy, ref = logp(1 - 0.999 * rare, 0.999 * rare), logp(1e-3, 1 - 1e-3)
    met = float(policy.exp()[(ref - policy) > cut].sum())
    ensure(0.95 * math.exp(-cut) < met < math.exp(-cut), f"the clamp is met with probability {met}")
    for _ in range(200):
        some, other = (4 * torch.randn(20, generator=seed, dtype=torch.float64) for _ in range(2))
        p, q = some.log_softmax(-1), other.log_softmax(-1)
        for c in (1.0, 3.0, cut):
            ensure(float(p.exp()[(q - p) > c].sum()) < math.exp(-c), f"more than exp(-{c})")

    def clamped(logp: Float[Tensor, "..."], ref_logp: Float[Tensor, "..."]) -> Tensor:
        delta = (ref_logp - logp).clamp(-cut, cut)
        return torch.expm1(delta) - delta

    far = logp(1 - 1e-9, 1e-9)
    gone = kl(far, ref) - far.exp() @ clamped(far, ref)
    agree(far.exp() @ k3(far, ref), kl(far, ref), "the mean of k3", 1e-9)
    ensure(0.99 < gone < 1, f"the clamp takes {gone}")
    seen = 1 - (1 - 1e-9) ** 10_000
    ensure(seen < 1.01e-5, f"10000 draws meet it with probability {seen}")

    near = torch.linspace(-9.9, 9.9, 199, dtype=torch.float64)
    found = []
    for function in (k3, clamped):
        live = (-near - 20).requires_grad_()
        value = function(live, torch.full_like(near, -20.0))
        found.append((value.detach(), torch.autograd.grad(value.sum(), live)[0]))
    agree(found[1][0], found[0][0], "values within the clamp", 0.0)
    agree(found[1][1], found[0][1], "gradients within the clamp", 0.0)
    away = logp(1 - 1e-6, 1e-6), logp(1e-6, 1 - 1e-6)
    ensure(float(away[0].exp()[(away[0] - away[1]) > cut].sum()) > 0.99, "the other sign is rare too")
    return (
        f"c = 10: met with probability {num(met, 3)}, bound {num(math.exp(-cut), 3)}; at c = 20 the bound is "
        f"{num(math.exp(-20), 2)}. A clamp that 10000 draws meet once in 100000 batches takes {num(gone, 4)} "
        f"nats off the mean of k3; the other sign is met with probability "
        f"{num(away[0].exp()[0], 6)} here."
    )
