"""Bugs of the loop around the loss: what the reference is, and how fast beta answers."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kltutor import exact
from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.bugs.lab import REF, TASK, kl_to_ref, rows, seq_logp
from kltutor.controllers import ZieglerBeta
from kltutor.estimators import k1, k2, k3
from kltutor.optimum import frontier, optimal_policy
from kltutor.tasks import TabularPolicy

EPISODES = 512  # of one update
TARGET = 0.5  # nats per sequence
UPDATES = 30  # the swings are chaotic: after twice as many the third digit is rounding


def eager_controller() -> ZieglerBeta:
    """Choose a horizon below the number of episodes of one update: the gain is 2."""
    return ZieglerBeta(0.5, TARGET, horizon=EPISODES / 2)


def patient_controller() -> ZieglerBeta:
    """Choose a horizon of a few updates: the gain is 0.4."""
    return ZieglerBeta(0.5, TARGET, horizon=EPISODES * 2.5)


def _at_target() -> float:
    return 0.0


def _follow(rule: ZieglerBeta, updates: int) -> list[float]:
    """Return KL/target - 1 at each update, of a policy that is at the optimum of every beta."""
    beta, errors = rule.beta, []
    for _ in range(updates):
        measured = kl_to_ref(optimal_policy(seq_logp(REF), TASK.reward, beta)[0])
        errors.append(measured / TARGET - 1)
        beta = rule.update(measured, EPISODES)
    return errors


def _gain_times_response() -> dict[str, float]:
    settled = patient_controller()
    _follow(settled, UPDATES)
    beta = torch.tensor([settled.beta], dtype=torch.float64)
    there = frontier(seq_logp(REF), TASK.reward, beta)
    response = (there.variance.mean() / (beta**2 * there.kl.mean())).item()  # -dlog KL / dlog beta
    gains = {"broken": eager_controller(), "cured": patient_controller()}
    return {"response of the KL, -dlog KL / dlog beta": response} | {
        f"gain times response, {name}": EPISODES / rule.horizon * response for name, rule in gains.items()
    }


@bug(
    "BUG-04",
    title="The gain of the controller times the response of the KL is 2 or more.",
    symptom="The KL, in nats per sequence, swings about its target, beta with it, and neither settles.",
    why="Near its target one update multiplies the error by 1 minus gain times response, where the "
    "gain is episodes/horizon. Here that is 1 - 4.2: the error changes its sign and grows, until "
    "the controller's clip holds it.",
    cure="Lengthen the horizon until episodes/horizon times -dlog KL/dlog beta is well below 2, or below 1 "
    "where the measured KL is one update old.",
    quantity="largest relative error of the KL in the last 10 of 30 updates, no unit",
    broken=eager_controller,
    cured=patient_controller,
    truth=_at_target,
    line="return ZieglerBeta(0.5, TARGET, horizon=EPISODES / 2)",
    finding="One controller settles, the other swings",
    plot=Plot(
        x="update",
        y="KL over its target, minus 1 [no unit]",
        points=lambda: list(range(UPDATES)),
        at=lambda code: _follow(code(), UPDATES),
    ),
    also=_gain_times_response,
    thread="verl-project/verl#1984",
)
def largest_late_error(code: Code) -> float:
    """Return how far from its target the KL still is after 20 updates of the code's controller."""
    return max(abs(error) for error in _follow(code(), UPDATES)[-10:])


BETA = 1.0  # reward units per nat


def shared_reference(policy: TabularPolicy) -> TabularPolicy:
    """Keep another name for the same weights."""
    return policy


def frozen_reference(policy: TabularPolicy) -> TabularPolicy:
    """Keep a copy, taken before the first step, that no optimiser holds."""
    return copy.deepcopy(policy).requires_grad_(False)


def _train(code: Code, steps: int) -> tuple[TabularPolicy, TabularPolicy]:
    """Return the policy after exact natural ascent of E[r] - beta·KL, and the reference that it was given."""
    policy = copy.deepcopy(REF)
    ref = code(policy)

    def objective(moving: nn.Module) -> Tensor:
        reward = exact.expectation(TASK.reward, exact.seq_logp(moving, TASK), TASK)
        return reward - BETA * exact.kl(moving, ref, TASK)

    for _ in range(steps):
        moved = exact.ascend(policy, objective, TASK, steps=1, step_size=1 / BETA)
        policy.load_state_dict(moved.state_dict())  # in place, as an optimiser does
    return policy, ref


def _kl_of_optimum() -> float:
    return kl_to_ref(optimal_policy(seq_logp(REF), TASK.reward, BETA)[0])


def _no_penalty() -> dict[str, float]:
    policy, ref = _train(shared_reference, 2)
    found = {
        f"largest size of {estimator.__name__} with the shared reference, nats": estimator(
            rows(policy), rows(ref)
        )
        .abs()
        .max()
        .item()
        for estimator in (k1, k2, k3)
    }
    slope = exact.gradient(lambda moving: exact.kl(moving, ref, TASK), policy)
    return found | {"largest entry of its gradient, nats per logit": slope.abs().max().item()}


def _kl_from_start(code: Code, steps: int) -> float:
    policy, _ = _train(code, steps)
    return exact.kl(policy, REF, TASK).item()


@bug(
    "BUG-05",
    title="The reference is the policy itself.",
    symptom="The logged KL is 0 nats at every step, while the policy leaves its start as if beta were 0.",
    why="An assignment copies no weights. The optimiser moves both names at once, the log-ratio of "
    "every token stays 0, and so does the gradient of every estimator.",
    cure="Copy the weights before the first step and give the copy to no optimiser. Check that the KL is 0 "
    "at step 0 and above 0 after it.",
    quantity="KL(policy ‖ start) after 12 steps, nats per sequence",
    broken=shared_reference,
    cured=frozen_reference,
    truth=_kl_of_optimum,
    line="return policy",
    finding="Away as if beta were 0",
    plot=Plot(
        x="step",
        y="KL(policy ‖ start) [nats per sequence]",
        points=lambda: [0, 1, 2, 3, 4, 6, 8, 10, 12],
        at=lambda code: [_kl_from_start(code, steps) for steps in (0, 1, 2, 3, 4, 6, 8, 10, 12)],
    ),
    also=_no_penalty,
    thread="huggingface/trl#702",
)
def kl_from_start(code: Code) -> float:
    """Return how far from its start the policy is after training with the code's reference."""
    return _kl_from_start(code, 12)


def kl_of_the_update(
    logp: Float[Tensor, "prompt completion"],
    old_logp: Float[Tensor, "prompt completion"],
    ref_logp: Float[Tensor, "prompt completion"],
) -> Float[Tensor, ""]:
    """Take the KL that the update has at hand."""
    log_ratio = logp - old_logp
    return (logp.exp() * log_ratio).sum(-1).mean()


def kl_to_the_reference(
    logp: Float[Tensor, "prompt completion"],
    old_logp: Float[Tensor, "prompt completion"],
    ref_logp: Float[Tensor, "prompt completion"],
) -> Float[Tensor, ""]:
    """Measure what the target is stated in."""
    log_ratio = logp - ref_logp
    return (logp.exp() * log_ratio).sum(-1).mean()


def _heard(code: Code) -> list[float]:
    """Return KL(policy ‖ ref) at each update of a policy whose controller hears the code's reading."""
    rule, ref, kls = patient_controller(), seq_logp(REF), []
    old = optimal_policy(ref, TASK.reward, rule.beta)[0]
    for _ in range(UPDATES):
        logp = optimal_policy(ref, TASK.reward, rule.beta)[0]
        rule.update(float(code(logp, old, ref)), EPISODES)
        kls.append(kl_to_ref(logp))
        old = logp
    return kls


def _target() -> float:
    return TARGET


@bug(
    "BUG-28",
    title="The controller of the KL to the reference hears the KL of one update.",
    symptom="beta falls at every update, since one update never moves the policy by the target, and the KL "
    "to the reference rises past it, in nats per sequence, unseen by the controller.",
    why="The target is stated for KL(policy ‖ ref). What arrives is the KL from the old policy to the "
    "new, which is small by construction. The controller reads far below its target, and lowers "
    "the price.",
    cure="Feed the KL in which the target is stated, and name it where it is passed.",
    quantity="KL(policy ‖ ref) after 30 updates, nats per sequence",
    broken=kl_of_the_update,
    cured=kl_to_the_reference,
    truth=_target,
    line="log_ratio = logp - old_logp",
    finding="Past the target, and on",
    plot=Plot(
        x="update",
        y="KL(policy ‖ ref) [nats per sequence]",
        points=lambda: list(range(UPDATES)),
        at=_heard,
    ),
    thread="CarperAI/trlx#361",
)
def kl_with_controller(code: Code) -> float:
    """Return where the KL is after 30 updates of a controller that hears the code's reading."""
    return _heard(code)[-1]
