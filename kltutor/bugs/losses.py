"""Bugs of a KL as a loss: its value is right, and its gradient is none, or not that of the KL."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import exact
from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.bugs.lab import MOVES, POLICY, REF, TASK, descend, distances, kl_to_ref, ref_at, rows, seq_logp
from kltutor.masking import masked_sum
from kltutor.tasks import TabularPolicy


def k1_as_loss(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Take an unbiased estimate for a loss."""
    log_ratio = masked_sum(logp - ref_logp, mask)
    return log_ratio


def without_gradient(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Save memory where the reference is compared."""
    with torch.no_grad():
        log_ratio = masked_sum(logp - ref_logp, mask)
        kl = log_ratio.square() / 2
    return kl


def with_gradient(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Keep the graph where the policy is compared; the reference comes without one."""
    log_ratio = masked_sum(logp - ref_logp, mask)
    kl = log_ratio.square() / 2
    return kl


def k2_of_each_token(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Estimate first, and sum then, as for a value."""
    log_ratio = logp - ref_logp
    return masked_sum(log_ratio.square() / 2, mask)


def k2_of_the_sequence(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Sum first: the slope in each token's logp is the whole log-ratio."""
    log_ratio = masked_sum(logp - ref_logp, mask)
    return log_ratio.square() / 2


def mean_gradient(code: Code, ref: TabularPolicy) -> Float[Tensor, " logit"]:
    """Return what the code's backward pass gives on average, of completions drawn from the policy."""

    def loss(logp: Tensor, mask: Tensor, ref_logp: Tensor) -> Tensor:
        losses: Tensor = code(logp, ref_logp, mask)
        return losses + 0 * logp.sum(-1)  # a loss without a graph has gradient 0, and is no error here

    return exact.expected_gradient(loss, POLICY, TASK, given=[rows(ref)]).mean


def true_gradient(ref: TabularPolicy) -> Float[Tensor, " logit"]:
    """Return ∇KL(policy ‖ ref)."""
    return exact.gradient(lambda moving: exact.kl(moving, ref, TASK), POLICY)


def _missing(code: Code, ref: TabularPolicy) -> float:
    right = true_gradient(ref)
    return float((mean_gradient(code, ref) - right).norm() / right.norm())


def _nothing_missing() -> float:
    return 0.0


def _length_of_gradient() -> dict[str, float]:
    return {
        "length of the true gradient, nats per logit": true_gradient(REF).norm().item(),
        "length of the mean gradient of k1, nats per logit": mean_gradient(k1_as_loss, REF).norm().item(),
    }


def _cosine() -> dict[str, float]:
    one, other = mean_gradient(k2_of_each_token, REF), true_gradient(REF)
    return {"cosine of the two gradients, no unit": (one @ other / one.norm() / other.norm()).item()}


def _from_the_policy(code: Code) -> list[float]:
    """Return the KL along a descent on the code's loss alone, which begins at POLICY."""

    def loss(logp: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        losses: Tensor = code(logp[:, None], seq_logp(REF).flatten()[:, None], torch.ones(len(logp), 1) > 0)
        return losses + 0 * logp

    return [kl_to_ref(logp) for logp in descend(loss, steps=10, size=0.25, start=seq_logp(POLICY))]


def _moved() -> list[float]:
    return distances()[1:]


def _at_moved(measure: Callable[[Code, TabularPolicy], float]) -> Callable[[Code], list[float]]:
    return lambda code: [measure(code, ref_at(move)) for move in MOVES[1:]]


@bug(
    "BUG-21",
    title="The tokens' gradients are added up for the gradient of the completion's KL.",
    symptom="As a reward the sum over tokens and the log-ratio of the completion are one number, in nats per "
    "sequence; as losses they pull in different directions.",
    why="A token changes its own log-ratio and, through the prefix, all that follow. A sum of "
    "per-token losses holds the prefixes fixed and keeps the first part only; a third of the "
    "gradient is wrong here. In the reward the log-ratio of the whole completion meets the score "
    "of every token, and nothing is lost.",
    cure="Let each token answer for what follows it: put k1 in the reward, or square the sum over the "
    "completion.",
    quantity="distance of the mean gradient from the true one, over the length of that, no unit",
    broken=k2_of_each_token,
    cured=k2_of_the_sequence,
    truth=_nothing_missing,
    line="return masked_sum(log_ratio.square() / 2, mask)",
    finding="A part of the gradient is never there",
    plot=Plot(
        x="KL(policy ‖ ref) [nats per sequence]",
        y="wrong part of the gradient [no unit]",
        points=_moved,
        at=_at_moved(_missing),
    ),
    also=_cosine,
    thread="huggingface/trl#2562",
    inputs=("logp", "ref_logp", "mask"),
    returns="sequence",
)
@bug(
    "BUG-20",
    title="The KL in the loss is computed under `no_grad`.",
    symptom="The logged KL is right, in nats, and the loss contains it, yet no beta slows the policy down.",
    why="Under `no_grad` the term is a number: it shifts the loss and pulls at nothing. No error is "
    "raised, since the rest of the loss has a graph.",
    cure="Only the reference's forward pass belongs under `no_grad`. Check that the term has a `grad_fn`.",
    quantity="distance of the mean gradient from the true one, over the length of that, no unit",
    broken=without_gradient,
    cured=with_gradient,
    truth=_nothing_missing,
    line="with torch.no_grad():",
    finding="Descent on this term alone: nothing moves",
    plot=Plot(
        x="step",
        y="KL(policy ‖ ref) [nats per sequence]",
        points=lambda: list(range(11)),
        at=_from_the_policy,
    ),
    thread="allenai/open-instruct#530",
    inputs=("logp", "ref_logp", "mask"),
    returns="sequence",
)
@bug(
    "BUG-19",
    title="k1 is the loss.",
    symptom="The logged KL is right, in nats, and its gradient is noise with mean 0: the reference drops "
    "out of the derivative.",
    why="A backward pass holds the samples fixed. Then log ref is a constant, and what is left is the "
    "mean of the score, which is 0. The KL also depends on the policy through what is drawn, and "
    "this autograd does not see.",
    cure="Put k1 in the reward. As a loss take half the square of the completion's log-ratio.",
    quantity="distance of the mean gradient from the true one, over the length of that, no unit",
    broken=k1_as_loss,
    cured=k2_of_the_sequence,
    truth=_nothing_missing,
    line="return log_ratio",
    finding="No pull at any distance",
    plot=Plot(
        x="KL(policy ‖ ref) [nats per sequence]",
        y="length of the mean gradient [nats per logit]",
        points=distances,
        at=lambda code: [mean_gradient(code, ref_at(move)).norm().item() for move in MOVES],
    ),
    also=_length_of_gradient,
    thread="allenai/open-instruct#535",
    inputs=("logp", "ref_logp", "mask"),
    returns="sequence",
)
def missing_gradient(code: Code) -> float:
    """Return how far the mean gradient of the code is from the true one, relative to its length."""
    return _missing(code, REF)
