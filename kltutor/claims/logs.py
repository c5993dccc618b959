"""Claims of section 8.6 on what the columns of a log prove: a mean that must be one, a ratio of units."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import THREE, TWO, listed, rows, triple
from kltutor.claims.witnesses import POLICY, REF, agree, differ, ensure, num
from kltutor.divergences import kl
from kltutor.estimators import k1, k3
from kltutor.masking import reduce
from kltutor.tasks import TabularPolicy


@claim(
    "KL-813",
    section="8.6",
    says=r"Over completions that the scored policy drew itself, $\sum_t (e^{-u_t} - 1) = \sum_t (k_3 - "
    "k_1)$ has the mean 0, $u$ being the log-ratio; where the mean of k1 is below zero this one is at "
    r"least as far above it, and another names the cause: $\sum_t (e^{u_t} - 1)$ has the mean 0 if the "
    "sign of $u$ is turned, while another sampler in general leaves neither at 0.",
    verdict="holds if",
    condition="the policy covers the reference; to pass the first test is no proof, since other samplers "
    "can, and near the reference all of them nearly do.",
    kind="exact",
    source_rows=("m:C01",),
)
def what_a_negative_kl_comes_from() -> str:
    """Both means over all completions: as it should be, turned round, and under four other samplers."""
    policy, ref, old = triple(TWO)
    logps, ref_logps = rows(policy, TWO), rows(ref, TWO)

    def means(drawn: Tensor, turned: bool = False) -> list[float]:
        u = k1(ref_logps, logps) if turned else k1(logps, ref_logps)
        each = u, torch.expm1(-u), torch.expm1(u)
        return [float(drawn.exp() @ value.sum(-1)) for value in each]

    own = logps.sum(-1)
    agree(k3(logps, ref_logps) - k1(logps, ref_logps), torch.expm1(ref_logps - logps), "k3 - k1")
    right, turned = means(own), means(own, turned=True)
    agree(right[0], exact.kl(policy, ref, TWO).detach(), "the mean of k1")
    agree(right[1], 0, "the first mean as it should be", 1e-12)
    differ(right[2], 0, "the second mean as it should be", 0.1)
    agree(turned[0], -right[0], "the mean of k1, turned")
    agree(turned[2], 0, "the second mean, turned", 1e-12)
    ensure(turned[1] >= -turned[0], f"turned, the first mean is {turned[1]}")

    cold, hot = (TabularPolicy(TWO, policy.logits.detach() / temperature) for temperature in (0.6, 1.5))
    top = policy.logits.detach().clone()
    top[top == top.amin(-1, keepdim=True)] = -torch.inf
    samplers = {"T = .6": cold, "T = 1.5": hot, "top-2": TabularPolicy(TWO, top), "stale": old}
    found = {name: means(exact.seq_logp(q, TWO).detach()[0]) for name, q in samplers.items()}
    for name, (k1_mean, first, second) in found.items():
        ensure(min(abs(first), abs(second)) > 0.03, f"{name}: the means are {first} and {second}")
        ensure(first >= -k1_mean, f"{name}: k1 {k1_mean}, first mean {first}")
    # A reference more peaked than the policy makes k1 negative under a cold sampler.
    peaked = (1.5 * POLICY).log_softmax(-1)
    q = (3 * POLICY).log_softmax(-1)
    low, first = (float(q.exp() @ value) for value in (k1(POLICY, peaked), torch.expm1(peaked - POLICY)))
    ensure(low < -0.01 and first >= math.expm1(-low), f"k1 {low}, first mean {first}")

    # One linear condition cannot fix a sampler: this one is not the policy and passes.
    weight = torch.expm1(REF - POLICY)
    swap = torch.linalg.cross(torch.ones_like(weight), weight)
    blind = POLICY.exp() + 0.05 * swap / swap.abs().max()
    agree(blind @ weight, 0, "the first mean of the sampler that passes", 1e-12)
    differ(kl(blind.log(), POLICY), 0, "how far it is from the policy", 0.003)
    return (
        f"k1, first and second mean: own samples {listed(_zero(right))}; turned {listed(_zero(turned))}; "
        + "; ".join(f"{name} {listed(numbers)}" for name, numbers in found.items())
        + "."
    )


def _zero(numbers: list[float]) -> list[float]:
    """Return the numbers with what rounding left of zero put to zero."""
    return [number if abs(number) > 1e-12 else 0.0 for number in numbers]


@claim(
    "KL-814",
    section="8.6",
    says=r"On one batch $-\mathrm{penalty}/(\beta\, \mathrm{kl})$ is 1 with no noise at all, whoever drew "
    r"it; 2 says that the KL is charged twice, $1/\ln 2 = 1.443$ that it is in bits, one over the mean "
    "length that it is a mean over all tokens; a mean over the tokens of each completion gives one over "
    "the length only where all lengths are equal, and else a number of either sign.",
    verdict="folklore is wrong",
    folklore="A KL averaged over the tokens of each completion is the KL divided by the mean length.",
    kind="exact",
    source_rows=("m:I25",),
)
def what_the_penalty_is_charged_in() -> str:
    """Batches of eight completions of three steps, each charge computed the way a bug would."""
    policy, ref, old = triple(THREE)
    logps, ref_logps, beta = rows(policy, THREE), rows(ref, THREE), 0.3
    seed, lengths = torch.Generator().manual_seed(0), THREE.mask.sum(-1)

    charges: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "right": lambda u, mask: reduce(u, mask, "sequence_sum"),
        "twice": lambda u, mask: 2 * reduce(u, mask, "sequence_sum"),
        "bits": lambda u, mask: reduce(u / math.log(2), mask, "sequence_sum"),
        "tokens": lambda u, mask: reduce(u, mask, "token_mean"),
        "completions": lambda u, mask: reduce(u, mask, "sequence_mean"),
    }

    def ratio(name: str, batch: Tensor) -> float:
        u, mask = (logps - ref_logps)[batch], THREE.mask[batch]
        return float(beta * charges[name](u, mask) / (beta * u.sum(-1).mean()))

    odd = []
    for sampler in (policy, old):
        chances = rows(sampler, THREE).sum(-1).exp()
        for _ in range(30):
            batch = torch.multinomial(chances, 8, replacement=True, generator=seed)
            mean = lengths[batch].double().mean().item()
            for name, factor in (("right", 1), ("twice", 2), ("bits", 1.442695), ("tokens", 1 / mean)):
                agree(ratio(name, batch), factor, f"the ratio, {name}", 1e-5)
            odd.append(ratio("completions", batch) * mean)
    same = torch.tensor([i for i, length in enumerate(lengths.tolist()) if length == 3][:4])
    agree(ratio("completions", same), 1 / 3, "the ratio of completions of one length")
    ensure(max(odd) - min(odd) > 0.5, f"times the mean length it is {min(odd)} to {max(odd)}")

    # A short completion below the reference and a long one above it.
    u = torch.tensor([[-0.4, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    whole = reduce(u, mask, "sequence_sum")
    agree(whole, 0.2, "the KL of two completions")
    agree(reduce(u, mask, "sequence_mean") / whole, -0.5, "the ratio of two completions")
    agree(reduce(u, mask, "token_mean") / whole, 1 / 2.5, "that of a mean over tokens")
    middle = sorted(odd)[len(odd) // 2]
    return (
        f"60 batches: 1, 2, 1.4427 and 1/mean length exactly; the mean of each completion times the mean "
        f"length {num(min(odd), 3)} to {num(max(odd), 3)}, median {num(middle, 3)}; -0.5 for two completions "
        "of 1 and 4 tokens."
    )
