"""Ground truth by enumeration: every quantity is a float64 sum over all prompts and completions of a task.

A policy is any callable from tokens (batch, time) to logits (batch, time, vocab), where logits[:, t]
predict token t+1; a `TabularPolicy` and a transformer go through the same functions. Values are per
completion, shape (prompt, completion), in the order of `task.sequences`; sums weight prompts by
`task.prompt_probs` and skip completions of probability zero.
"""

from kltutor.exact.ascent import ascend
from kltutor.exact.fixed_points import token_optimum
from kltutor.exact.gradients import ExpectedGradient, expected_gradient, gradient
from kltutor.exact.groups import expected_group_gradient
from kltutor.exact.minimum import minimise
from kltutor.exact.sums import (
    expectation,
    kl,
    mean_kl,
    prefix_index,
    prefix_logps,
    prefix_reach,
    seq_logp,
    token_logps,
    variance,
)

__all__ = [
    "ExpectedGradient",
    "ascend",
    "expectation",
    "expected_gradient",
    "expected_group_gradient",
    "gradient",
    "kl",
    "mean_kl",
    "minimise",
    "prefix_index",
    "prefix_logps",
    "prefix_reach",
    "seq_logp",
    "token_logps",
    "token_optimum",
    "variance",
]
