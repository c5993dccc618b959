"""Claims of section 5.2 on GRPO in full: lengths, z-scores, where its anchor holds, and the sign."""

import itertools
import math

import torch
from torch import Tensor, nn

from kltutor import exact
from kltutor.atlas import angle
from kltutor.claims import claim
from kltutor.claims.groups import Advantages
from kltutor.claims.lab import THREE, TWO, listed, rows, triple
from kltutor.claims.witnesses import agree, differ, ensure, num
from kltutor.masking import Reduction
from kltutor.placement import Estimator, kl_loss
from kltutor.policy_gradient import dr_grpo_advantages, group_advantages, grpo_loss, reinforce
from kltutor.tasks import TabularPolicy, Task


@claim(
    "KL-511",
    section="5.2",
    says=r"Up to the factor $1 - 1/G$ of the group mean Dr. GRPO follows $\nabla \mathrm{E}[R]$; with GRPO's "
    r"$1/$length inside the mean the expected gradient is $\nabla \mathrm{E}[R/L] - \mathrm{E}[R]\, \nabla "
    r"\mathrm{E}[1/L]$ instead, even without z-scores.",
    verdict="holds",
    kind="exact",
    sources=("liu2025drgrpo",),
    source_rows=("m:W08", "f:I25"),
)
def length_inside_the_mean() -> str:
    """All groups of two and of three of seven completions of one and two tokens, without KL."""
    policy, _, _ = triple(TWO)
    length = TWO.mask.sum(-1).double()

    def toward(values: Tensor) -> Tensor:
        return exact.gradient(lambda p: exact.expectation(values[None], exact.seq_logp(p, TWO), TWO), policy)

    reward = TWO.reward[0]
    true, mean = toward(reward), (exact.seq_logp(policy, TWO)[0].detach().exp() @ reward).item()
    tilted = toward(reward / length) - mean * toward(1 / length)
    for size in (2, 3):
        plain = _group_push(dr_grpo_advantages, policy, size, "sequence_sum")
        agree(plain, (1 - 1 / size) * true, f"Dr. GRPO in groups of {size}")
    short = _group_push(dr_grpo_advantages, policy, 2, "sequence_mean")
    agree(short, tilted / 2, "1/length in groups of 2")
    published = _group_push(group_advantages, policy, 2, "sequence_mean")
    off = [angle(push, true) for push in (short, published)]
    ensure(min(off) > 2, f"the angles to ∇E[R] are {off}")
    return (
        f"Dr. GRPO follows 1/2 and 2/3 of ∇E[R] in groups of 2 and 3; in groups of 2 1/length turns it by "
        f"{num(off[0], 2)}°, with z-scores too by {num(off[1], 2)}°."
    )


@claim(
    "KL-512",
    section="5.2",
    says=r"In large groups z-scores weight each prompt's part of $\nabla \mathrm{E}[R]$ by $1/\sigma$: with "
    r"0/1 rewards the objective becomes the mean of $2 \arcsin \sqrt{p}$, and a prompt of success rate $.01$ "
    r"or $.99$ counts 5 times as much as one of $.5$; in groups of $G$ the weight is at most $\sqrt{G - 1}$.",
    verdict="holds",
    kind="exact",
    sources=("liu2025drgrpo", "yao2026frpo"),
    source_rows=("m:W20",),
)
def z_scores_weight_prompts() -> str:
    """Three prompts of different success rates: all groups of 8, and one group that is the population."""
    rates = (0.01, 0.5, 0.99)
    task = _graded(len(rates))
    logits = torch.tensor([[[1 - p, p]] for p in rates], dtype=torch.float64).log()
    policy = TabularPolicy(task, logits)
    true = exact.gradient(lambda p: exact.expectation(task.reward, exact.seq_logp(p, task), task), policy)
    root = exact.gradient(lambda p: (2 * exact.seq_logp(p, task)[:, 1].exp().sqrt().arcsin()).mean(), policy)
    groups = {}
    for name, advantages in (("z", group_advantages), ("plain", dr_grpo_advantages)):
        factor = (_group_push(advantages, policy, 8, "sequence_sum") / true)[1::2]
        groups[name] = factor
    agree(groups["plain"], torch.full((3,), 7 / 8).double(), "factors of group means")
    agree(groups["z"], _double([_z_factor(p, 8) for p in rates]), "factors of z-scores in groups of 8")
    ensure((groups["z"] < math.sqrt(7)).all(), f"factors are {groups['z']}")
    large = torch.cat([_population_push(p, p, 0.0)[None] / 3 for p in rates])
    agree(large.flatten(), root, "z-scores of the population and 2 arcsin √p")
    factors = (large.flatten() / true)[1::2]
    agree(factors, 1 / _double([math.sqrt(p * (1 - p)) for p in rates]), "1/sigma")
    differ(factors[0] / factors[1], 1, "the weights of two prompts", 3)
    return (
        f"Weights at success rates .01, .5, .99: {listed(factors)} in the population, "
        f"{listed(groups['z'])} in groups of 8 (bound {num(math.sqrt(7), 3)}), .875 without z-scores."
    )


@claim(
    "KL-513",
    section="5.2",
    says=r"With 0/1 rewards, z-scores of large groups and the gradient of $\mathrm{KL}(\pi \Vert "
    r"\pi_{\mathrm{ref}})$ the success rate climbs from the reference to the first solution of "
    r"$\mathrm{logit}\, p - \mathrm{logit}\, p_{\mathrm{ref}} = 1/(\beta \sqrt{p(1 - p)})$; below a critical "
    r"$\beta$ ($1.509$ at $p_{\mathrm{ref}} = .5$) there is none and it runs to 1, where k3 as a loss always "
    "comes to rest.",
    verdict="holds",
    kind="exact",
    sources=("shao2024grpo",),
    source_rows=("m:W20",),
)
def where_the_anchor_loses() -> str:
    """The field from a population of 100; its roots by bisection; paths of natural ascent from both sides."""
    for p in (0.05, 0.5, 0.9):
        for beta in (0.5, 2.0):
            push = _population_push(p, 0.3, beta)[1]
            k3_push = _population_push(p, 0.3, beta, "k3")[1]
            agree(push, p * (1 - p) * _drift(p, 0.3, beta), f"the field at {p}, beta {beta}")
            agree(k3_push, math.sqrt(p * (1 - p)) - beta * (p - 0.3), f"the field of k3 at {p}, beta {beta}")
    critical = {}
    for p_ref in (0.5, 0.1):
        top, most = _peak(p_ref)
        critical[p_ref] = 1 / most
        for beta, count in ((0.99 / most, 0), (1.01 / most, 2)):
            signs = [_drift(i / 2000, p_ref, beta) > 0 for i in range(1, 2000)]
            changes = sum(a != b for a, b in itertools.pairwise(signs))
            ensure(changes == count, f"from {p_ref} at beta {beta} the field changes sign {changes} times")
    agree(critical[0.5], 1.5089, "critical beta from .5", 1e-4)

    p_ref, beta = 0.5, 2.0
    top, _ = _peak(p_ref)
    rest, edge = _root(p_ref, top, p_ref, beta), _root(1 - 1e-9, top, p_ref, beta)
    for p in (rest, edge):
        agree(_logit(p) - _logit(p_ref), 1 / (beta * math.sqrt(p * (1 - p))), "the equation at rest", 1e-9)
    agree(_follow(p_ref, p_ref, beta), rest, "where the path from the reference ends", 1e-6)
    agree(_follow(edge - 0.01, p_ref, beta), rest, "where the path from below the edge ends", 1e-6)
    ensure(_follow(edge + 0.01, p_ref, beta) > 1 - 1e-6, "a start beyond the edge comes back")
    ensure(_follow(p_ref, p_ref, 1.4) > 1 - 1e-6, "below the critical beta the path comes to rest")
    for small in (0.01, 0.1):
        ends = [math.sqrt(p * (1 - p)) - small * (p - p_ref) for p in (p_ref, 1 - small**2 / 100)]
        ensure(ends[0] > 0 > ends[1], f"the field of k3 at beta {small} is {ends} at both ends")
    return (
        f"Critical beta {num(critical[0.5], 4)} from .5, {num(critical[0.1], 3)} from .1; at beta 2 from .5 "
        f"it rests at {num(rest, 4)}, and from beyond {num(edge, 4)} runs to 1; k3 holds it at beta .01."
    )


@claim(
    "KL-514",
    section="5.2",
    says="The display in the GRPO paper is an objective, to be maximised; a loss is its negative, with the "
    "surrogate subtracted and k3 added.",
    verdict="holds",
    kind="exact",
    sources=("shao2024grpo",),
    source_rows=("m:I14", "f:C12"),
)
def the_display_is_maximised() -> str:
    """The paper's display summed by hand over a group of stale completions, and one step down the loss."""
    policy, ref, old = triple(THREE)
    picked = [0, 4, 9, 13]
    beta, eps = 0.04, 0.2
    old_logp, ref_logp, mask = rows(old, THREE)[picked], rows(ref, THREE)[picked], THREE.mask[picked]
    advantages = group_advantages(THREE.reward[0][picked], torch.zeros(4, dtype=torch.long))

    def loss(p: nn.Module) -> Tensor:
        assert isinstance(p, TabularPolicy)
        live = exact.token_logps(p, THREE)[0][picked]
        return grpo_loss(live, old_logp, ref_logp, mask, advantages, beta, eps)

    here = rows(policy, THREE)[picked]
    ratios = (here - old_logp).exp()[mask]
    display = 0.0
    for i in range(4):
        tokens = int(mask[i].sum())
        for t in range(tokens):
            ratio = math.exp(here[i, t] - old_logp[i, t])
            clipped = min(max(ratio, 1 - eps), 1 + eps)
            surrogate = min(ratio * advantages[i].item(), clipped * advantages[i].item())
            log_inverse = (ref_logp[i, t] - here[i, t]).item()
            anchor = math.exp(log_inverse) - log_inverse - 1
            display += (surrogate - beta * anchor) / tokens / 4
    value = loss(policy).detach()
    agree(value, -display, "the loss and minus the display")
    differ(value, display, "the loss and the display", 0.1)
    ensure((ratios < 1 - eps).any() and (ratios > 1 + eps).any(), "no ratio is clipped")
    down = exact.ascend(policy, lambda p: -loss(p), THREE, steps=1, step_size=0.01, natural=False)
    assert isinstance(down, TabularPolicy)
    ensure(loss(down) < value, "a step down the loss does not raise the display")
    return f"Four stale completions: display {num(display)}, loss {num(value)}."


def _graded(prompts: int) -> Task:
    """Return a task of one token, right or wrong, with several prompts asked equally often."""
    return Task(
        name="graded",
        words=("<end>", "right"),
        horizon=1,
        prompts=tuple((str(i),) for i in range(prompts)),
        prompt_probs=(1 / prompts,) * prompts,
        score=lambda prompt, said, ended: float(not ended),
    )


def _group_push(advantages: Advantages, policy: TabularPolicy, size: int, reduction: Reduction) -> Tensor:
    """Return minus the mean gradient of `grpo_loss` without KL over all groups drawn by the policy."""
    task, group = policy.task, torch.zeros(size, dtype=torch.long)

    def loss(logp: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        old = logp.detach()
        return grpo_loss(logp, old, old, mask, advantages(scores, group), 0.0, 0.2, reduction=reduction)

    return -exact.expected_group_gradient(loss, policy, task, size, given=(task.reward.flatten(),)).mean


def _population_push(p: float, p_ref: float, beta: float, anchor: Estimator = "k2") -> Tensor:
    """Return the step in the logits of (wrong, right) from a group in which every rate is exact."""
    size = 100
    wins = round(p * size)
    scores = torch.tensor([1.0] * wins + [0.0] * (size - wins), dtype=torch.float64)
    logits = torch.tensor([1 - p, p], dtype=torch.float64).log().requires_grad_()
    live = logits.log_softmax(-1)[scores.long()][:, None]
    ref_logp = torch.tensor([1 - p_ref, p_ref], dtype=torch.float64).log()[scores.long()][:, None]
    mask = torch.ones(size, 1, dtype=torch.bool)
    advantages = group_advantages(scores, torch.zeros(size, dtype=torch.long))[:, None]
    loss = reinforce(live, advantages, mask) + beta * kl_loss(live, ref_logp, mask, anchor)
    return -torch.autograd.grad(loss, logits)[0]


def _double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _drift(p: float, p_ref: float, beta: float) -> float:
    """Return the speed of logit p under natural ascent: 1/sigma - beta (logit p - logit p_ref)."""
    return 1 / math.sqrt(p * (1 - p)) - beta * (_logit(p) - _logit(p_ref))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _peak(p_ref: float) -> tuple[float, float]:
    """Return where sqrt(p(1-p)) (logit p - logit p_ref) is largest, and its value there."""
    low, high = _logit(p_ref), 40.0
    for _ in range(100):
        u = (low + high) / 2
        low, high = (u, high) if (u - _logit(p_ref)) * math.tanh(u / 2) < 2 else (low, u)
    p = 1 / (1 + math.exp(-u))
    return p, math.sqrt(p * (1 - p)) * (u - _logit(p_ref))


def _root(p: float, other: float, p_ref: float, beta: float) -> float:
    """Return where the drift is 0 between two rates at which its signs differ, by bisection in the logit."""
    low, high = sorted((_logit(p), _logit(other)))
    rising = _drift(1 / (1 + math.exp(-low)), p_ref, beta) < 0
    for _ in range(100):
        u = (low + high) / 2
        below = (_drift(1 / (1 + math.exp(-u)), p_ref, beta) < 0) is rising
        low, high = (u, high) if below else (low, u)
    return 1 / (1 + math.exp(-low))


def _follow(p: float, p_ref: float, beta: float) -> float:
    """Return where 4000 steps of natural ascent lead, or the rate at which logit p passes 20."""
    u = _logit(p)
    for _ in range(4000):
        u += 0.02 * _drift(1 / (1 + math.exp(-u)), p_ref, beta)
        if u > 20:
            break
    return 1 / (1 + math.exp(-u))


def _z_factor(rate: float, size: int) -> float:
    """Return E sqrt(k(G - k)) / (G p (1 - p)), k binomial, by a sum."""
    total = sum(
        math.comb(size, k) * rate**k * (1 - rate) ** (size - k) * math.sqrt(k * (size - k))
        for k in range(size + 1)
    )
    return total / (size * rate * (1 - rate))
