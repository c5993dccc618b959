"""Claims of chapter 7 on the machinery of a run: references, masks, number formats, checkpoints."""

from typing import Any

import torch
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import TWO, divergence_gradient, listed, triple
from kltutor.claims.witnesses import agree, differ, ensure, num
from kltutor.estimators import k1, k2, k3
from kltutor.masking import masked_mean, masked_sum, token_logps
from kltutor.run import Run
from kltutor.train import Training, make_world, train


@claim(
    "KL-711",
    section="7.6",
    says=r"If the reference is the policy itself, k1, k2 and k3 and their gradients are 0 at every token, "
    r"and ascent is that of the reward alone: no penalty is left at any $\beta$.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I20",),
)
def a_reference_that_trains_along() -> str:
    """Values and gradients against itself, and the steps of two coefficients, beside a frozen reference."""
    policy, ref, _ = triple(TWO)
    logp = exact.token_logps(policy, TWO)[0]
    for estimator in (k1, k2, k3):
        value = estimator(logp, logp)
        agree(value.detach(), torch.zeros_like(value), f"{estimator.__name__} against itself")
        (slope,) = torch.autograd.grad(value.sum(), policy.logits, retain_graph=True)
        agree(slope, torch.zeros_like(slope), f"the gradient of {estimator.__name__}")
    shared = divergence_gradient(lambda p: (p, p), policy)
    agree(shared, torch.zeros_like(shared), "the gradient of the exact KL")
    frozen = divergence_gradient(lambda p: (p, ref), policy)
    differ(frozen, torch.zeros_like(frozen), "the gradient with a frozen reference", 0.05)

    def push(beta: float, own: bool) -> Tensor:
        def objective(p: Any) -> Tensor:
            gain = exact.expectation(TWO.reward, exact.seq_logp(p, TWO), TWO)
            return gain - beta * exact.kl(p, p if own else ref, TWO)

        return exact.gradient(objective, policy)

    agree(push(5.0, own=True), push(0.0, own=True), "the steps of beta 5 and 0, shared")
    differ(push(5.0, own=False), push(0.0, own=False), "the steps of beta 5 and 0, frozen", 0.1)
    return (
        "k1, k2, k3 and the exact KL: 0 with gradient 0; with a frozen reference "
        f"{num(exact.kl(policy, ref, TWO).detach(), 3)} nats, largest entry {num(frozen.abs().max(), 2)}."
    )


@claim(
    "KL-712",
    section="7.6",
    says="The first token of a row has no log-probability: shift the mask with the tokens, or put a 0 before "
    "the log-probabilities and keep the mask, and sums and means are the same; a mask that is true at that 0 "
    "leaves sums alone and dilutes the mean of $n$ tokens to $n/(n+1)$.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I31", "f:W23"),
)
def masks_and_the_shift() -> str:
    """Two rows of six tokens by both conventions, with the prompt masked, and with position 0 counted."""
    seed = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (2, 7), generator=seed)
    logits = torch.randn(2, 7, 5, generator=seed, dtype=torch.float64)
    by_hand = torch.tensor(
        [
            [logits[row, t - 1].softmax(-1)[tokens[row, t]].log().item() for t in range(1, 7)]
            for row in range(2)
        ],
        dtype=torch.float64,
    )
    shifted = token_logps(logits[:, :-1], tokens[:, 1:])
    agree(shifted, by_hand, "the log-probabilities of tokens 1 to 6")
    padded = torch.cat([torch.zeros(2, 1, dtype=torch.float64), shifted], 1)
    answer = torch.tensor([[False] * 3 + [True] * 4, [False] * 2 + [True] * 3 + [False] * 2])
    for reduction in (masked_sum, masked_mean):
        agree(reduction(shifted, answer[:, 1:]), reduction(padded, answer), reduction.__name__)
    agree(masked_sum(shifted, answer[:, 1:])[0], by_hand[0, 2:].sum(), "the sum by hand")
    differ(masked_sum(shifted, answer[:, :-1]), masked_sum(padded, answer), "a mask that is not shifted", 0.1)
    everything = torch.ones_like(answer)
    agree(masked_sum(padded, everything), by_hand.sum(-1), "the sum with position 0 counted")
    ratio = masked_mean(padded, everything) / by_hand.mean(-1)
    agree(ratio, torch.full((2,), 6 / 7, dtype=torch.float64), "the mean with position 0 counted")
    return f"Both agree on 2 rows of 7 tokens; counting position 0 leaves {num(ratio[0])} = 6/7 of a mean."


@claim(
    "KL-713",
    section="7.7",
    says="A log-probability between $-16$ and $-8$ nats is rounded by up to $1/32$ in bfloat16 and by $5 "
    r"\cdot 10^{-7}$ in float32: log-ratios of 0.001 come out as 0 or $\pm 1/16$, and the mean of k3 more "
    "than 50 times too large, while that of k1 is about right.",
    verdict="holds",
    kind="exact",
    source_rows=("m:C13",),
)
def rounding_of_log_probabilities() -> str:
    """Every log-probability on a fine grid, rounded, beside a reference 0.001 nats below it."""
    logp = torch.linspace(-15.9, -8.1, 780_001, dtype=torch.float64)
    ref_logp, worst, means = logp - 1e-3, {}, {}
    for dtype in (torch.bfloat16, torch.float32):
        one, other = (table.to(dtype).double() for table in (logp, ref_logp))
        worst[dtype] = (one - logp).abs().max().item()
        means[dtype] = k1(one, other).mean().item(), k3(one, other).mean().item()
        if dtype == torch.bfloat16:
            seen = {round(16 * value, 9) for value in (one - other).unique().tolist()}
            ensure(seen == {0.0, 1.0}, f"log-ratios in sixteenths: {seen}")
    agree(worst[torch.bfloat16], 1 / 32, "the rounding of bfloat16", 1e-4)
    ensure(4e-7 < worst[torch.float32] < 5e-7, f"the rounding of float32 is {worst[torch.float32]}")
    truth = k3(logp, ref_logp).mean().item()
    for dtype in worst:
        agree(means[dtype][0], 1e-3, f"the mean of k1 in {dtype}", 2e-5)
    agree(means[torch.float32][1] / truth, 1, "k3 of float32 over the truth", 1e-3)
    over = means[torch.bfloat16][1] / truth
    ensure(over > 50, f"k3 of bfloat16 is {over} times the truth")
    return (
        f"Rounding {num(worst[torch.bfloat16], 3)} and {num(worst[torch.float32], 2)}; at a log-ratio of "
        f".001 k1 {num(means[torch.bfloat16][0], 3)} and k3 {num(over, 2)} times its value in bfloat16."
    )


@claim(
    "KL-714",
    section="7.7",
    says=r"To go on as if nothing had happened, PPO needs its parameters, those of the critic, Adam's "
    r"moments, the state of the generator, that of the $\beta$ controller and the step: leave out one and "
    "the run goes on without an error and ends elsewhere.",
    verdict="holds",
    kind="exact",
)
def what_a_checkpoint_holds() -> str:
    """A run cut in two and restored whole, then with each part left at its start."""
    ziegler = {"class": "ZieglerBeta", "target_kl": 0.05, "horizon": 64}
    run = Run(algorithm="ppo", task="bandit", batch=16, steps=8, exact_every=8, controller=ziegler)
    world = make_world(run)
    whole = train(run, world=world)
    for _ in range(4):
        next(whole)
    # what was stored must not move with the run that goes on
    kept = {name: value.clone() for name, value in whole.learner.tensors().items()}
    beta, step = whole.controller.state(), whole.step
    end = _ends(whole)

    def resumed(without: str) -> Tensor:
        again = train(run, world=world)
        fresh = again.learner.tensors()
        parts = {name: value.clone() for name, value in kept.items()}
        for name in parts:
            if without and name.startswith(without):
                parts[name] = fresh.get(name, torch.zeros_like(parts[name]))
        again.learner.restore(parts)
        if without != "controller":
            again.controller.restore(beta)
        again.step = 0 if without == "step" else step
        return _ends(again)

    agree(resumed(""), end, "the run that was restored whole", 0.0)
    parts = ("policy", "critic", "optimiser", "generator", "controller", "step")
    moved = [(resumed(part) - end).abs().max().item() for part in parts]
    ensure(min(moved) > 1e-6, f"without {parts[moved.index(min(moved))]} it ends at the same place")
    return (
        f"8 steps cut after 4: whole to the last bit; without one of {len(parts)} parts logits move "
        f"{listed(moved, 1)} nats."
    )


def _ends(training: Training) -> Tensor:
    """Make the steps that are left and return the logits."""
    for _ in training:
        pass
    logits: Tensor = training.policy.state_dict()["logits"].clone()
    return logits
