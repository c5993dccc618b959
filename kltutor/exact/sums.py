"""Log-probabilities of all completions, and sums over them.

A policy is any callable from tokens (batch, time) to logits (batch, time, vocab), where logits[:, t]
predict token t+1; a `TabularPolicy` and a transformer go through the same functions. Values are per
completion, shape (prompt, completion), in the order of `task.sequences`; sums weight prompts by
`task.prompt_probs` and skip completions of probability zero.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kltutor import divergences
from kltutor.checks import check_distributions
from kltutor.tasks import Policy, Task

MASS_TOLERANCE = 1e-12
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


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
    weights = prompt_probs(task, logp) * logp.exp()
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
    return mean_kl(seq_logp(policy, task), seq_logp(ref, task), task)


def mean_kl(
    logp: Float[Tensor, "prompt completion"], other: Float[Tensor, "prompt completion"], task: Task
) -> Float[Tensor, ""]:
    """Return Σ_x p(x) KL(policy(·|x) ‖ other(·|x)) of two tables as from `seq_logp`, nats per sequence."""
    probs = prompt_probs(task, logp)[:, 0]
    return (probs * torch.where(probs > 0, divergences.kl(logp, other), 0)).sum()


def prefix_reach(policy: Policy, task: Task) -> Float[Tensor, "prompt prefix"]:
    """Return the probability that a completion passes through each open prefix, given the prompt."""
    logps = prefix_logps(policy, task)
    base, count = len(task.words) - 1, len(task.open_prefixes)
    reach = [torch.ones(len(task.prompts), dtype=logps.dtype, device=logps.device)]
    for i in range(1, count):
        parent, word = (i - 1) // base, (i - 1) % base + 1
        reach.append(reach[parent] * logps[:, parent, word].exp())
    return torch.stack(reach, 1)


def prompt_probs(task: Task, like: Tensor) -> Float[Tensor, "prompt 1"]:
    """Return how often each prompt is asked, in the dtype and on the device of another tensor."""
    return torch.tensor(task.prompt_probs, dtype=like.dtype, device=like.device)[:, None]
