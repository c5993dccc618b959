"""Claims of section 1.2: forward and reverse KL, what each fit does, and which one RLHF uses."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact, tasks
from kltutor.claims import claim
from kltutor.claims.witnesses import (
    KL,
    POLICY,
    REF,
    REVERSED_KL,
    agree,
    differ,
    ensure,
    logp,
    num,
    vector,
)
from kltutor.divergences import kl
from kltutor.estimators import k3
from kltutor.fits import fit_forward, fit_reverse, mixture_logp
from kltutor.optimum import optimal_policy
from kltutor.tasks import TabularPolicy


@claim(
    "KL-108",
    section="1.2",
    says=r"Forward KL, $\mathrm{KL}(\mathrm{target} \Vert \mathrm{fit})$, is infinite where the fit misses "
    r"mass of the target (zero-avoiding); reverse KL, $\mathrm{KL}(\mathrm{fit} \Vert \mathrm{target})$, is "
    r"infinite where the fit has mass that the target lacks (zero-forcing).",
    verdict="holds",
    kind="exact",
    source_rows=("m:H05",),
)
def zeros_of_the_two_directions() -> str:
    """A fit that is too narrow and one that is too wide, each infinite in one direction only."""
    target, narrow, wide = logp(0.5, 0.5, 0.0), logp(1.0, 0.0, 0.0), logp(0.4, 0.4, 0.2)
    ensure(kl(target, narrow).item() == math.inf, "forward KL of the narrow fit is finite")
    ensure(kl(wide, target).item() == math.inf, "reverse KL of the wide fit is finite")
    reverse, forward = kl(narrow, target), kl(target, wide)
    agree(reverse, math.log(2), "reverse KL of the narrow fit")
    agree(forward, math.log(1.25), "forward KL of the wide fit")
    return (
        f"Target (.5, .5, 0). Fit (1, 0, 0): forward inf, reverse {num(reverse)}. "
        f"Fit (.4, .4, .2): forward {num(forward)}, reverse inf."
    )


@claim(
    "KL-109",
    section="1.2",
    says="The forward fit within an exponential family has the target's mean sufficient statistics; for a "
    "Gaussian these are mean and variance.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I28",),
)
def forward_fit_matches_moments() -> str:
    """A search that knows nothing of moments ends at them, for a Gaussian and for tilts of a dice."""
    from scipy.optimize import minimize, minimize_scalar

    grid = torch.linspace(-20, 20, 401, dtype=torch.float64)
    target = mixture_logp(
        grid, torch.tensor([-2.0, 3.0]).double(), torch.tensor([1.0, 0.5]).double(), _half()
    )
    mean = target.exp() @ grid
    sd = (target.exp() @ (grid - mean) ** 2).sqrt()

    def fit(x: np.ndarray) -> Float[Tensor, " point"]:
        return ((grid - float(x[0])) / math.exp(x[1])).square().div(-2).log_softmax(-1)

    exactly = {"method": "Nelder-Mead", "options": {"xatol": 1e-7, "fatol": 1e-14}}
    found = minimize(lambda x: kl(target, fit(x)).item(), np.zeros(2), **exactly)
    agree(found.x[0], mean, "mean of the best Gaussian", 1e-4)
    agree(math.exp(found.x[1]), sd, "standard deviation of the best Gaussian", 1e-4)
    agree(fit_forward(grid, target).sd, sd, "fit_forward", 1e-9)
    reverse = minimize(lambda x: kl(fit(x), target).item(), [-2.0, 0.0], **exactly)
    reverse_sd = math.exp(reverse.x[1])
    differ(reverse_sd, sd, "the reverse fit", 0.5)

    face, weights = torch.arange(6, dtype=torch.float64), logp(0.3, 0.1, 0.1, 0.1, 0.1, 0.3)
    base = logp(0.4, 0.2, 0.1, 0.1, 0.1, 0.1)  # tilts of this base never reach the target, only its mean
    tilt = minimize_scalar(lambda x: kl(weights, (base + x * face).log_softmax(-1)).item()).x
    dice = (base + float(tilt) * face).log_softmax(-1)
    agree(dice.exp() @ face, weights.exp() @ face, "mean of the best tilt", 1e-5)
    differ(base.exp() @ face, weights.exp() @ face, "mean of the base", 0.5)
    return (
        f"Two modes: best Gaussian has mean {found.x[0]:.4f} and sd {math.exp(found.x[1]):.4f}, target "
        f"{mean:.4f} and {sd:.4f}, reverse fit sd {reverse_sd:.4f}; tilted dice: mean "
        f"{dice.exp() @ face:.4f}."
    )


@claim(
    "KL-110",
    section="1.2",
    says=r"For a target of two equal unit Gaussians, the best single Gaussian under reverse KL stays between "
    r"them, and wide, until they are about $5.6$ standard deviations apart; a narrow local optimum on one of "
    r"them appears at about $4.8$.",
    verdict="folklore is wrong",
    folklore="Under reverse KL a single Gaussian picks one mode whenever the target has two.",
    kind="exact",
    source_rows=("m:I05",),
)
def reverse_fit_stays_wide() -> str:
    """Follow both optima as the modes move apart, and compare one distance with `fit_reverse`."""
    from scipy.optimize import brentq

    appears = 2 * brentq(lambda s: _narrow_mean(s) - 0.5 * s, 2.3, 2.6, xtol=1e-4)
    switches = 2 * brentq(lambda s: _wide(s) - _narrow(s), 2.7, 2.9, xtol=1e-6)
    agree(switches, 5.6, "distance at which the best fit switches", 0.05)
    agree(appears, 4.8, "distance at which the narrow optimum appears", 0.05)

    grid, s = torch.linspace(-18, 18, 361, dtype=torch.float64), 2.5
    ones = torch.ones(2, dtype=torch.float64)
    fits = fit_reverse(grid, mixture_logp(grid, torch.tensor([-s, s]).double(), ones, _half()))
    ensure(len(fits) == 3, f"{len(fits)} optima at distance {2 * s}, 3 are expected")
    agree(fits[0].mean, 0, "mean of the best fit at distance 5", 1e-4)
    agree(fits[0].divergence, _wide(s), "its divergence by another method", 1e-6)
    agree(fits[1].divergence, _narrow(s), "the other optimum by another method", 1e-6)
    differ(fits[0].divergence, fits[1].divergence, "the two optima", 0.1)
    unequal = torch.tensor([0.6, 0.4], dtype=torch.float64)
    near, far = (
        fit_reverse(grid, mixture_logp(grid, torch.tensor([-d / 2, d / 2]).double(), ones, unequal))[0].sd
        for d in (5.0, 5.25)
    )
    ensure(near > 2 > 1.1 > far, f"with weights .6 and .4 the best sd are {near} and {far}")
    return (
        f"Narrow local optimum from distance {appears:.2f}, best from {switches:.3f}; at distance 5 the fit "
        f"with mean 0 and sd {fits[0].sd:.4f} has {fits[0].divergence:.4f} nats, the narrow one "
        f"{fits[1].divergence:.4f}. Weights .6 and .4: best sd {near:.2f} at 5, {far:.2f} at 5.25."
    )


@claim(
    "KL-111",
    section="1.2",
    says=f"RLHF penalises {KL}, the reverse direction, which makes the objective equal to "
    r"$\beta \log Z - \beta\, \mathrm{KL}(\pi \Vert \pi^*)$ with "
    r"$\pi^* = \pi_{\mathrm{ref}}\, e^{r/\beta}/Z$; that unrestricted "
    "optimum keeps the whole support of the reference.",
    verdict="folklore is wrong",
    folklore="RLHF uses reverse KL because its mode seeking makes the policy settle on one good answer.",
    kind="exact",
    source_rows=("m:I05",),
)
def unrestricted_optimum_keeps_the_support() -> str:
    """The optimum of two equally good modes keeps both; the gap of any policy is its KL to the optimum."""
    ref, reward = logp(0.4, 0.2, 0.1, 0.3), torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    shares = []
    for beta in (10.0, 1.0, 0.1):
        best, log_z = optimal_policy(ref, reward, beta)
        ensure(bool((best > -torch.inf).all()), f"the optimum at beta {beta} lost an outcome")
        agree(best[0] - best[2], ref[0] - ref[2], f"ratio of the two modes at beta {beta}")
        for policy in (logp(0.1, 0.2, 0.3, 0.4), logp(0.97, 0.01, 0.01, 0.01), logp(0.0, 0.5, 0.0, 0.5)):
            value = policy.exp() @ reward - beta * kl(policy, ref)
            agree(value, beta * (log_z - kl(policy, best)), f"value at beta {beta}", 1e-9)
            differ(value, beta * (log_z - kl(best, policy)), f"the forward direction at beta {beta}", 1e-3)
        shares.append(best[2].exp())
    return (
        "Modes of reward 1 and reference .4, .1: the lesser keeps mass "
        + ", ".join(num(share) for share in shares)
        + f" at beta 10, 1, .1; their ratio stays {num((ref[0] - ref[2]).exp())}."
    )


@claim(
    "KL-112",
    section="1.2",
    says=f"{REVERSED_KL}, the forward direction, can be had from policy samples, as "
    r"$\mathbb{E}_\pi[w \log w]$ with $w = \pi_{\mathrm{ref}}/\pi$, and in closed form per prefix; its "
    r"gradient $\mathbb{E}_\pi[(1 - w) \nabla \log \pi]$ is what k3 as a loss gives on-policy.",
    verdict="folklore is wrong",
    folklore="Forward KL needs samples from the reference, so RLHF can hardly use it.",
    kind="exact",
    sources=("li2025divergence", "shao2024grpo"),
    source_rows=("m:W18", "f:I19"),
)
def forward_kl_from_policy_samples() -> str:
    """Value and gradient from the policy's own samples, for one action and for every prefix of a task."""
    logits = POLICY.clone().requires_grad_(True)
    policy = logits.log_softmax(-1)
    w = (REF - policy).exp()
    value = (policy.exp() * w * w.log()).sum()
    agree(value, kl(REF, policy), "value from policy samples")
    differ(value, kl(policy, REF), "the other direction", 0.1)
    (truth,) = torch.autograd.grad(kl(REF, policy), logits, retain_graph=True)
    held = policy.detach().exp()
    (loss,) = torch.autograd.grad(held @ k3(policy, REF), logits, retain_graph=True)
    (other,) = torch.autograd.grad(kl(policy, REF), logits, retain_graph=True)
    agree(loss, truth, "gradient of k3 as a loss")
    agree(truth, held - REF.exp(), "closed form of the gradient")
    differ(loss, other, "gradient of the other direction", 0.1)

    task = tasks.small()
    actor, ref = (TabularPolicy.random(task, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    ref_tokens = exact.token_logps(ref, task).detach().flatten(0, 1)

    def per_token_k3(tokens: Tensor, mask: Tensor) -> Tensor:
        return k3(tokens, ref_tokens).masked_fill(~mask, 0).sum(-1)

    trained = exact.expected_gradient(per_token_k3, actor, task).mean
    closed = exact.prefix_logps(actor, task).exp() - exact.prefix_logps(ref, task).exp()
    prompts = torch.tensor(task.prompt_probs, dtype=torch.float64)[:, None]
    closed = closed * (prompts * exact.prefix_reach(actor, task))[:, :, None]
    agree(trained, closed.flatten(), "every prefix of the task")
    return (
        f"E[w log w] = {num(value.detach())} = forward KL (reverse {num(kl(POLICY, REF))}); gradient "
        f"{vector(loss)} equals policy - ref; {closed.shape[0] * closed.shape[1]} prefixes agree."
    )


def _half() -> Float[Tensor, "2"]:
    return torch.full((2,), 0.5, dtype=torch.float64)


def _reverse_kl(s: float, mean: float, log_sd: float) -> float:
    """Return KL(N(mean, sd²) ‖ ½ N(-s, 1) + ½ N(s, 1))."""
    nodes = np.linspace(-9, 9, 721)
    weights = np.exp(-(nodes**2) / 2) * (nodes[1] - nodes[0])
    y = mean + math.exp(log_sd) * nodes
    target = np.logaddexp(-((y - s) ** 2) / 2, -((y + s) ** 2) / 2) - math.log(2)
    return float(-log_sd - 0.5 - weights @ target / math.sqrt(2 * math.pi))


def _wide(s: float) -> float:
    """Return the least reverse KL of a Gaussian with mean 0."""
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(lambda x: _reverse_kl(s, 0.0, x), bounds=(0.0, 2.0), options={"xatol": 1e-9})
    return float(best.fun)


def _narrow_fit(s: float) -> tuple[float, float]:
    """Return mean and divergence of the local optimum that a search from one mode ends at."""
    from scipy.optimize import minimize

    exactly = {"xatol": 1e-6, "fatol": 1e-12}
    best = minimize(lambda x: _reverse_kl(s, x[0], x[1]), [s, 0.0], method="Nelder-Mead", options=exactly)
    return float(best.x[0]), float(best.fun)


def _narrow_mean(s: float) -> float:
    return _narrow_fit(s)[0]


def _narrow(s: float) -> float:
    return _narrow_fit(s)[1]
