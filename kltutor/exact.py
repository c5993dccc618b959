"""Ground truth by enumeration: every quantity is a float64 sum over all prompts and completions of a task.

A policy is any callable from tokens (batch, time) to logits (batch, time, vocab), where logits[:, t]
predict token t+1; a `TabularPolicy` and a transformer go through the same functions. Values are per
completion, shape (prompt, completion), in the order of `task.sequences`; sums weight prompts by
`task.prompt_probs` and skip completions of probability zero.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from kltutor import divergences
from kltutor.checks import check_distributions
from kltutor.tasks import Policy, TabularPolicy, Task

MASS_TOLERANCE = 1e-12
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
ROWS_AT_ONCE = 512  # per-sample gradients held in memory together


class ExpectedGradient(NamedTuple):
    """What a trainer's gradient is on average, and how much one sample of it scatters."""

    mean: Float[Tensor, " parameter"]
    variance: Float[Tensor, " parameter"]

    @property
    def trace(self) -> Float[Tensor, ""]:
        """Return the sum of the variances of all coordinates."""
        return self.variance.sum()


def prefix_logps(policy: Policy, task: Task) -> Float[Tensor, "prompt prefix vocab"]:
    """Return log π(next token | prompt, prefix) at every open prefix, in the order of `task.open_prefixes`.

    One causal forward over the longest open prefixes gives all of them. Differentiable; float64 whatever
    the dtype of the logits.

    Raises:
        ValueError: the logits have another shape than (batch, time, vocab of the task), hold nan or +inf,
            ban every token, or differ between two rows that share a prefix (dropout is on, or the policy
            is not causal).
    """
    if isinstance(policy, nn.Module) and any(
        module.training and module.p > 0 for module in policy.modules() if isinstance(module, DROPOUTS)
    ):
        raise ValueError("policy has dropout switched on; call policy.eval() first.")
    words, levels = len(task.words), task.horizon
    prompts = task.prompt_tokens
    length, base = prompts.shape[1], words - 1
    longest = torch.tensor([p for p in task.open_prefixes if len(p) == levels - 1], dtype=torch.long)
    longest = longest.reshape(base ** (levels - 1), levels - 1)
    rows = torch.cat([prompts.repeat_interleave(len(longest), 0), longest.repeat(len(prompts), 1)], 1)
    parameters = policy.parameters() if isinstance(policy, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), rows.device)
    logits = policy(rows.to(device))
    if logits.shape != (len(rows), length + levels - 1, words):
        raise ValueError(
            f"policy returned logits of shape {tuple(logits.shape)}; (batch, time, vocabulary) of "
            f"{task.name} is {(len(rows), length + levels - 1, words)}."
        )
    if logits.device.type == "mps":
        logits = logits.cpu()  # mps has no float64
    tolerance = torch.finfo(logits.dtype).eps ** 0.5  # kernels may round two equal rows differently
    steps = []
    for t in range(levels):
        step = logits[:, length - 1 + t].double()
        if (step.isnan() | (step == torch.inf)).any() or (step == -torch.inf).all(-1).any():
            raise ValueError(
                f"policy returned nan, +inf or nothing but -inf as logits of token {t} of the completion."
            )
        shared = step.reshape(len(prompts), base**t, base ** (levels - 1 - t), words)
        same = torch.isclose(shared.detach(), shared.detach()[:, :, :1], tolerance, tolerance)
        if not same.all():
            raise ValueError(
                f"policy gives rows that share a prefix of {t} tokens different logits. "
                "Switch dropout off with policy.eval(), and check that its attention is causal."
            )
        steps.append(shared[:, :, 0])
    return torch.cat(steps, 1).log_softmax(-1)


def token_logps(policy: Policy, task: Task) -> Float[Tensor, "prompt completion time"]:
    """Return log π(y_t | x, y_<t) for every token of every completion, 0 after the end; nats per token."""
    logps = prefix_logps(policy, task)
    tokens, mask = task.tokens.to(logps.device), task.mask.to(logps.device)
    chosen = logps[:, prefix_index(task).to(logps.device), tokens]
    return chosen.masked_fill(~mask, 0)


def seq_logp(policy: Policy, task: Task) -> Float[Tensor, "prompt completion"]:
    """Return log π(y | x) of every completion, nats per sequence. The probabilities sum to 1 within 1e-12.

    Raises:
        ValueError: the mass is off, or as `prefix_logps`.

    Example:
        >>> from kltutor import TabularPolicy, exact, tasks
        >>> task = tasks.bandit()
        >>> exact.seq_logp(TabularPolicy(task, torch.zeros(1, 1, 3)), task).exp()
        tensor([[0.3333, 0.3333, 0.3333]], dtype=torch.float64, grad_fn=<ExpBackward0>)
    """
    logp = token_logps(policy, task).sum(-1)
    off = (logp.detach().logsumexp(-1).exp() - 1).abs().max().item()
    if not off <= MASS_TOLERANCE:
        raise ValueError(f"the probabilities of all completions of {task.name} miss 1 by {off:.3g}.")
    return logp


def prefix_index(task: Task) -> Int[Tensor, "completion time"]:
    """Return which of `task.open_prefixes` each token of each completion follows; 0 after the end."""
    base = len(task.words) - 1
    index = torch.zeros(task.size, dtype=torch.long)
    columns = [index]
    for t in range(1, task.horizon):
        index = base * index + task.tokens[:, t - 1]
        columns.append(index)
    return torch.stack(columns, 1).masked_fill(~task.mask, 0)


def expectation(
    values: Float[Tensor, "prompt completion"], logp: Float[Tensor, "prompt completion"], task: Task
) -> Float[Tensor, ""]:
    """Return Σ_x p(x) Σ_y π(y|x) values(x, y) for logp = seq_logp(policy, task); differentiable in both.

    Raises:
        ValueError: logp does not belong to the task, by its shape, or its probabilities do not sum to 1.
    """
    if logp.shape != (len(task.prompts), task.size):
        raise ValueError(
            f"logp has shape {tuple(logp.shape)}; (prompt, completion) of {task.name} is "
            f"{(len(task.prompts), task.size)}."
        )
    check_distributions(logp=logp)
    weights = _prompt_probs(task, logp) * logp.exp()
    possible = weights > 0
    return (weights * torch.where(possible, values, 0)).sum()


def variance(
    values: Float[Tensor, "prompt completion"], logp: Float[Tensor, "prompt completion"], task: Task
) -> Float[Tensor, ""]:
    """Return the variance of values(x, y) over prompts and completions drawn together, x ~ p, y ~ π(·|x).

    It is inf where a value that can occur is infinite.
    """
    mean = expectation(values, logp, task)
    if mean.isinf():
        return torch.full_like(mean, torch.inf)
    return expectation((values - mean).square(), logp, task)


def kl(policy: Policy, ref: Policy, task: Task) -> Float[Tensor, ""]:
    """Return the sequence KL, Σ_x p(x) KL(π(·|x) ‖ ref(·|x)), in nats per sequence. Differentiable.

    Example:
        >>> from kltutor import TabularPolicy, exact, tasks
        >>> task = tasks.small()
        >>> policy, ref = (TabularPolicy.random(task, torch.Generator().manual_seed(s)) for s in (0, 1))
        >>> bool(exact.kl(policy, ref, task) > 0), round(exact.kl(policy, policy, task).item(), 12)
        (True, 0.0)
    """
    logp, ref_logp = seq_logp(policy, task), seq_logp(ref, task)
    probs = _prompt_probs(task, logp)[:, 0]
    return (probs * torch.where(probs > 0, divergences.kl(logp, ref_logp), 0)).sum()


def gradient(objective: Callable[[nn.Module], Tensor], policy: nn.Module) -> Float[Tensor, " parameter"]:
    """Return ∇objective(policy) in all parameters, flattened: the truth that estimators are compared with.

    Raises:
        ValueError: the objective uses none of the parameters, so it was computed from another policy.
    """
    parameters = list(policy.parameters())
    return _flat(torch.autograd.grad(objective(policy), parameters, allow_unused=True), parameters)


def expected_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], policy: nn.Module, task: Task, *, sampler: Policy | None = None
) -> ExpectedGradient:
    """Return mean and per-coordinate variance of ∇loss(y) over y ~ sampler, samples held fixed.

    This is what a trainer's backward pass gives on average: the gradient goes through the loss of each
    completion, never through the probability of having drawn it.

    Args:
        loss: from token log-probabilities (row, time), 0 at masked positions, and mask (row, time) to one
            loss a row. Rows are prompts × completions, prompts slowest, as `token_logps(...).flatten(0, 1)`.
        policy: the module whose parameters are differentiated.
        task: what to sum over.
        sampler: who drew the completions; the policy itself when None.

    Raises:
        ValueError: the loss returns another shape than one value a row, or does not use its argument.
    """
    parameters = list(policy.parameters())
    logp = token_logps(policy, task)
    drawn = seq_logp(policy if sampler is None else sampler, task).detach()
    weights = (_prompt_probs(task, drawn) * drawn.exp()).flatten()
    live = weights > 0
    mask = task.mask.to(logp.device).repeat(len(task.prompts), 1)
    rows = logp.flatten(0, 1).masked_fill(~live[:, None], 0)  # the never drawn must not reach the gradient
    losses = loss(rows, mask)
    if losses.shape != weights.shape:
        shapes = f"{tuple(losses.shape)}; one value a row, {tuple(weights.shape)}"
        raise ValueError(f"loss returned shape {shapes}, is expected.")
    weights, losses = weights[live], losses[live]
    mean = _flat(
        torch.autograd.grad(losses @ weights, parameters, retain_graph=True, allow_unused=True), parameters
    )
    spread = torch.zeros_like(mean)
    for start in range(0, len(losses), ROWS_AT_ONCE):
        chunk = losses[start : start + ROWS_AT_ONCE]
        each = torch.autograd.grad(
            chunk,
            parameters,
            torch.eye(len(chunk), dtype=chunk.dtype, device=chunk.device),
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
        )
        samples = torch.stack(
            [_flat([None if g is None else g[i] for g in each], parameters) for i in range(len(chunk))]
        )
        spread = spread + weights[start : start + ROWS_AT_ONCE] @ (samples - mean).square()
    return ExpectedGradient(mean, spread)


def ascend(
    policy: nn.Module,
    objective: Callable[[nn.Module], Tensor],
    task: Task,
    *,
    steps: int,
    step_size: float,
    natural: bool = True,
) -> nn.Module:
    """Return a copy of the policy after `steps` exact steps uphill.

    Args:
        policy: where to start; it is not changed.
        objective: from a policy either to a scalar, which is differentiated, or to a vector with one entry
            a parameter, which is followed as it is (a field need not be the gradient of anything).
        task: what the policy acts in.
        steps: number of steps.
        step_size: with a natural step, 1/beta solves the last token of E[r] - beta·KL at once.
        natural: divide by the Fisher matrix of each prefix (a `TabularPolicy` only); else plain steps.

    Raises:
        ValueError: natural steps for another kind of policy, a negative number of steps, or a step became
            nan or infinite.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; at least 0 is expected.")
    policy = copy.deepcopy(policy)
    if natural and not isinstance(policy, TabularPolicy):
        raise ValueError(
            f"natural steps need a TabularPolicy, not {type(policy).__name__}; pass natural=False."
        )
    parameters = list(policy.parameters())
    for step in range(steps):
        value = objective(policy)
        direction = (
            value.detach() if value.ndim else _flat(torch.autograd.grad(value, parameters), parameters)
        )
        if direction.shape != (sum(parameter.numel() for parameter in parameters),):
            shape = tuple(value.shape)
            raise ValueError(
                f"objective returned shape {shape}; a scalar or one entry a parameter is expected."
            )
        if natural:
            direction = _natural(direction, policy, task)
        move = step_size * direction
        if not move.isfinite().all():
            raise ValueError(f"step {step} is not finite; the objective or its gradient left the numbers.")
        with torch.no_grad():
            vector_to_parameters(parameters_to_vector(parameters) + move, parameters)
    return policy


def prefix_reach(policy: Policy, task: Task) -> Float[Tensor, "prompt prefix"]:
    """Return the probability that a completion passes through each open prefix, given the prompt."""
    logps = prefix_logps(policy, task)
    base, count = len(task.words) - 1, len(task.open_prefixes)
    reach = [torch.ones(len(task.prompts), dtype=logps.dtype, device=logps.device)]
    for i in range(1, count):
        parent, word = (i - 1) // base, (i - 1) % base + 1
        reach.append(reach[parent] * logps[:, parent, word].exp())
    return torch.stack(reach, 1)


def _natural(
    direction: Float[Tensor, " parameter"], policy: nn.Module, task: Task
) -> Float[Tensor, " parameter"]:
    """Divide by the Fisher matrix diag(π) - ππᵀ of each prefix, weighted by how often it is visited."""
    with torch.no_grad():
        probs = prefix_logps(policy, task).exp()
        visits = _prompt_probs(task, probs[:, :, 0]) * prefix_reach(policy, task)
        weight = visits[:, :, None] * probs
        ratio = torch.where(weight > 0, direction.view_as(weight) / weight, 0)  # no visit, no step
        return (ratio - (probs * ratio).sum(-1, keepdim=True)).flatten()


def _prompt_probs(task: Task, like: Tensor) -> Float[Tensor, "prompt 1"]:
    return torch.tensor(task.prompt_probs, dtype=like.dtype, device=like.device)[:, None]


def _flat(gradients: object, parameters: list[nn.Parameter]) -> Float[Tensor, " parameter"]:
    pairs = list(zip(gradients, parameters, strict=True))  # type: ignore[call-overload]
    if all(g is None for g, _ in pairs):
        raise ValueError("no parameter of policy is used; compute from the policy that is passed in.")
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs])
