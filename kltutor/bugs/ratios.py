"""Bugs of k3: its ratio upside down, exponentiated twice, rounded away, or taken of a whole completion."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import exact
from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.bugs.lab import MASK, POLICY, REF, TASK, reports, rows
from kltutor.estimators import k1, k3
from kltutor.masking import masked_sum
from kltutor.tasks import TabularPolicy


def inverted_k3(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Use policy/ref where k3 needs ref/policy."""
    log_ratio = logp - ref_logp
    return torch.expm1(log_ratio) - log_ratio


def twice_exponentiated_k3(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Take the formula for a log-ratio, and put the ratio in."""
    ratio = (ref_logp - logp).exp()
    return ratio.exp() - 1 - ratio


def _kl() -> float:
    return exact.kl(POLICY, REF, TASK).item()


def _mean_of_sums(code: Code, ref: TabularPolicy) -> float:
    return float(masked_sum(code(rows(POLICY), rows(ref)), MASK).mean())


def _chi2() -> dict[str, float]:
    log_ratio = rows(POLICY) - rows(REF)
    chi2 = masked_sum(torch.expm1(log_ratio), MASK).mean().item()
    return {"chi2 of each token's choice, summed along the completion, no unit": chi2}


def _of_equals() -> dict[str, float]:
    return {
        "the same where policy and reference are equal, nats": _mean_of_sums(twice_exponentiated_k3, POLICY)
    }


@bug(
    "BUG-12",
    title="The ratio goes through `exp` a second time.",
    symptom="Two equal policies have a KL of 0.72 nats per token, and a token that the policy likes less "
    "than the reference does makes it spike, or overflow.",
    why="In `r - 1 - log(r)` the ratio has taken the place of its logarithm: `exp(r) - 1 - r`. At r = "
    "1 that is e - 2 = 0.72, and for a large log-ratio it is an exponential of an exponential.",
    cure="Name a log-ratio `log_ratio` and a ratio `ratio`: k3 is `expm1(-log_ratio) + log_ratio`.",
    quantity="mean of the estimate summed over tokens, nats per sequence",
    broken=twice_exponentiated_k3,
    cured=k3,
    truth=_kl,
    line="return ratio.exp() - 1 - ratio",
    finding="Above zero even where the two are equal",
    plot=reports(_mean_of_sums, "symlog"),
    also=_of_equals,
    thread="Rolv-Arild/rocket-learn#12",
    inputs=("logp", "ref_logp"),
    returns="token",
)
@bug(
    "BUG-11",
    title="k3 has policy/ref where it needs ref/policy.",
    symptom="The reported KL is the chi-squared divergence minus the KL: right to second order near the "
    "reference, nats too large further away, and its spikes come from tokens that the policy likes more.",
    why="The ratio whose mean is 1 over samples of the policy is ref/policy. The mean of policy/ref "
    "is 1 + chi-squared. Both versions begin as half the mean square of the log-ratio, so tests "
    "near the reference pass.",
    cure="Take `expm1(-log_ratio) + log_ratio` with `log_ratio = logp - ref_logp`. Test on two unlike "
    "distributions: near each other the two cannot be told apart.",
    quantity="mean of the estimate summed over tokens, nats per sequence",
    broken=inverted_k3,
    cured=k3,
    truth=_kl,
    line="return torch.expm1(log_ratio) - log_ratio",
    finding="Right near the reference, wrong elsewhere",
    plot=reports(_mean_of_sums),
    also=_chi2,
    thread="natolambert/rlhf-book#489",
    inputs=("logp", "ref_logp"),
    returns="token",
)
def mean_of_sums(code: Code) -> float:
    """Return the mean over completions of the code's estimates, summed over tokens."""
    return _mean_of_sums(code, REF)


def k3_by_subtraction(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Subtract 1 from a number that is nearly 1."""
    delta = ref_logp - logp
    return delta.exp() - delta - 1


def _near() -> tuple[Float[Tensor, "1 token"], Float[Tensor, "1 token"]]:
    """Return tokens on which the two disagree by 0.05 to 0.18 thousandths of a nat, exactly so in float32.

    There exp differs from 1 + delta by less than a third of a float32's last digit, whoever computes it.
    """
    steps = torch.arange(400, 1501, 50)
    log_ratio = torch.cat([-steps, steps])[None] * 2.0**-23
    return -1.5 + log_ratio, torch.full_like(log_ratio, -1.5)


def _none() -> float:
    return 0.0


def _in_float32() -> dict[str, float]:
    logp, ref_logp = _near()
    right = k3(logp.double(), ref_logp.double())
    return {
        "largest value that is lost, billionths of a nat": 1e9 * right.max().item(),
        "largest relative error of the cured, no unit": (k3(logp, ref_logp) / right - 1).abs().max().item(),
    }


def _over_truth(code: Code) -> list[float]:
    values = torch.tensor([_log_ratios()], dtype=torch.float32)
    ref_logp = torch.full_like(values, -1.5)
    logp = ref_logp + values
    right = k3(logp.double(), ref_logp.double())
    return [float(value) for value in (code(logp, ref_logp).double() / right)[0]]


def _log_ratios() -> list[float]:
    return [1e-4 * 10 ** (i / 20) for i in range(41)]


@bug(
    "BUG-13",
    title="k3 subtracts 1 from exp of a small number.",
    symptom="Early in a run, while the policy is within a thousandth of a nat of the reference, k3 is 0 or "
    "a rounding error below it, though k3 is above 0 wherever the two differ.",
    why="Near 0, k3 is delta²/2. In float32 `exp(delta)` is rounded to the nearest of numbers 6e-8 or "
    "1.2e-7 apart before the 1 is taken away, and what is smaller is gone. `expm1` never adds the "
    "1. The gradient keeps its digits either way, so this spoils a log more than a run.",
    cure="Take `expm1(delta) - delta`, and log-probabilities in float32 at least.",
    quantity="share of tokens at which the two differ and k3 is not above 0, no unit",
    broken=k3_by_subtraction,
    cured=k3,
    truth=_none,
    line="return delta.exp() - delta - 1",
    finding="Near the reference only rounding is left",
    plot=Plot(
        x="log policy − log ref of a token [nats]",
        y="estimate over its true value [no unit]",
        points=_log_ratios,
        at=_over_truth,
        x_scale="log",
    ),
    also=_in_float32,
    thread="unslothai/unsloth-zoo#1240",
    inputs=("logp", "ref_logp"),
    returns="token",
)
def share_not_above_zero(code: Code) -> float:
    """Return how often an estimate in float32 is 0 or less, of tokens on which the two disagree."""
    return float((code(*_near()) <= 0).double().mean())


TOKENS = 100
SHARES = (0.5, 0.6)  # of the first of two words, under the policy and under the reference


def k3_of_the_sequence(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Sum first, and estimate then."""
    log_ratio = masked_sum(logp - ref_logp, mask)
    return torch.expm1(-log_ratio) + log_ratio


def sum_of_k3(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Estimate first, and sum then."""
    return masked_sum(k3(logp, ref_logp), mask)


def _values(code: Code, tokens: int) -> tuple[Float[Tensor, " completion"], Float[Tensor, " completion"]]:
    """Return what the code says of completions of independent tokens of two words, and how likely each is.

    Completions with as many first words are alike, so `tokens` + 1 of them stand for all.
    """
    first = torch.arange(tokens + 1)[:, None] > torch.arange(tokens)
    words = torch.tensor([[share, 1 - share] for share in SHARES], dtype=torch.float64).log()
    logp, ref_logp = (torch.where(first, one, other) for one, other in words)
    weight = (
        torch.tensor([math.comb(tokens, n) for n in range(tokens + 1)], dtype=torch.float64)
        * logp[0].sum().exp()
    )
    return code(logp, ref_logp, torch.ones_like(first)), weight


def _deviation(code: Code, tokens: int) -> float:
    value, weight = _values(code, tokens)
    return float((weight @ (value - weight @ value).square()).sqrt())


def _of_independent_tokens() -> float:
    policy, ref = (torch.tensor([share, 1 - share], dtype=torch.float64) for share in SHARES)
    value = ref / policy - 1 - (ref / policy).log()
    return math.sqrt(TOKENS * (policy @ (value - policy @ value).square()).item())


def _deviations() -> dict[str, float]:
    def sum_of_k1(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
        return masked_sum(k1(logp, ref_logp), mask)

    policy, ref = (torch.tensor([share, 1 - share], dtype=torch.float64) for share in SHARES)
    kl = TOKENS * (policy @ (policy / ref).log()).item()
    value, weight = _values(k3_of_the_sequence, TOKENS)
    return {
        "KL of the completion, nats per sequence": kl,
        "share of completions whose k3 is below the KL, no unit": weight[value < kl].sum().item(),
        "standard deviation of the sum of k1, nats per sequence": _deviation(sum_of_k1, TOKENS),
    }


@bug(
    "BUG-14",
    title="k3 is taken of the completion's log-ratio, not of each token's.",
    symptom="The mean is that of the KL, but it is made of rare spikes: the standard deviation, in nats per "
    "sequence, grows exponentially with the length, and two completions in three read too low.",
    why="To sum inside the exponential is to multiply the ratios of all tokens, and the mean square "
    "of such a product grows like (1 + chi-squared)^T. Its mean is right, but sits in completions "
    "that a batch seldom contains.",
    cure="Take k3 of each token and add up. The mean is the same, and the variance grows like the length.",
    quantity="standard deviation of the estimate for 100 independent tokens, nats per sequence",
    broken=k3_of_the_sequence,
    cured=sum_of_k3,
    truth=_of_independent_tokens,
    line="return torch.expm1(-log_ratio) + log_ratio",
    finding="The scatter explodes with the length",
    plot=Plot(
        x="tokens of the completion",
        y="standard deviation [nats per sequence]",
        points=lambda: [1, 2, 5, 10, 20, 50, 100, 150],
        at=lambda code: [_deviation(code, tokens) for tokens in (1, 2, 5, 10, 20, 50, 100, 150)],
        x_scale="log",
        y_scale="log",
    ),
    also=_deviations,
    thread="huggingface/trl#3556",
    inputs=("logp", "ref_logp", "mask"),
    returns="sequence",
)
def deviation(code: Code) -> float:
    """Return the standard deviation of the code's estimate, exactly."""
    return _deviation(code, TOKENS)
