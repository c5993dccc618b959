"""The optimum of the KL-regularised objective over listed outcomes, in closed form."""

from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_distributions, check_finite, check_positive


def optimal_policy(
    ref_logp: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"], beta: float
) -> tuple[Float[Tensor, "*batch outcome"], Float[Tensor, "*batch"]]:
    """Return log π* and log Z of the maximiser of E_π[reward] - beta·KL(π ‖ ref).

    π*(y) = ref(y) exp(reward(y)/beta) / Z with Z = Σ ref exp(reward/beta). It is unique for beta > 0, and
    zero exactly where ref is. The maximum itself is beta·log Z.

    Args:
        ref_logp: log-probabilities of every outcome, normalised along the last axis; -inf allowed.
        reward: finite, in the same unit as beta times a nat.
        beta: coefficient of the KL, above 0.

    Returns:
        (log-probabilities of π*, log Z in nats).

    Raises:
        jaxtyping.TypeCheckError: shapes differ or a dtype is not floating.
        ValueError: ref_logp is not normalised, a reward is not finite, or beta is not above 0 or so small
            that reward / beta overflows.

    Source:
        Rafailov et al. (2023), eq. 4. Korbak et al. (2022) read it as a posterior.

    Example:
        >>> import torch
        >>> ref_logp = torch.tensor([0.5, 0.5]).log()
        >>> logp, log_z = optimal_policy(ref_logp, torch.tensor([1.0, 0.0]), beta=1.0)
        >>> logp.exp(), round(log_z.item(), 4)
        (tensor([0.7311, 0.2689]), 0.6201)
    """
    check_distributions(ref_logp=ref_logp)
    check_finite(reward=reward)
    check_positive(beta=beta)
    tilt = reward / beta
    check_finite(**{"reward / beta": tilt})
    scores = ref_logp + tilt
    log_z = scores.logsumexp(-1)
    return scores - log_z.unsqueeze(-1), log_z
