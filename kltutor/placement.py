"""Where the KL goes: into the reward, or into the loss.

Shapes are (batch, time), one row a completion; mask is True at action tokens, and what stands elsewhere
never matters. Batches of one shape may be stacked on leading axes: each has a loss of its own. log_ratio =
logp - ref_logp, in nats. With beta·KL in the reward the gradient is that of a score function; in the loss it
goes through the estimator itself. The two differ (chapter 3).
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor.checks import check_detached, check_finite, check_logps, check_nonnegative, check_rows, first
from kltutor.estimators import k1, k2, k3
from kltutor.masking import Reduction, last_action, masked_sum, reduce

Estimator = Literal["k1", "k2", "k3"]
Level = Literal["token", "sequence"]
Correction = Literal["none", "stopgrad", "differentiable"]
Ratio = Literal["prefix", "token", "sequence"]

ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_in_reward(
    scores: Float[Tensor, "*stack batch"],
    logp: Float[Tensor, "*stack batch time"],
    ref_logp: Float[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
    beta: float,
    *,
    estimator: Estimator = "k1",
) -> Float[Tensor, "*stack batch time"]:
    """Return the shaped reward r_t = -beta·k(logp_t, ref_logp_t), plus the score at the last action token.

    With k1 the rewards of a row sum to score - beta·Σ log_ratio, so the undiscounted return is an unbiased
    estimate of E[score] - beta·KL(policy ‖ ref) of the sequence, and its policy gradient is exact on-policy.
    With k3 the same sum has the right mean but not the right gradient, since k3 depends on the policy too.

    Args:
        scores: one per completion, before any KL, in reward units.
        logp: log-probabilities of the tokens under the policy that drew them, nats per token.
        ref_logp: the same tokens under the reference.
        mask: True at action tokens; left, right and inner padding are allowed.
        beta: reward units per nat, at least 0.
        estimator: k1 unless you want another objective.

    Returns:
        Rewards in reward units, 0 where masked.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above, or the estimator is unknown.
        ValueError: an input requires grad (a reward is a number, not something to differentiate), beta is
            negative, a score is not finite, dtypes differ, a row has no action token, an action token has
            probability 0 under either model, or the estimator overflows there.

    Source:
        Ziegler et al. (2019); Ouyang et al. (2022).

    Example:
        >>> logp, ref_logp = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
        >>> kl_in_reward(torch.tensor([3.0]), logp, ref_logp, torch.tensor([[True, True, False]]), beta=0.1)
        tensor([[-0.0500,  3.1000,  0.0000]])
    """
    check_detached(scores=scores, logp=logp, ref_logp=ref_logp)
    check_nonnegative(beta=beta)
    check_finite(scores=scores)
    if scores.dtype != logp.dtype:  # the sum would round the score, or promote the rest
        raise ValueError(f"scores are {scores.dtype} and logp {logp.dtype}; convert both to the same dtype.")
    check_rows(mask)
    logp, ref_logp = logp.masked_fill(~mask, 0), ref_logp.masked_fill(~mask, 0)
    check_finite(logp=logp, ref_logp=ref_logp)
    penalty = ESTIMATORS[estimator](logp, ref_logp)
    check_finite(**{estimator: penalty})  # k3 overflows, and 0·inf would be nan
    at_last = torch.zeros_like(mask).scatter_(-1, last_action(mask).unsqueeze(-1), True)
    return -beta * penalty + torch.where(at_last, scores.unsqueeze(-1), 0)


def kl_terms(
    logp: Float[Tensor, "*stack batch time"],
    ref_logp: Float[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
    estimator: Estimator,
    *,
    level: Level = "token",
    old_logp: Float[Tensor, "*stack batch time"] | None = None,
    correction: Correction = "none",
    ratio: Ratio | None = None,
) -> Float[Tensor, "*stack batch time"]:
    """Return the KL term of each token before any reduction, ρ·k: what `kl_loss` reduces to one number.

    Arguments and errors as `kl_loss`. At level "sequence" the whole term stands at the last action token.

    Example:
        >>> mask = torch.tensor([[True, True]])
        >>> logp, ref_logp = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
        >>> kl_terms(logp, ref_logp, mask, "k1"), kl_terms(logp, ref_logp, mask, "k1", level="sequence")
        (tensor([[ 0.5000, -1.0000]]), tensor([[ 0.0000, -0.5000]]))
    """
    check_detached(ref_logp=ref_logp)
    check_rows(mask)
    logp, ref_logp = logp.masked_fill(~mask, 0), ref_logp.masked_fill(~mask, 0)
    if level == "token":
        terms = ESTIMATORS[estimator](logp, ref_logp)
    else:
        check_logps(logp=logp, ref_logp=ref_logp)  # the sums below would hide one bad token
        whole = ESTIMATORS[estimator](logp.sum(-1), ref_logp.sum(-1))
        terms = torch.zeros_like(logp).scatter(-1, last_action(mask).unsqueeze(-1), whole.unsqueeze(-1))
    if correction == "none":
        if old_logp is not None or ratio is not None:
            raise ValueError(
                "old_logp and ratio are used by a correction only, and correction is 'none'. Leave both out, "
                "or choose 'stopgrad' or 'differentiable'."
            )
        return terms
    if old_logp is None:
        raise ValueError(
            f"old_logp is missing; correction {correction!r} needs the sampler's log-probabilities."
        )
    if level == "sequence" and ratio not in (None, "sequence"):
        raise ValueError(
            f"ratio is {ratio!r}; a sequence-level term has one ratio, that of the whole sequence."
        )
    covers = ratio or ("prefix" if level == "token" else "sequence")
    weighted = importance_weight(logp, old_logp, mask, covers, correction) * terms
    undefined = weighted.isnan() & mask
    if undefined.any():
        raise ValueError(
            f"ratio·{estimator} at {first(undefined)} is 0·inf: logp is so far below old_logp and ref_logp "
            f"that the ratio is 0 and {estimator} infinite in {logp.dtype}. Leave such rows out."
        )
    return weighted


def kl_loss(
    logp: Float[Tensor, "*stack batch time"],
    ref_logp: Float[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
    estimator: Estimator,
    *,
    level: Level = "token",
    reduction: Reduction = "sequence_sum",
    old_logp: Float[Tensor, "*stack batch time"] | None = None,
    correction: Correction = "none",
    ratio: Ratio | None = None,
) -> Float[Tensor, "*stack"]:
    """Return a KL penalty to minimise: ρ·k per token or per sequence, reduced over the batch.

    Value and gradient differ. On-policy, without correction and with the reduction "sequence_sum":

    | estimator | value estimates | mean gradient at level "sequence" | mean gradient at level "token" |
    |---|---|---|---|
    | k1 | KL(policy ‖ ref) | 0 | 0 |
    | k2 | ½ E[log_ratio²] | ∇KL(policy ‖ ref) | Σ_t E[∇KL(policy ‖ ref) of token t given its prefix] |
    | k3 | KL(policy ‖ ref) | ∇KL(ref ‖ policy) | Σ_t E[∇KL(ref ‖ policy) of token t given its prefix] |

    A correction multiplies by ρ = policy/old, for samples that an older policy drew, or on-policy with
    old_logp = logp.detach() for its gradient alone. With "stopgrad" the rows of the table hold off-policy.
    With "differentiable" the gradient is that of the mean value, so k1 and k3 both give ∇KL(policy ‖ ref),
    at the token level too if the ratio is that of the prefix or the sequence.

    Args:
        logp: log-probabilities of the tokens under the policy that learns, nats per token; differentiated.
        ref_logp: the same tokens under the reference.
        mask: True at action tokens; left, right and inner padding are allowed.
        estimator: of the log-ratio of each token, or of the sum over the completion.
        level: "token" applies it to each token, "sequence" to the summed log-ratio of each row.
        reduction: as `reduce`; a sequence-level term has only "sequence_sum".
        old_logp: the tokens under the policy that drew them; needed by a correction, and only there.
        correction: none, ρ held fixed, or ρ differentiated.
        ratio: which ρ weights a token-level term: of the tokens up to and including it (None means this
            one), of the token alone (biased beyond one token), or of the whole sequence (more variance). A
            sequence-level term has the ratio of the sequence.

    Returns:
        A scalar in nats, per sequence or per token as the reduction says; inf where either model gives an
        action token probability zero and the estimator is infinite there.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above, or a choice is unknown.
        ValueError: ref_logp or old_logp requires grad; a value is no log-probability; a row has no action
            token; old_logp is missing where a correction needs it or given where none does; the combination
            of level, ratio and reduction has no meaning; or a ratio overflows, or is 0 where the estimator
            is infinite.

    Source:
        Schulman (2020) for k1, k2, k3; Tang and Munos (2025), Liu et al. (2025) for their gradients.

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss = kl_loss(logp, torch.tensor([[-1.5, -1.0]]), torch.tensor([[True, True]]), "k2")
        >>> loss.backward()
        >>> round(loss.item(), 3), logp.grad
        (0.625, tensor([[ 0.5000, -1.0000]]))
    """
    if level == "sequence" and reduction != "sequence_sum":
        raise ValueError(
            f"reduction is {reduction!r}; a sequence-level term is no mean over tokens, so 'sequence_sum' is "
            "expected."
        )
    terms = kl_terms(
        logp, ref_logp, mask, estimator, level=level, old_logp=old_logp, correction=correction, ratio=ratio
    )
    return reduce(terms, mask, reduction)


def importance_weight(
    logp: Float[Tensor, "*stack batch time"],
    old_logp: Float[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
    ratio: Ratio = "prefix",
    correction: Literal["stopgrad", "differentiable"] = "stopgrad",
) -> Float[Tensor, "*stack batch time"]:
    """Return ρ_t = policy/old of each token's prefix (itself included), of the token, or of the sequence.

    E_old[ρ f] = E_policy[f] for any f of the tokens that ρ covers; so a term at token t needs the prefix at
    least, and a per-token ratio is right only for the first token.

    Args:
        logp: under the policy that learns, nats per token.
        old_logp: under the policy that drew the tokens.
        mask: True at action tokens; masked positions count as ratio 1.
        ratio: which tokens ρ covers.
        correction: whether the gradient stops at ρ or flows through it.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above, or a choice is unknown.
        ValueError: old_logp requires grad, has probability zero at an action token (it cannot have been
            drawn), or another dtype than logp; a value is no log-probability; a ratio overflows the dtype.

    Example:
        >>> logp, old_logp = torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0.25, 0.4]]).log()
        >>> importance_weight(logp, old_logp, torch.tensor([[True, True]]))
        tensor([[2.0000, 1.5000]])
    """
    check_detached(old_logp=old_logp)
    if logp.dtype != old_logp.dtype:
        raise ValueError(
            f"logp is {logp.dtype} and old_logp {old_logp.dtype}; convert both to the same dtype."
        )
    logp, old_logp = logp.masked_fill(~mask, 0), old_logp.masked_fill(~mask, 0)
    check_logps(logp=logp, old_logp=old_logp)
    check_finite(old_logp=old_logp)
    log_ratio = logp - old_logp
    if ratio == "prefix":
        log_ratio = log_ratio.cumsum(-1)
    elif ratio == "sequence":
        log_ratio = masked_sum(log_ratio, mask).unsqueeze(-1).expand_as(log_ratio)
    weight = log_ratio.exp()
    if weight.isinf().any():  # a loss may still be finite then, but its gradient is nan
        worst = log_ratio.detach().max().item()
        raise ValueError(
            f"the largest log of a ratio policy/old is {worst:.4g}, and its exponential overflows "
            f"{logp.dtype}: old can hardly have drawn these tokens. Check old_logp, or leave such rows out."
        )
    return weight.detach() if correction == "stopgrad" else weight


def gae(
    rewards: Float[Tensor, "*stack batch time"],
    values: Float[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
    gamma: float,
    gae_lambda: float,
    *,
    last_value: Float[Tensor, "*stack batch"] | None = None,
) -> Float[Tensor, "*stack batch time"]:
    """Return generalised advantages A_t = Σ_l (gamma·gae_lambda)^l δ_{t+l}, δ_t = r_t + gamma·V_{t+1} - V_t.

    t + 1 is the next action token of the row, so that padding on either side and gaps between turns change
    nothing. With values 0, gamma = 1 and gae_lambda = 1 it is the undiscounted reward-to-go.

    Args:
        rewards: reward of each token, as from `kl_in_reward`.
        values: V of the state *before* each token, in reward units.
        mask: True at action tokens.
        gamma: discount, 0 to 1.
        gae_lambda: 0 gives one-step errors (low variance, biased by V), 1 gives return minus value.
        last_value: V of the state *after* the last action token: 0 for a completion that ended, the
            critic's value for one that was cut off. None: every row ended, or the horizon ends it.

    Returns:
        Advantages in reward units, 0 where masked. Add the values to get the returns.

    Raises:
        jaxtyping.TypeCheckError: shapes or dtypes differ from the above.
        ValueError: an input requires grad or is not finite at an action token, gamma or gae_lambda lies
            outside 0 to 1, or a row has no action token.

    Source:
        Schulman et al. (2016), "High-Dimensional Continuous Control Using Generalized Advantage Estimation".

    Example:
        >>> rewards, values = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.25, 9.0]])
        >>> gae(rewards, values, torch.tensor([[True, True, False]]), gamma=1.0, gae_lambda=1.0)
        tensor([[0.5000, 0.7500, 0.0000]])
    """
    after = rewards.new_zeros(rewards.shape[:-1]) if last_value is None else last_value
    check_detached(rewards=rewards, values=values, last_value=after)
    for name, number in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}; a number from 0 to 1 is expected.")
    check_rows(mask)
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    check_finite(rewards=rewards, values=values, last_value=after)
    advantage, columns = torch.zeros_like(after), []
    for t in reversed(range(mask.shape[-1])):
        error = rewards[..., t] + gamma * after - values[..., t]
        now = error + gamma * gae_lambda * advantage
        advantage = torch.where(mask[..., t], now, advantage)  # padding hands on what comes after it
        after = torch.where(mask[..., t], values[..., t], after)
        columns.append(torch.where(mask[..., t], now, 0))
    return torch.stack(columns[::-1], -1)
