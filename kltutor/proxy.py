"""A reward model that is learnt from preferences, so that over-optimisation emerges and is not drawn.

The gold reward of a task is known. Annotators see pairs of completions and prefer one with the probability
of Bradley and Terry. The proxy is linear in a few counts, which the gold reward is not: it cannot see that
a word said twice is worth no more than once.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from kltutor.checks import check_positive
from kltutor.pairs import Pairs
from kltutor.tasks import END, Task

NEWTON_STEPS = 50
SETTLED = 1e-10  # largest entry of the gradient at which the fit has converged


def features(task: Task) -> Float[Tensor, "prompt completion feature"]:
    """Return what the proxy sees: counts of each word, apart for each prompt, and whether it ended.

    Example:
        >>> from kltutor import tasks
        >>> features(tasks.small()).shape  # 2 prompts, 121 completions, 2·3 word counts and one flag
        torch.Size([2, 121, 7])
    """
    prompts, words = len(task.prompts), len(task.words) - 1
    counts = torch.stack([((task.tokens == word) & task.mask).sum(-1) for word in range(1, words + 1)], -1)
    ended = ((task.tokens == END) & task.mask).any(-1)
    result = torch.zeros(prompts, task.size, prompts * words + 1, dtype=torch.float64)
    for x in range(prompts):
        result[x, :, x * words : (x + 1) * words] = counts.double()
    result[:, :, -1] = ended.double()
    return result


def fit_proxy(task: Task, pairs: Pairs, *, ridge: float = 1.0) -> Float[Tensor, "prompt completion"]:
    """Return the proxy reward of every completion: Bradley-Terry by maximum likelihood, linear in `features`.

    Minimises -Σ log σ(proxy(chosen) - proxy(rejected)) + ridge/2·‖weights‖², a strictly convex function, by
    Newton's method until the gradient vanishes.

    Args:
        task: what was compared.
        pairs: at least one.
        ridge: strength of the penalty on the weights, above 0; it keeps them finite where pairs separate.

    Returns:
        Proxy rewards in the unit of the gold reward, known up to a constant for each prompt.

    Raises:
        ValueError: there are no pairs, their parts do not match, an index is not of the task,
            ridge is not above 0, or Newton's method does not settle.

    Example:
        >>> from kltutor import TabularPolicy, exact, sample_pairs, tasks
        >>> task, seed = tasks.small(), torch.Generator().manual_seed(0)
        >>> logp = exact.seq_logp(TabularPolicy.random(task, seed), task).detach()
        >>> proxy = fit_proxy(task, sample_pairs(task, logp, 500, seed))
        >>> tea = [" ".join(task.read(s)[0]) for s in task.sequences]
        >>> bool(proxy[0, tea.index("warm warm warm")] > proxy[0, tea.index("warm sweet")])  # gold: -1, 2
        True
    """
    check_positive(ridge=ridge)
    if len(pairs.prompt) == 0:
        raise ValueError("pairs is empty; at least one pair is expected.")
    for name, index, size in (
        ("prompt", pairs.prompt, len(task.prompts)),
        ("chosen", pairs.chosen, task.size),
        ("rejected", pairs.rejected, task.size),
    ):
        if index.shape != pairs.prompt.shape or index.is_floating_point():
            raise ValueError(
                f"pairs.{name} has shape {tuple(index.shape)} and dtype {index.dtype}; "
                f"{len(pairs.prompt)} integers are expected."
            )
        if int(index.min()) < 0 or int(index.max()) >= size:
            raise ValueError(f"pairs.{name} holds an index outside 0 to {size - 1} of {task.name}.")
    seen = features(task)
    gaps = seen[pairs.prompt, pairs.chosen] - seen[pairs.prompt, pairs.rejected]
    weights = torch.zeros(seen.shape[-1], dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return -logsigmoid(gaps @ w).sum() + ridge / 2 * w.square().sum()

    for _ in range(NEWTON_STEPS):
        lost = torch.sigmoid(-gaps @ weights)
        slope = ridge * weights - lost @ gaps
        if slope.abs().max() < SETTLED * len(gaps):
            return seen @ weights
        curvature = (gaps.T * (lost * (1 - lost))) @ gaps + ridge * torch.eye(
            len(weights), dtype=torch.float64
        )
        step = torch.linalg.solve(curvature, slope)
        while loss(weights - step) > loss(weights) and step.abs().max() > SETTLED:
            step = step / 2
        weights = weights - step
    raise ValueError(
        f"the fit has not settled after {NEWTON_STEPS} steps; its gradient is {slope.abs().max():.2g}."
    )
