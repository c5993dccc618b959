"""A kata on the optimum: the policy that a reward and a beta make best."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from kltutor import optimum
from kltutor.katas.calls import Case
from kltutor.katas.inputs import listed, wide
from kltutor.katas.kata import Misconception, register


def optimal_policy(
    ref_logp: Float[Tensor, "batch outcome"], reward: Float[Tensor, "batch outcome"], beta: float
) -> tuple[Float[Tensor, "batch outcome"], Float[Tensor, " batch"]]:
    """Return (log π*, log Z) of the policy that maximises E_π[reward] - beta·KL(π ‖ ref).

        π*(y) = ref(y)·exp(reward(y)/beta) / Z        Z = Σ_y ref(y)·exp(reward(y)/beta)

    Args:
        ref_logp: log-probabilities of every outcome under the reference, normalised; -inf occurs.
        reward: of every outcome.
        beta: reward units per nat, above 0; reward/beta may be in the thousands.

    Returns:
        log π* of every outcome and log Z of every row, in nats; differentiable in reward.
    """
    raise NotImplementedError


def _tilted(ref_logp: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores normalised over the outcomes, and what was taken off."""
    log_z = scores.logsumexp(-1)
    return scores - log_z[:, None], log_z


_REF = wide([0.5, 0.3, 0.2]).log()
_REWARD = wide([0.0, 1.0, 2.0])


def _naive_optimum(ref_logp: Tensor, reward: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    weights = ref_logp.exp() * (reward / beta).exp()
    return (weights / weights.sum(-1, keepdim=True)).log(), weights.sum(-1).log()


def _from(change: Any) -> Any:
    """Return a wrong answer that changes log π* and log Z."""
    return lambda q, r, beta: change(*optimum.optimal_policy(q, r, beta), q, r, beta)


register(
    optimal_policy,
    level=2,
    section="6.1 The closed form, three ways",
    reference=optimum.optimal_policy,
    differentiable=("reward",),
    number=lambda logp, log_z: log_z.reshape(-1)[0],
    cases=(
        Case("three outcomes", {"ref_logp": _REF, "reward": _REWARD, "beta": 0.5}),
        Case(
            "two rows",
            {
                "ref_logp": wide([0.5, 0.5], [0.9, 0.1]).log(),
                "reward": wide([1.0, -1.0], [0.0, 3.0]),
                "beta": 2.0,
            },
        ),
        Case("all completions, moderate", listed("moderate") | {"beta": 0.7}),
        Case("all completions, far", listed("far") | {"beta": 0.2}),
        Case("beta of 10 000", {"ref_logp": _REF, "reward": _REWARD, "beta": 1e4}),
        Case("beta of 0.001", {"ref_logp": _REF, "reward": _REWARD, "beta": 1e-3}, edge=True),
        Case(
            "an outcome without mass",
            {"ref_logp": wide([0.0, 0.4, 0.6]).log(), "reward": _REWARD, "beta": 0.5},
            edge=True,
            gradient=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "beta-multiplied",
            "The reward is multiplied by beta; a larger beta must keep closer to the reference, so divide: "
            "log Z is {got} where {right} is right.",
            lambda q, r, beta: optimum.optimal_policy(q, r, 1 / beta),
        ),
        Misconception(
            "without-reference",
            "The reference is missing: this is softmax(reward/beta), the optimum for a uniform one.",
            lambda q, r, beta: _tilted(q, r / beta),
        ),
        Misconception(
            "uniform-log-z",
            "log π* is right, but Z must weight exp(reward/beta) with the reference: log Z is {got} where "
            "{right} is right.",
            _from(lambda logp, log_z, q, r, beta: (logp, (r / beta).logsumexp(-1))),
        ),
        Misconception(
            "sign",
            "The sign of the reward is turned round: this is the policy that earns least.",
            lambda q, r, beta: optimum.optimal_policy(q, -r, beta),
        ),
        Misconception(
            "not-normalised",
            "log π* is not normalised: subtract log Z.",
            _from(lambda logp, log_z, q, r, beta: (q + r / beta, log_z)),
        ),
        Misconception(
            "the-value",
            "This is beta·log Z, {got}, the maximum of the objective in reward units; log Z is {right} nats.",
            _from(lambda logp, log_z, q, r, beta: (logp, beta * log_z)),
        ),
        Misconception(
            "z",
            "This is Z, {got}; its logarithm is {right}.",
            _from(lambda logp, log_z, q, r, beta: (logp, log_z.exp())),
        ),
        Misconception(
            "minus-log-z",
            "This is -log Z, what is added to normalise; log Z is {right}.",
            _from(lambda logp, log_z, q, r, beta: (logp, -log_z)),
        ),
        Misconception(
            "probabilities",
            "π* comes as probabilities; their logarithms are asked for.",
            _from(lambda logp, log_z, q, r, beta: (logp.exp(), log_z)),
        ),
        Misconception(
            "logarithm-weights",
            "The reference enters by its logarithm where its probability belongs: ref·exp(reward/beta) is "
            "log ref + reward/beta in logs, not log ref times something.",
            lambda q, r, beta: _tilted(q, -q * r / beta),
        ),
        Misconception(
            "whole-batch",
            "Z is summed over the rows too; every row, a prompt, has its own.",
            lambda q, r, beta: (
                q + r / beta - (q + r / beta).logsumexp((0, 1)),
                (q + r / beta).logsumexp((0, 1)).expand(len(q)),
            ),
        ),
        Misconception(
            "reference-tilted",
            "The reference is divided by beta as well: that is ref^(1/beta), the answer to an entropy bonus.",
            lambda q, r, beta: _tilted(q, (q + r) / beta),
        ),
        Misconception(
            "overflow",
            "exp(reward/beta) overflows for a small beta. Stay in logs: log ref + reward/beta, and "
            "logsumexp.",
            _naive_optimum,
        ),
        Misconception(
            "detached",
            "The values are right, but no gradient comes back: something detaches, or leaves torch.",
            lambda q, r, beta: optimum.optimal_policy(q, r.detach(), beta),
        ),
    ),
)
