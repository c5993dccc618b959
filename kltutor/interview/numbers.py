"""What the `checks` of the question bank are written in: the package's functions on plain lists of numbers.

A check is an expression such as ``kl([.5, .5], [.9, .1])``. It may use the names of `NAMES`: the functions of
this module, and log, exp, sqrt, floor and pi of `math`. Distributions are lists of probabilities, nats the
unit of every KL. What the package computes is taken from it; the rest is a sum over all outcomes.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from kltutor import controllers, divergences, moments, optimum, policy_gradient, preference, selection
from kltutor.estimators import k1, k2, k3
from kltutor.overoptimization import GoldCurve

List = Sequence[float]
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def _logp(p: List) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


def kl(p: List, q: List) -> float:
    """Return KL(p ‖ q)."""
    return divergences.kl(_logp(p), _logp(q)).item()


def chi2(p: List, q: List) -> float:
    """Return χ²(p ‖ q), the mean of (p/q - 1)² under q."""
    return divergences.chi2(_logp(p), _logp(q)).item()


def jeffreys(p: List, q: List) -> float:
    """Return KL(p ‖ q) + KL(q ‖ p)."""
    return divergences.jeffreys(_logp(p), _logp(q)).item()


def dot(p: List, values: List) -> float:
    """Return the mean of the values under p."""
    return math.fsum(a * b for a, b in zip(p, values, strict=True))


def mean(name: str, p: List, q: List) -> float:
    """Return the mean of k1, k2 or k3 over samples of p, the policy, against q, the reference."""
    return moments.estimator_moments(_logp(p), _logp(q))[name].mean.item()


def variance(name: str, p: List, q: List) -> float:
    """Return the variance of one draw of k1, k2 or k3."""
    return moments.estimator_moments(_logp(p), _logp(q))[name].variance.item()


def gauss(name: str, moment: str, mu: float, sigma: float = 1.0) -> float:
    """Return the "mean" or "variance" of an estimator for the policy N(0, 1) and reference N(mu, sigma²)."""
    value: float = getattr(moments.gaussian_moments(mu, sigma)[name], moment).item()
    return value


def coef(p: List, q: List) -> float:
    """Return λ*, the coefficient of the control variate that has the least variance."""
    return moments.optimal_coef(_logp(p), _logp(q)).item()


def gradient(name: str, p: List, q: List) -> list[float]:
    """Return the mean gradient in the logits of an estimator as a loss, the samples of p held fixed."""
    logits = _logp(p).requires_grad_()
    logp = logits.log_softmax(-1)
    loss = (logp.detach().exp() * ESTIMATORS[name](logp, _logp(q))).sum()
    (grad,) = torch.autograd.grad(loss, logits)
    return [float(x) for x in grad]


def slope(name: str, delta: float) -> float:
    """Return the derivative of an estimator in log π, at the log-ratio delta."""
    logp = torch.tensor(0.0 if delta > 0 else delta, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(ESTIMATORS[name](logp, (logp - delta).detach()), logp)
    return grad.item()


def naive_k3(d: float) -> float:
    """Return exp(d) - d - 1 as bfloat16 computes it."""
    x = torch.tensor(d, dtype=torch.bfloat16)
    return float(x.exp() - x - 1)


def tilt(ref: List, reward: List, beta: float) -> list[float]:
    """Return π*, the optimum of E[reward] - beta·KL(π ‖ ref)."""
    logp, _ = optimum.optimal_policy(_logp(ref), torch.tensor(reward, dtype=torch.float64), beta)
    return [float(x) for x in logp.exp()]


def log_z(ref: List, reward: List, beta: float) -> float:
    """Return log Z of that optimum."""
    return optimum.optimal_policy(_logp(ref), torch.tensor(reward, dtype=torch.float64), beta)[1].item()


def rational(ref: List, reward: List, beta: float) -> list[float]:
    """Return beta·ref/(λ - reward), where k3 as a loss comes to rest."""
    logp = optimum.rational_tilt(_logp(ref), torch.tensor(reward, dtype=torch.float64), beta)
    return [float(x) for x in logp.exp()]


def both(ref: List, reward: List, beta: float, other: float) -> list[float]:
    """Return the optimum of E[reward] - beta·KL(π ‖ ref) - other·KL(ref ‖ π), for ref above 0."""

    def ratio(reward: float, level: float) -> float:
        """Solve reward - beta·log x + other/x = level for x = π/ref; the left side falls in x."""
        return _root(lambda t: reward - beta * t + other * math.exp(-t) - level, -700.0, 700.0)

    def mass(level: float) -> float:
        return sum(q * math.exp(ratio(r, level)) for q, r in zip(ref, reward, strict=True)) - 1

    level = _root(mass, min(reward) + other - 1, max(reward) + other + 1)
    return [q * math.exp(ratio(r, level)) for q, r in zip(ref, reward, strict=True)]


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function is 0, by bisection to the last digits."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return middle


def beta_for_kl(ref: List, reward: List, target: float) -> float:
    """Return the beta whose optimum is target nats from the reference."""
    return math.exp(_root(lambda t: kl(tilt(ref, reward, math.exp(t)), ref) - target, -3.0, 9.0))


def k3_rest(start: float, beta: float) -> float:
    """Return where a success rate rests with z-scores and k3 as a loss: √(p(1 - p)) = beta·(p - start)."""
    return _root(lambda p: math.sqrt(p * (1 - p)) - beta * (p - start), start, 1.0)


def k3_reaches(value: float) -> float:
    """Return the log(ref/π) above 0 at which k3 has this value."""
    return _root(lambda d: value - (math.expm1(d) - d), 0.0, 50.0)


def crossing(first: str, second: str) -> float:
    """Return the shift of two unit Gaussians beyond which the first estimator varies more than the second."""
    return _root(lambda mu: gauss(second, "variance", mu) - gauss(first, "variance", mu), 0.1, 3.0)


def farthest(p: List, q: List) -> float:
    """Return the largest difference between the probabilities of one outcome."""
    return max(abs(a - b) for a, b in zip(p, q, strict=True))


def critical_beta(start: float) -> float:
    """Return the largest beta at which logit p - logit start = 1/(beta·√(p(1 - p))) has no solution."""

    def slope(p: float) -> float:
        """Return the slope of √(p(1 - p))·(logit p - logit start), which is above 0 up to the maximum."""
        return 1 + (0.5 - p) * (logit(p) - logit(start))

    p = _root(slope, max(start, 0.5), 1 - 1e-15)
    return 1 / (math.sqrt(p * (1 - p)) * (logit(p) - logit(start)))


def sigmoid(x: float) -> float:
    """Return 1/(1 + e^-x)."""
    return 1 / (1 + math.exp(-x))


def logit(p: float) -> float:
    """Return log(p/(1 - p))."""
    return math.log(p / (1 - p))


def normal_cdf(x: float) -> float:
    """Return the probability that a standard normal number is below x."""
    return math.erfc(-x / math.sqrt(2)) / 2


def mean_abs_k1(mu: float) -> float:
    """Return the mean of |k1| for N(0, 1) against N(mu, 1), where k1 is N(mu²/2, mu²)."""
    centre = mu * mu / 2
    spread = mu * math.sqrt(2 / math.pi) * math.exp(-centre * centre / (2 * mu * mu))
    return spread + centre * (1 - 2 * normal_cdf(-centre / mu))


def dpo(chosen: float, rejected: float, beta: float) -> float:
    """Return DPO's loss of a pair with these two log-ratios."""
    zero = torch.zeros(1, dtype=torch.float64)
    low = min(0.0, -chosen, -rejected) - 1  # log-probabilities stay below 0
    return preference.dpo_loss(
        zero + low + chosen, zero + low + rejected, zero + low, zero + low, beta
    ).item()


def z_scores(scores: List) -> list[float]:
    """Return GRPO's advantages of one group."""
    group = torch.zeros(len(scores), dtype=torch.long)
    return policy_gradient.group_advantages(torch.tensor(scores, dtype=torch.float64), group).tolist()


def naive_z(score: float, size: int) -> float:
    """Return the float32 z-score with 1e-8 in the denominator, in a group of equal scores."""
    scores = torch.full((size,), score, dtype=torch.float32)
    return float(((scores - scores.mean()) / (scores.std(correction=0) + 1e-8)).abs()[0])


def clipped(ratio: float, advantage: float, eps: float) -> list[float]:
    """Return PPO's clipped surrogate of one token, and its slope in log π."""
    old = torch.tensor([[-1.0]], dtype=torch.float64) - max(math.log(ratio), 0.0)
    logp = (old + math.log(ratio)).requires_grad_()
    advantages = torch.full_like(old, advantage)
    loss = policy_gradient.ppo_clip_loss(logp, old, advantages, torch.tensor([[True]]), eps)
    (grad,) = torch.autograd.grad(loss, logp)
    return [-loss.item(), -grad.item()]


def ziegler(beta: float, target: float, measured: float, n: int, horizon: float) -> float:
    """Return the beta that follows one update of Ziegler et al.'s rule."""
    return controllers.ZieglerBeta(beta, target_kl=target, horizon=horizon).update(measured, n)


def best_of_n_bound(n: int) -> float:
    """Return log n - (n - 1)/n."""
    return selection.best_of_n_kl_bound(n)


def best_of_n_kl(ref: List, reward: List, n: int) -> float:
    """Return the exact KL of best-of-n from the reference."""
    return selection.best_of_n_kl(_logp(ref), torch.tensor(reward, dtype=torch.float64), n).item()


def peak(form: str, alpha: float, beta: float, what: str) -> float:
    """Return the distance, kl or gold at the peak of a published curve, "best-of-n" or "rl"."""
    value: float = getattr(GoldCurve(form, alpha, beta).peak, what)  # type: ignore[arg-type]
    return value


def kept(form: str, alpha: float, beta: float, share: float) -> float:
    """Return the share of the peak's gold that is left at a share of the peak's distance d."""
    curve = GoldCurve(form, alpha, beta)  # type: ignore[arg-type]
    distance = torch.tensor([share * curve.peak.distance], dtype=torch.float64)
    return curve.gold(distance).item() / curve.peak.gold


MATHS = {name: getattr(math, name) for name in ("log", "exp", "sqrt", "floor", "pi")}
FUNCTIONS = (
    *(kl, chi2, jeffreys, dot, mean, variance, gauss, coef, gradient, slope, naive_k3),
    *(tilt, log_z, rational, both, beta_for_kl, k3_rest, k3_reaches, crossing, farthest, critical_beta),
    *(sigmoid, logit, normal_cdf, mean_abs_k1, dpo, z_scores, naive_z, clipped, ziegler),
    *(best_of_n_bound, best_of_n_kl, peak, kept),
)
NAMES: dict[str, Any] = {**MATHS, **{function.__name__: function for function in FUNCTIONS}}


@cache
def evaluate(expression: str) -> float:
    """Return the value of an expression of the question bank.

    Raises:
        ValueError: it is no expression in `NAMES`, or its value is not a number.

    Example:
        >>> round(evaluate("kl([.5, .5], [.9, .1])"), 4)
        0.5108
    """
    try:
        value = eval(expression, {"__builtins__": {}, **NAMES})
    except Exception as error:
        raise ValueError(f"{expression!r} cannot be computed: {type(error).__name__}: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{expression!r} is a {type(value).__name__}; a number is expected.")
    return float(value)
