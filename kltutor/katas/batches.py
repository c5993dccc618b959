"""Katas on batches: log-probabilities of tokens, means under a mask, the last token that counts."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor import masking
from kltutor.katas.calls import Case
from kltutor.katas.inputs import MASK, completions, token_cases, wide
from kltutor.katas.kata import Misconception, register
from kltutor.katas.mistakes import detached, multiplied, scaled


def token_logps(
    logits: Float[Tensor, "batch time vocab"], tokens: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch time-1"]:
    """Return log π(token | what came before) of every token but the first, from a causal model's logits.

    The model reads tokens[:, 0] … tokens[:, T-1]; its logits at t predict the token at t + 1. So the first
    token has no log-probability, and the last logits predict nothing: (batch, time) becomes (batch, time-1).

        log π(token) = logit of the token - log Σ exp(all logits)

    Args:
        logits: any real numbers; -inf bans a token, and gaps of 800 between two of them occur.
        tokens: indices into the vocabulary.

    Returns:
        Nats per token, never above 0; differentiable in the logits.
    """
    raise NotImplementedError


def masked_mean(
    values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Return the mean of the values at which the mask is True, one for every row: Σ_t v m / Σ_t m.

    What stands at a masked position must not matter, not even nan. Every row has at least one True.

    Args:
        values: one a token, such as nats per token.
        mask: True counts. Padding may stand on either side, and between two turns.

    Returns:
        One mean a row, in the unit of the values; differentiable in them.
    """
    raise NotImplementedError


def last_action(mask: Bool[Tensor, "batch time"]) -> Int[Tensor, " batch"]:
    """Return the index of the last True of every row: where the score of a completion belongs.

    Padding may stand on either side, and False between two turns. Every row has at least one True.

    Args:
        mask: True at the tokens that the policy chose.

    Returns:
        One position a row, from 0 to time - 1.
    """
    raise NotImplementedError


def _token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    return masking.token_logps(logits[:, :-1], tokens[:, 1:])


def _picked(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return the score of every token but the first, predicted one place before."""
    return scores[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


_LOGITS = wide([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [1.0, 1.0, 0.0]])
_TOKENS = torch.tensor([[0, 2, 1]])


def _sequences(label: str, world: Any) -> Case:
    return Case(label, {name: completions(world)[name] for name in ("logits", "tokens")})


register(
    token_logps,
    level=1,
    section="2.9 The negative-KL clinic",
    reference=_token_logps,
    differentiable=("logits",),
    cases=(
        Case("three tokens", {"logits": _LOGITS, "tokens": _TOKENS}),
        _sequences("all completions, moderate logits", "moderate"),
        _sequences("all completions, logits far apart", "far"),
        Case(
            "a gap of 800 between two logits",
            {"logits": wide([[800.0, 0.0], [0.0, 0.0]]), "tokens": torch.tensor([[0, 1]])},
            edge=True,
        ),
        Case(
            "a banned token",
            {"logits": wide([[1.0, -math.inf, 0.0], [0.0, 0.0, 0.0]]), "tokens": torch.tensor([[0, 2]])},
            edge=True,
        ),
    ),
    misconceptions=(
        Misconception(
            "unshifted",
            "Off by one: logits at t predict the token at t + 1, and here they score the token at t itself; "
            "the two log-probabilities sum to {got} nats in place of {right}.",
            lambda logits, tokens: masking.token_logps(logits[:, 1:], tokens[:, 1:]),
        ),
        Misconception(
            "shifted-logits-only",
            "The first logits are paired with the first token, which the model read before it predicted "
            "anything; drop the last logits and the first token, not the last of both.",
            lambda logits, tokens: masking.token_logps(logits[:, :-1], tokens[:, :-1]),
        ),
        Misconception(
            "unshifted-and-first",
            "Off by one: logits at t predict the token at t + 1. Nothing predicts the first token, so it has "
            "no value: one less than there are tokens is asked for.",
            lambda logits, tokens: logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0],
        ),
        Misconception(
            "shifted-backwards",
            "Shifted the wrong way: the logits at t are paired with the token at t - 1, which the model has "
            "read; drop the last logits and the first token.",
            lambda logits, tokens: masking.token_logps(logits[:, 1:], tokens[:, :-1]),
        ),
        Misconception(
            "raw-logits",
            "These are logits, not log-probabilities: log Σ exp of the vocabulary is not subtracted, and the "
            "sum is {got} in place of {right} nats.",
            lambda logits, tokens: _picked(logits, tokens),
        ),
        Misconception(
            "softmax-after-gather",
            "The softmax is taken over the tokens of the completion, after gathering; it belongs over the "
            "vocabulary, before.",
            lambda logits, tokens: _picked(logits, tokens).log_softmax(-1),
        ),
        Misconception(
            "softmax-over-time",
            "The softmax runs over the time axis; it belongs over the last, the vocabulary.",
            lambda logits, tokens: _picked(logits.log_softmax(1), tokens),
        ),
        Misconception(
            "probabilities",
            "These are probabilities; their logarithm is asked for.",
            lambda logits, tokens: _picked(logits.softmax(-1), tokens),
        ),
        Misconception(
            "likeliest-token",
            "This is the log-probability of the likeliest token, whatever was said; gather that of the "
            "token.",
            lambda logits, tokens: logits.log_softmax(-1)[:, :-1].amax(-1),
        ),
        Misconception(
            "negated",
            "The sign is that of a loss: cross-entropy is minus the log-probability.",
            scaled(_token_logps, -1),
        ),
        Misconception(
            "log-base-2",
            "The logarithm is to base 2, so these are bits; nats are asked for.",
            scaled(_token_logps, 1 / math.log(2)),
        ),
        Misconception(
            "log-of-softmax",
            "The logarithm of a softmax that rounds to 0 is -inf; log_softmax subtracts first and keeps "
            "-800.",
            lambda logits, tokens: _picked(logits.softmax(-1).log(), tokens),
        ),
        Misconception(
            "epsilon-in-the-log",
            "Adding 1e-8 inside the logarithm floors every log-probability at -18.4 nats, and shifts the "
            "others.",
            lambda logits, tokens: _picked((logits.softmax(-1) + 1e-8).log(), tokens),
        ),
        detached(_token_logps),
    ),
)


def _times_mask(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1) / mask.sum(-1)


register(
    masked_mean,
    level=1,
    section="6.6 Token or sequence",
    reference=masking.masked_mean,
    differentiable=("values",),
    number=lambda value: value.reshape(-1)[0],
    cases=tuple(
        Case(case.label, {"values": case.inputs["logp"], "mask": case.inputs["mask"]}, case.edge)
        for case in token_cases("logp")
    ),
    misconceptions=(
        Misconception(
            "mask-ignored",
            "Masked positions count: prompt and padding are in the mean, {got} where {right} is right.",
            lambda values, mask: values.mean(-1),
        ),
        Misconception(
            "padded-length",
            "The sum is right, but it is divided by the padded length, not by the number of True: {got} "
            "where {right} is right, and more padding would change it.",
            lambda values, mask: values.masked_fill(~mask, 0).mean(-1),
        ),
        Misconception(
            "sum",
            "This is the sum over the tokens; the mean divides by the number of True.",
            masking.masked_sum,
        ),
        Misconception(
            "token-mean",
            "This is one number for the whole batch, in which long rows weigh more; one mean a row is asked "
            "for.",
            lambda values, mask: masking.reduce(values, mask, "token_mean"),
        ),
        Misconception(
            "batch-count",
            "Each row's sum is divided by the number of True in the whole batch: {got} where {right} is "
            "right, and another batch would change it.",
            lambda values, mask: masking.masked_sum(values, mask) / mask.sum(),
        ),
        Misconception(
            "sequence-mean",
            "The means of the rows are averaged once more; one mean a row is asked for.",
            lambda values, mask: masking.reduce(values, mask, "sequence_mean"),
        ),
        Misconception(
            "mask-inverted",
            "The mask is upside down: True counts, and this is the mean of the padding.",
            lambda values, mask: masking.masked_mean(values, ~mask),
        ),
        multiplied(
            _times_mask,
        ),
        Misconception(
            "nan-replaced",
            "nan_to_num hides masked nan, but it would hide one that counts as well, and masked numbers "
            "still enter. Use masked_fill or where.",
            lambda values, mask: values.nan_to_num().mean(-1),
        ),
        detached(masking.masked_mean),
    ),
)


def _from_the_end(mask: Tensor) -> Tensor:
    return mask.flip(-1).int().argmax(-1)


register(
    last_action,
    level=1,
    section="3.1 KL in the reward",
    reference=masking.last_action,
    number=lambda value: value[0].double(),
    cases=(
        Case(
            "two rows with padding and a gap",
            {"mask": torch.tensor([[False, False, True, True, False], [True, True, False, True, False]])},
        ),
        Case("no padding at all", {"mask": torch.ones(1, 3, dtype=torch.bool)}),
        Case("one True", {"mask": torch.tensor([[False, False, True, False]])}),
        Case("padding and a gap again", {"mask": MASK}),
        *(
            Case(f"all completions, {world}", {"mask": completions(world)["mask"]})
            for world in ("moderate", "far")
        ),
    ),
    misconceptions=(
        Misconception(
            "length-minus-1",
            "The number of True minus 1 is the last position only where a row starts with its first True "
            "and has no gap: position {got} here, {right} is right.",
            lambda mask: mask.sum(-1) - 1,
        ),
        Misconception(
            "length",
            "The number of True is no position: {got} here, {right} is right.",
            lambda mask: mask.sum(-1),
        ),
        Misconception(
            "first",
            "argmax returns the first of equal maxima, so this is the first True; the last is asked for.",
            lambda mask: mask.int().argmax(-1),
        ),
        Misconception(
            "last-column",
            "This is the last column, padding or not.",
            lambda mask: torch.full((len(mask),), mask.shape[1] - 1),
        ),
        Misconception(
            "counted-from-the-end",
            "The mask is flipped, and the position found counts from the end: it is to be turned back.",
            _from_the_end,
        ),
        Misconception(
            "off-by-one",
            "Off by one: this is the position after the last True, {got} where {right} is right.",
            lambda mask: mask.shape[1] - _from_the_end(mask),
        ),
        Misconception(
            "end-of-the-first-turn",
            "This is the end of the first run of True; after a gap the row goes on.",
            lambda mask: (
                torch.where(mask.int().argmax(-1)[:, None] <= torch.arange(mask.shape[1]), ~mask, False)
                .int()
                .argmax(-1)
                - 1
            ),
        ),
    ),
)
