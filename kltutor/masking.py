"""From logits to one number: log-probabilities of tokens, masks, and the three ways to reduce a batch.

Shapes are (batch, time) throughout. A mask is boolean and True counts. What stands at a masked
position never matters, not even inf or nan. Batches of one shape may be stacked on leading axes: each is
reduced as if it were alone.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor.checks import check_logits, check_rows, check_tokens

Reduction = Literal["token_mean", "sequence_sum", "sequence_mean"]


def token_logps(
    logits: Float[Tensor, "batch time vocab"], tokens: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Return log softmax(logits)[token], the log-probability of each token.

    `logits[:, t]` must be the logits that *predict* `tokens[:, t]`. A causal language model that reads
    tokens 0..T-1 predicts 1..T, so pass `logits[:, :-1]` with `tokens[:, 1:]`.

    Args:
        logits: unnormalised scores; an entry may be -inf (a banned token), none nan or +inf.
        tokens: indices into the vocabulary. Padding must be a valid index too; mask it out later.

    Returns:
        Nats per token, in the dtype of the logits.

    Raises:
        jaxtyping.TypeCheckError: shapes differ, logits are not floating or tokens not integer.
        ValueError: a token lies outside the vocabulary, a logit is nan or +inf, or a position bans all.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
        >>> token_logps(logits, torch.tensor([[1, 0]]))
        tensor([[-0.6931, -0.1269]])
    """
    check_tokens(tokens, logits.shape[-1])
    check_logits(logits=logits)
    return logits.log_softmax(-1).gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


def masked_sum(
    values: Float[Tensor, "*stack batch time"], mask: Bool[Tensor, "*stack batch time"]
) -> Float[Tensor, "*stack batch"]:
    """Return Σ_t values·mask of each row; a row without a True sums to 0.

    From nats per token it makes nats per sequence. Masked values are replaced, not multiplied, so a
    masked inf or nan is harmless.

    Raises:
        jaxtyping.TypeCheckError: shapes differ, or the mask is not boolean.

    Example:
        >>> values = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 5.0, 6.0]])
        >>> masked_sum(values, torch.tensor([[True, True, False], [True, True, True]]))
        tensor([ 3., 15.])
    """
    return values.masked_fill(~mask, 0).sum(-1)


def masked_mean(
    values: Float[Tensor, "*stack batch time"], mask: Bool[Tensor, "*stack batch time"]
) -> Float[Tensor, "*stack batch"]:
    """Return Σ_t values·mask / Σ_t mask of each row: nats per token of that row.

    Raises:
        jaxtyping.TypeCheckError: shapes differ, or the mask is not boolean.
        ValueError: a row has no True, so its mean does not exist.

    Example:
        >>> masked_mean(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([1.5000])
    """
    check_rows(mask)
    return masked_sum(values, mask) / mask.sum(-1)


def reduce(
    values: Float[Tensor, "*stack batch time"], mask: Bool[Tensor, "*stack batch time"], how: Reduction
) -> Float[Tensor, "*stack"]:
    """Reduce a batch of per-token values to one number, in one of three ways that differ.

    With v = k1 or k3 per token and completions y sampled from the policy, each estimates:

    * ``"sequence_sum"``: mean over rows of Σ_t v m, an unbiased estimate of the sequence KL.
    * ``"token_mean"``: Σ v m / Σ m over the batch, a ratio estimate of KL_seq / E|y|.
    * ``"sequence_mean"``: mean over rows of (Σ_t v m / Σ_t m), that is E[(1/|y|) Σ_t v_t], which is not
      a KL; with k1 it can be negative in expectation.

    Args:
        values: one value per token, usually nats per token.
        mask: True at action tokens.
        how: which of the three.

    Returns:
        One number a batch; nats per sequence for ``"sequence_sum"``, nats per token for the other two.

    Raises:
        jaxtyping.TypeCheckError: shapes differ, the mask is not boolean, or `how` is unknown.
        ValueError: the batch is empty, or a row has no action token.

    Example:
        >>> values = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
        >>> mask = torch.tensor([[True, False, False], [True, True, True]])
        >>> [reduce(values, mask, how).item() for how in ("token_mean", "sequence_sum", "sequence_mean")]
        [1.5, 3.0, 2.0]
    """
    if values.shape[-2] == 0:
        raise ValueError("values has no rows; a batch of at least one completion is expected.")
    check_rows(mask)
    if how == "token_mean":
        return masked_sum(values, mask).sum(-1) / mask.sum((-2, -1))
    if how == "sequence_sum":
        return masked_sum(values, mask).mean(-1)
    if how == "sequence_mean":
        return masked_mean(values, mask).mean(-1)
    raise ValueError(f"how is {how!r}; expected one of {', '.join(get_args(Reduction))}.")


def last_action(mask: Bool[Tensor, "*stack batch time"]) -> Int[Tensor, "*stack batch"]:
    """Return the index of the last True of each row, where a sequence-level score belongs.

    Right for gaps (several turns) and for padding on either side.

    Raises:
        jaxtyping.TypeCheckError: the mask is not boolean.
        ValueError: a row has no True. The common `cumsum` recipe returns 0 there, a prompt token.

    Example:
        >>> last_action(torch.tensor([[False, True, True, False], [True, False, True, True]]))
        tensor([2, 3])
    """
    check_rows(mask)
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, positions, -1).amax(-1)
