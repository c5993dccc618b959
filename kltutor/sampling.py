"""Drawing completions from a policy, token by token, with keys and values kept where the policy can.

Each token is the inverse of the cumulative distribution at one uniform number. A run takes batch × horizon of
them from its own generator before the first token, whatever it goes on to draw; so a stack of runs draws
what single runs would, and a sampler with a cache what one without would, unless a number falls within
rounding of the boundary between two tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kltutor import masking
from kltutor.blocks import one_each
from kltutor.checks import first
from kltutor.model import TinyGPT
from kltutor.tasks import END, Policy, TabularPolicy


class Sample(NamedTuple):
    """Completions without their prompts; a stack has one more leading axis."""

    tokens: Int[Tensor, "*stack batch time"]  # END after the end
    mask: Bool[Tensor, "*stack batch time"]  # True at the tokens that were drawn, the end token among them
    logp: Float[Tensor, "*stack batch time"]  # when they were drawn, nats per token; 0 after the end


def sample(
    policy: Policy,
    prompts: Int[Tensor, "*stack batch length"],
    horizon: int,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    cache: bool = True,
) -> Sample:
    """Draw one completion to every prompt; a row stops after its end token or at the horizon.

    Args:
        policy: a `TinyGPT` or `TabularPolicy`, a stack of either, or any other policy.
        prompts: token ids, one prompt a row, all of one length; (policies, batch, length) for a stack.
        horizon: the largest number of tokens drawn in a row, at least 1.
        generator: on the CPU; for a stack a sequence of them, one a policy.
        cache: keep keys and values of a `TinyGPT`; other policies read the whole row for every token.

    Returns:
        Tokens, mask and log-probabilities (…, batch, horizon), on the device of the policy, without gradient.
        The log-probabilities have the dtype of the logits.

    Raises:
        ValueError: horizon is below 1, prompts are empty, not of the policy's axes, or hold ids that it does
            not read, the rows grow too long for it, the generators are not one a policy on the CPU, or the
            logits of a token are nan, +inf or all -inf.

    Example:
        >>> from kltutor import TabularPolicy, tasks
        >>> task, seed = tasks.small(), torch.Generator().manual_seed(0)
        >>> drawn = sample(TabularPolicy.random(task, seed), task.prompt_tokens, task.horizon, seed)
        >>> drawn.tokens.shape, bool(drawn.mask[:, 0].all())
        (torch.Size([2, 4]), True)
    """
    stacked = policy.policies if isinstance(policy, TinyGPT | TabularPolicy) else None
    generators = one_each(generator, stacked)
    _check(policy, prompts, horizon, stacked)
    device = _device(policy, prompts)
    home = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    batch = prompts.shape[-2]
    draws = [torch.rand(batch, horizon, generator=each, dtype=torch.float64) for each in generators]
    uniform = (draws[0] if stacked is None else torch.stack(draws)).to(home)
    tokens = torch.full(uniform.shape, END, device=device)
    mask = torch.zeros(uniform.shape, dtype=torch.bool, device=device)
    live = torch.ones(uniform.shape[:-1], dtype=torch.bool, device=device)
    rows, kept, steps = prompts.to(device), None, []
    with torch.no_grad():
        for t in range(horizon):
            if isinstance(policy, TinyGPT) and cache:
                hidden, kept = policy.extend(rows if kept is None else tokens[..., t - 1 : t], kept)
                logits = policy.logits(hidden[..., -1:, :])[..., 0, :]
            else:
                logits = policy(torch.cat([rows, tokens[..., :t]], -1))[..., -1, :]
            chosen = _invert(logits.to(home), uniform[..., t]).to(device)
            logp = logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            steps.append(torch.where(live, logp, 0))
            tokens[..., t] = torch.where(live, chosen, END)
            mask[..., t] = live
            live = live & (chosen != END)
            if not live.any():
                break
    logp = torch.stack(steps, -1)
    if logp.isnan().any():
        where = first(logp.isnan())
        raise ValueError(f"policy returned nan, +inf or nothing but -inf as logits of token {where}.")
    return Sample(tokens, mask, nn.functional.pad(logp, (0, horizon - len(steps))))


def completion_logps(
    policy: Policy,
    prompts: Int[Tensor, "*stack batch length"],
    tokens: Int[Tensor, "*stack batch time"],
    mask: Bool[Tensor, "*stack batch time"],
) -> Float[Tensor, "*stack batch time"]:
    """Return log π(token | prompt, tokens before it), 0 where masked; nats per token. Differentiable.

    What `sample` returned as `logp`, when the policy has not changed.

    Raises:
        ValueError: as `TinyGPT.hidden` and `masking.token_logps`.
    """
    rows = torch.cat([prompts.to(tokens.device), tokens], -1)
    logits = policy(rows[..., :-1])[..., prompts.shape[-1] - 1 :, :]
    flat = masking.token_logps(logits.flatten(0, -3), tokens.flatten(0, -2))
    return flat.view(tokens.shape).masked_fill(~mask, 0)


def _invert(logits: Float[Tensor, "*rows vocab"], uniform: Float[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
    """Return the first token at which the cumulative probability exceeds a number from [0, 1)."""
    probs = logits.double().softmax(-1)
    total = probs.cumsum(-1).masked_fill(probs <= 0, -1)  # a parallel sum may rise where nothing was added
    largest = total.amax(-1, keepdim=True)  # above uniform·largest, since float64 rounds that downwards
    return (total > uniform.unsqueeze(-1) * largest).int().argmax(-1)  # of equal ones, the first


def _device(policy: Policy, prompts: Tensor) -> torch.device:
    """Return where a policy computes: where its parameters are, or else the prompts."""
    parameters = policy.parameters() if isinstance(policy, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), prompts.device)


def _check(policy: Policy, prompts: Tensor, horizon: int, stacked: int | None) -> None:
    """Raise ValueError unless the policy can answer the prompts."""
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; at least 1 is expected.")
    if prompts.shape[:-2] != (() if stacked is None else (stacked,)) or 0 in prompts.shape:
        axes = "(batch, length)" if stacked is None else f"({stacked}, batch, length)"
        raise ValueError(f"prompts have shape {tuple(prompts.shape)}; {axes}, not empty, is expected.")
    if isinstance(policy, TinyGPT):
        bad = (prompts < 0) | (prompts >= policy.shape.inputs)
        if bad.any():
            known = f"0 to {policy.shape.inputs - 1}"
            raise ValueError(f"prompts{first(bad)} is {int(prompts[bad][0])}; the model reads {known}.")
        needed = prompts.shape[-1] + horizon - 1
        if needed > policy.shape.length:
            raise ValueError(
                f"a prompt of {prompts.shape[-1]} tokens and horizon {horizon} make rows of {needed}; the "
                f"model reads at most {policy.shape.length}."
            )
