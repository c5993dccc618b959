"""Bugs of the charge for the KL: a bonus in its place, paid twice, or never."""

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.bugs.lab import REF, TASK, descend, kl_to_ref, seq_logp
from kltutor.optimum import optimal_policy

BETA = 1.0  # reward units per nat of the sequence
STEPS = 60

Batch = Float[Tensor, " batch"]


def negated_penalty(scores: Batch, logp: Batch, ref_logp: Batch, beta: float) -> Batch:
    """Copy the minus of reward minus beta·KL into a loss, which has been negated already."""
    kl = (logp - ref_logp).square() / 2
    policy_loss = -scores * logp
    return policy_loss - beta * kl


def penalty_in_the_loss(scores: Batch, logp: Batch, ref_logp: Batch, beta: float) -> Batch:
    """Descend on minus the reward plus beta times the KL."""
    kl = (logp - ref_logp).square() / 2
    policy_loss = -scores * logp
    return policy_loss + beta * kl


def penalty_in_both(scores: Batch, logp: Batch, ref_logp: Batch, beta: float) -> Batch:
    """Switch both placements on."""
    kl = (logp - ref_logp).square() / 2
    rewards = scores - beta * (logp - ref_logp).detach()
    policy_loss = -rewards * logp
    return policy_loss + beta * kl


def unused_coefficient(scores: Batch, logp: Batch, ref_logp: Batch, beta: float) -> Batch:
    """Compute the penalty, and use its shape."""
    kl = (logp - ref_logp).detach()
    returns = torch.ones_like(kl) * scores
    return -returns * logp


def penalty_in_the_reward(scores: Batch, logp: Batch, ref_logp: Batch, beta: float) -> Batch:
    """Subtract beta times the log-ratio from the reward."""
    kl = (logp - ref_logp).detach()
    returns = scores - beta * kl
    return -returns * logp


def _path(code: Code, beta: float, steps: int, size: float) -> list[Float[Tensor, "prompt completion"]]:
    """Return the policies along a training that starts at the reference and descends on the code's loss."""
    scores, ref_logp = TASK.reward.flatten(), seq_logp(REF).flatten()

    def loss(logp: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        losses: Tensor = code(scores, logp, ref_logp, beta)
        return losses

    return descend(loss, steps=steps, size=size, start=seq_logp(REF))


def _kl_of_optimum(beta: float = BETA) -> float:
    return kl_to_ref(optimal_policy(seq_logp(REF), TASK.reward, beta)[0])


def _at_twice_beta() -> dict[str, float]:
    return {"KL of the optimum at twice beta, nats per sequence": _kl_of_optimum(2 * BETA)}


def _betas() -> list[float]:
    return [0.6, 0.8, 1.0, 1.4, 2.0, 2.8, 4.0]


FIRST_STEPS = Plot(
    x="step",
    y="KL(policy ‖ ref) [nats per sequence]",
    points=lambda: list(range(13)),
    at=lambda code: [kl_to_ref(logp) for logp in _path(code, BETA, 12, 0.25 / BETA)],
)
BY_BETA = Plot(
    x="beta [reward units per nat]",
    y="KL(policy ‖ ref) after training [nats per sequence]",
    points=_betas,
    at=lambda code: [kl_to_ref(_path(code, beta, STEPS, 0.2)[-1]) for beta in _betas()],
    x_scale="log",
)


@bug(
    "BUG-24",
    title="The KL is computed, and its coefficient multiplies nothing.",
    symptom="The KL is logged, in nats, the reference costs its memory, and runs with beta 0 and beta 10 are "
    "the same to the last digit.",
    why="`kl` lends its shape and nothing else, so beta reaches no number. All the names are there, "
    "which is why this survives a reading.",
    cure="Subtract beta times the log-ratio from the reward, or refuse a coefficient that nothing reads.",
    quantity="KL(policy ‖ ref) after 60 steps, nats per sequence",
    broken=unused_coefficient,
    cured=penalty_in_the_reward,
    truth=_kl_of_optimum,
    line="returns = torch.ones_like(kl) * scores",
    finding="No beta makes a difference",
    plot=BY_BETA,
    thread="THUDM/slime#397",
)
@bug(
    "BUG-23",
    title="The KL is charged in the reward and in the loss.",
    symptom="The policy stays closer to the reference than beta asks, in nats per sequence, and learns less.",
    why="Each placement alone charges beta·KL, so that the two together charge twice: the policy ends "
    "at 0.046 nats, where 2·beta leads, and not at 0.190. Either line could go. The order of a "
    "configuration file decides which one is called the mistake.",
    cure="Choose one placement, and refuse a configuration with two coefficients.",
    quantity="KL(policy ‖ ref) after 60 steps, nats per sequence",
    broken=penalty_in_both,
    cured=penalty_in_the_loss,
    truth=_kl_of_optimum,
    line="rewards = scores - beta * (logp - ref_logp).detach()",
    finding="As if beta were twice as large",
    plot=BY_BETA,
    also=_at_twice_beta,
    thread="verl-project/verl#265",
)
@bug(
    "BUG-22",
    title="The penalty is negated twice, so distance is rewarded.",
    symptom="The KL, in nats per sequence, grows faster with beta than without, until the policy collapses.",
    why="An objective is reward minus beta·KL, and a loss is its negative, with a plus before the KL. "
    "Negate the reward by hand, copy the minus from the paper, and distance is paid for.",
    cure="In a loss the KL has a plus, in a reward a minus. Raise beta tenfold: the KL must fall.",
    quantity="KL(policy ‖ ref) after 60 steps, nats per sequence",
    broken=negated_penalty,
    cured=penalty_in_the_loss,
    truth=_kl_of_optimum,
    line="return policy_loss - beta * kl",
    finding="Away, and faster with every step",
    plot=FIRST_STEPS,
    thread="qiancheng0/ToolRL#52",
)
def kl_after_descent(code: Code) -> float:
    """Return how far from the reference the policy is after training with the code's loss."""
    return kl_to_ref(_path(code, BETA, STEPS, 0.5 / BETA)[-1])
