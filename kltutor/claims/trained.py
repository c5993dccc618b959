"""Claims of section 5.5: every loss trained to its minimum, on all pairs and on finite data."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.comparisons import PHRASES, REF, apart, no_minimum, over, over_means
from kltutor.claims.lab import listed
from kltutor.claims.witnesses import agree, ensure, num
from kltutor.optimum import optimal_policy
from kltutor.pairs import Pairs, all_pairs, sample_pairs
from kltutor.preference import dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss
from kltutor.tasks import TabularPolicy

BETA = 0.5


@claim(
    "KL-522",
    section="5.5",
    says=r"Over all Bradley-Terry pairs only DPO comes to rest at $\pi_{\mathrm{ref}}\, e^{r/\beta}/Z$; IPO, "
    "SimPO and ORPO rest elsewhere at each coefficient tried, and KTO at a fixed reference point has no "
    "minimum.",
    verdict="holds",
    kind="exact",
    sources=("azar2024ipo", "ethayarajh2024kto", "hong2024orpo", "meng2024simpo", "rafailov2023dpo"),
    source_rows=("m:I22",),
)
def every_loss_against_the_optimum() -> str:
    """The minima over all policies of 40 completions to each of two prompts, at three coefficients each."""
    best, _ = optimal_policy(REF, PHRASES.reward, BETA)
    pairs, weights = all_pairs(PHRASES, REF)
    tried = {
        "IPO": [over(partial(ipo_loss, beta=tau), pairs, weights, REF) for tau in (0.05, 0.1, 0.5)],
        "SimPO": [
            over_means(partial(simpo_loss, beta=beta, gamma=gamma), pairs, weights)
            for beta, gamma in ((2.0, 0.0), (2.0, 1.0), (4.0, 0.0))
        ],
        "ORPO": [over_means(partial(orpo_loss, beta=weight), pairs, weights) for weight in (0.1, 1.0, 10.0)],
    }
    dpo = exact.minimise(over(partial(dpo_loss, beta=BETA), pairs, weights, REF), REF)
    missed = apart(dpo, best)
    ensure(missed < 1e-8, f"DPO rests {missed} nats from the optimum")
    lines = []
    for name, losses in tried.items():
        far = [apart(exact.minimise(loss, REF), best) for loss in losses]
        ensure(min(far) > 0.005, f"{name} is {far} nats from the optimum")
        lines.append(f"{name} {listed(far)}")
    no_minimum(_kto, REF)
    return (
        f"KL(π‖π*), nats, beta .5: DPO below 1e-8; {'; '.join(lines)} (τ .05, .1, .5; β, γ 2, 0; 2, 1; 4, 0; "
        f"λ .1, 1, 10); KTO none. The reference: {num(apart(REF, best), 3)}."
    )


@claim(
    "KL-523",
    section="5.5",
    says="On a finite sample DPO has no minimum as soon as some completion lost all its comparisons or won "
    "them all, which 4000 pairs for 80 completions do not rule out, while IPO has one; along DPO's training "
    "the KL to the optimum falls and then rises.",
    verdict="holds",
    kind="sampled",
    sources=("azar2024ipo",),
    source_rows=("m:I23",),
)
def finite_data() -> str:
    """Samples of 4000 pairs: who never won, the slope there, and both searches; three runs on 200 pairs."""
    best, _ = optimal_policy(REF, PHRASES.reward, BETA)
    seeds, one_sided = (0, 1, 2), []
    for seed in seeds:
        pairs, weights = _sample(4000, seed)
        losers, winners = _never(pairs.chosen, pairs), _never(pairs.rejected, pairs)
        one_sided.append(int((losers | winners).sum()))
        ensure(one_sided[-1] > 0, f"seed {seed}: every completion won and lost")
        leaf = best.clone().requires_grad_()
        loss = over(partial(dpo_loss, beta=BETA), pairs, weights, REF)
        (slope,) = torch.autograd.grad(loss(leaf), leaf)
        ensure(
            (slope[losers] > 0).all() and (slope[winners] < 0).all(), f"seed {seed}: slopes at the optimum"
        )
        ends = _moved(best, losers, winners)
        values = [loss(end).item() for end in ends]
        ensure(values[0] > values[1] > values[2], f"seed {seed}: as they leave, the loss goes {values}")
    no_minimum(loss, REF)
    ipo = over(partial(ipo_loss, beta=0.1), pairs, weights, REF)
    rest = exact.minimise(ipo, REF)
    leaf = rest.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ipo(leaf.log_softmax(-1)), leaf)
    agree(slope, torch.zeros_like(slope), "slope of IPO's loss at its minimum", 1e-7)

    paths = []
    for seed in seeds:
        loss = over(partial(dpo_loss, beta=BETA), *_sample(200, seed), REF)
        path = _trained(loss, best)
        ensure(min(path) < min(path[0], path[-1]) - 0.1, f"seed {seed}: the KL goes {path}")
        paths.append((path[0], min(path), path[-1]))
    shown = "; ".join(f"{a:.2g}, {b:.2g}, {c:.2g}" for a, b, c in paths)
    return (
        f"Of 80 completions {', '.join(map(str, one_sided))} never won or never lost in 4000 pairs. KL to "
        f"the optimum at the start, least and after 66 steps on 200 pairs: {shown}."
    )


def _kto(seq_logp: Tensor) -> Tensor:
    """Return KTO's mean loss at z0 = 0; a completion better than 0 is mostly desirable."""
    asked = torch.tensor(PHRASES.prompt_probs, dtype=torch.float64)[:, None]
    share, zero = torch.sigmoid(PHRASES.reward).flatten(), torch.zeros((), dtype=torch.float64)
    good, bad = (
        kto_loss(seq_logp.flatten(), REF.flatten(), torch.full(share.shape, wanted), zero, BETA)
        for wanted in (True, False)
    )
    return (asked * REF.exp()).flatten() @ (share * good + (1 - share) * bad)


def _sample(count: int, seed: int) -> tuple[Pairs, Tensor]:
    """Return pairs of different completions, and the weight of each in the mean over all that were drawn."""
    pairs = sample_pairs(PHRASES, REF, count, torch.Generator().manual_seed(seed))
    different = pairs.chosen != pairs.rejected
    kept = Pairs(*(part[different] for part in pairs))
    return kept, torch.full(kept.prompt.shape, 1 / count, dtype=torch.float64)


def _never(index: Tensor, pairs: Pairs) -> Tensor:
    """Return which completions are in some pair but never at the given place."""
    seen, there = torch.zeros_like(REF, dtype=torch.bool), torch.zeros_like(REF, dtype=torch.bool)
    seen[pairs.prompt, pairs.chosen] = True
    seen[pairs.prompt, pairs.rejected] = True
    there[pairs.prompt, index] = True
    return seen & ~there


def _moved(seq_logp: Tensor, losers: Tensor, winners: Tensor) -> list[Tensor]:
    """Return the policy with the logits of those who never won lowered, and of the others raised, by nats."""
    away = winners.double() - losers.double()
    return [(seq_logp + far * away).log_softmax(-1) for far in (0.0, 5.0, 20.0)]


def _trained(loss: Callable[[Tensor], Tensor], best: Tensor) -> list[float]:
    """Return KL(π ‖ best) every six steps of descent from the reference, in nats per sequence."""
    policy: nn.Module = TabularPolicy.random(PHRASES, torch.Generator().manual_seed(4))  # the reference
    path = []

    def down(p: nn.Module) -> Tensor:
        assert isinstance(p, TabularPolicy)
        return -loss(exact.seq_logp(p, PHRASES))

    for _ in range(12):
        assert isinstance(policy, TabularPolicy)
        path.append(apart(exact.seq_logp(policy, PHRASES).detach(), best).item())
        policy = exact.ascend(policy, down, PHRASES, steps=6, step_size=32.0, natural=False)
    return path
