"""Two worlds of the library page: completions near the reference, and a policy that clamps have let go."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor import exact, tasks
from kltutor.audit.calls import Subject
from kltutor.audit.profile import one_token
from kltutor.libraries.terms import Term
from kltutor.libraries.verdicts import INPUTS
from kltutor.tasks import TabularPolicy, Task


class Lab(NamedTuple):
    """A task, the policy that learns, and the reference."""

    task: Task
    policy: TabularPolicy
    ref: TabularPolicy


def completions() -> Lab:
    """Return a lab of two prompts and completions of up to four tokens, with log-ratios below 2.6."""
    task, generator = tasks.small(), torch.Generator().manual_seed(1)
    start, ref = (TabularPolicy.random(task, generator, 0.5) for _ in range(2))
    uphill = exact.gradient(
        lambda p: exact.expectation(task.reward, exact.seq_logp(p, task), task), start
    ).view_as(start.logits)
    return Lab(task, TabularPolicy(task, start.logits.detach() + uphill), ref)


def far() -> Lab:
    """Return a lab of one action whose log-ratios lie beyond what libraries clamp, on both sides.

    Action 0 has fallen to 1/50 of the reference, action 1 to a billionth of it; action 3, which the
    reference hardly knows, has half the mass.
    """
    task = tasks.bandit((0.0, 0.25, 0.5, 1.0))
    ref = torch.tensor([0.5, 0.1, 0.4 - 1e-6, 1e-6], dtype=torch.float64)
    policy = torch.tensor([0.01, 1e-10, 0.49 - 1e-10, 0.5], dtype=torch.float64)
    return Lab(task, *(TabularPolicy(task, p.log()[None, None]) for p in (policy, ref)))


def mean_value(term: Term, lab: Lab) -> Float[Tensor, ""]:
    """Return E[Σ_t term_t] over completions drawn by the policy.

    Example:
        >>> from kltutor.libraries import terms
        >>> lab = far()
        >>> torch.isclose(mean_value(terms.k3, lab), exact.kl(lab.policy, lab.ref, lab.task)).item()
        True
    """
    logp, ref_logp = (exact.token_logps(p, lab.task).detach().flatten(0, 1) for p in lab[1:])
    mask = lab.task.mask.repeat(len(lab.task.prompts), 1)
    values = term(logp, ref_logp, logp, mask).sum(-1).view(len(lab.task.prompts), -1)
    return exact.expectation(values, exact.seq_logp(lab.policy, lab.task).detach(), lab.task)


def mean_gradient(term: Term, lab: Lab) -> Float[Tensor, " parameter"]:
    """Return what the term as a loss on fresh samples adds to a descent step on average, per unit of beta.

    Example:
        >>> from kltutor.libraries import terms
        >>> mean_gradient(terms.k1, completions()).abs().max().item() < 1e-12
        True
    """
    ref_logp = exact.token_logps(lab.ref, lab.task).detach().flatten(0, 1)
    return exact.expected_gradient(
        lambda logp, mask, given: term(logp, given, logp.detach(), mask).sum(-1),
        lab.policy,
        lab.task,
        given=(ref_logp,),
    ).mean


def slope(term: Term, log_ratio: Float[Tensor, " point"]) -> Float[Tensor, " point"]:
    """Return d term / d log policy of fresh tokens with the given log-ratios, in the dtype they come in.

    It multiplies the score of the token in the gradient of a loss.

    Example:
        >>> from kltutor.libraries import terms
        >>> slope(terms.k2, torch.tensor([-3.0, 0.0, 3.0]))
        tensor([-3.,  0.,  3.])
    """
    return one_token(Subject(term, INPUTS, "token"), log_ratio, log_ratio.dtype)[1]
