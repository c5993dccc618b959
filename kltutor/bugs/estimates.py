"""Bugs of the reported KL: what is counted, and what is done with numbers below zero."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor import exact
from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.bugs.echo import ECHO, Bigram, echo_distances, echo_kl, echo_refs
from kltutor.bugs.lab import MASK, POLICY, REF, TASK, reports, rows
from kltutor.estimators import k1
from kltutor.masking import masked_sum, reduce, token_logps
from kltutor.tasks import TabularPolicy


def kl_of_all_tokens(
    logits: Float[Tensor, "batch time vocab"],
    ref_logits: Float[Tensor, "batch time vocab"],
    tokens: Int[Tensor, "batch time"],
    attention: Bool[Tensor, "batch time"],
    prompt_length: int,
) -> Float[Tensor, " batch"]:
    """Sum k1 over whatever is not padding, the prompt included."""
    logp = token_logps(logits[:, :-1], tokens[:, 1:])
    ref_logp = token_logps(ref_logits[:, :-1], tokens[:, 1:])
    return masked_sum(logp - ref_logp, attention[:, 1:])


def kl_of_actions(
    logits: Float[Tensor, "batch time vocab"],
    ref_logits: Float[Tensor, "batch time vocab"],
    tokens: Int[Tensor, "batch time"],
    attention: Bool[Tensor, "batch time"],
    prompt_length: int,
) -> Float[Tensor, " batch"]:
    """Sum k1 over the tokens that the policy chose."""
    logp = token_logps(logits[:, :-1], tokens[:, 1:])
    ref_logp = token_logps(ref_logits[:, :-1], tokens[:, 1:])
    mask = attention[:, 1:].clone()
    mask[:, : prompt_length - 1] = False
    return masked_sum(logp - ref_logp, mask)


def _of_the_prompt() -> dict[str, float]:
    prompts, probs = ECHO.prompt_tokens, torch.tensor(ECHO.prompt_probs, dtype=torch.float64)
    logp, ref_logp = (
        token_logps(model(prompts)[:, :-1], prompts[:, 1:]).sum(-1).detach()
        for model in (Bigram(2), Bigram(1))
    )
    return {"mean log-ratio of the prompt's tokens, nats": (probs @ (logp - ref_logp)).item()}


def _mean_over_completions(code: Code, ref: Bigram) -> float:
    policy, count = Bigram(2), ECHO.size
    prompts = ECHO.prompt_tokens.repeat_interleave(count, 0)
    tokens = torch.cat([prompts, ECHO.tokens.repeat(len(ECHO.prompts), 1)], 1)
    attention = torch.cat([torch.ones_like(prompts, dtype=torch.bool), ECHO.mask.repeat(2, 1)], 1)
    values = code(policy(tokens), ref(tokens), tokens, attention, prompts.shape[1])
    return exact.expectation(values.view(-1, count), exact.seq_logp(policy, ECHO), ECHO).item()


@bug(
    "BUG-01",
    title="The mask counts tokens of the prompt.",
    symptom="The reported KL is off by the log-ratio of the prompts, in nats per sequence, which the policy "
    "did not choose.",
    why="The attention mask tells padding from text, and a prompt is text. A KL needs another mask, "
    "True at the tokens that were drawn from the policy.",
    cure="Let the mask be True at the tokens that the policy chose, and nowhere else.",
    quantity="mean of the summed k1, nats per sequence",
    broken=kl_of_all_tokens,
    cured=kl_of_actions,
    truth=echo_kl,
    line="return masked_sum(logp - ref_logp, attention[:, 1:])",
    finding="Off by what the models think of the prompt",
    plot=Plot(
        x="KL(policy ‖ ref) [nats per sequence]",
        y="reported KL [nats per sequence]",
        points=echo_distances,
        at=lambda code: [_mean_over_completions(code, ref) for ref in echo_refs()],
    ),
    also=_of_the_prompt,
    thread="radixark/miles#1383",
)
def mean_over_completions(code: Code) -> float:
    """Return E of what the code says of each completion, of two models that score the prompts unlike."""
    return _mean_over_completions(code, Bigram(1))


def inverted_k1(logp: Float[Tensor, " batch"], ref_logp: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Subtract the wrong way round."""
    return ref_logp - logp


def clamped_k1(logp: Float[Tensor, " batch"], ref_logp: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Take what lies below zero for an error, and cut it off."""
    return (logp - ref_logp).clamp(min=0)


def _kl() -> float:
    return exact.kl(POLICY, REF, TASK).item()


def _below_zero() -> dict[str, float]:
    values = k1(rows(POLICY).sum(-1), rows(REF).sum(-1))
    return {
        "share of completions with k1 below zero": (values < 0).double().mean().item(),
        "least k1, nats per sequence": values.min().item(),
        "standard error of the mean of 64, nats per sequence": values.std(correction=0).item() / 8,
    }


def _other_cures() -> dict[str, float]:
    values = k1(rows(POLICY).sum(-1), rows(REF).sum(-1))
    return {"mean of the absolute value, nats per sequence": values.abs().mean().item()}


def _mean_of_estimates(code: Code, ref: TabularPolicy) -> float:
    return float(code(rows(POLICY).sum(-1), rows(ref).sum(-1)).mean())


@bug(
    "BUG-09",
    title="A k1 below zero is cut off at zero.",
    symptom="The reported KL is too large, by the part of k1 below zero, in nats per sequence.",
    why="k1 is right on average because values below zero cancel others. Without them the mean of the "
    "positive part is left, which near the reference is of the order of the root of the KL.",
    cure="Leave k1 as it is, since its mean is the KL. Where no estimate may be negative, take k3.",
    quantity="mean of the estimate, nats per sequence",
    broken=clamped_k1,
    cured=k1,
    truth=_kl,
    line="return (logp - ref_logp).clamp(min=0)",
    finding="Too large, by what was below zero",
    plot=reports(_mean_of_estimates),
    also=_other_cures,
    thread="tatsu-lab/alpaca_farm#67",
    inputs=("seq_logp", "ref_seq_logp"),
    returns="sequence",
)
@bug(
    "BUG-02",
    title="The log-ratio is inverted: a single k1 below zero is no bug, a mean below zero is one.",
    symptom="The mean of the estimates lies below zero, in nats per sequence, by many standard errors.",
    why="Drawn from the policy, `log policy - log ref` has the mean KL(policy ‖ ref). The other sign "
    "gives minus that, for every pair of policies. One value below zero proves nothing: here one "
    "completion in five has one.",
    cure="Subtract the reference from the policy that drew the samples, and judge the mean by its standard "
    "error, not single values.",
    quantity="mean of the estimate, nats per sequence",
    broken=inverted_k1,
    cured=k1,
    truth=_kl,
    line="return ref_logp - logp",
    finding="The further away, the lower it reads",
    plot=reports(_mean_of_estimates),
    also=_below_zero,
    thread="huggingface/trl#351",
    inputs=("seq_logp", "ref_seq_logp"),
    returns="sequence",
)
def mean_of_estimates(code: Code) -> float:
    """Return the mean over a batch that is the population."""
    return _mean_of_estimates(code, REF)


def mean_of_tokens(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Report nats per token under the name of nats per sequence."""
    return reduce(k1(logp, ref_logp), mask, "token_mean")


def sum_of_tokens(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Report nats per sequence."""
    return reduce(k1(logp, ref_logp), mask, "sequence_sum")


def _lengths() -> dict[str, float]:
    values = reduce(k1(rows(POLICY), rows(REF)), MASK, "sequence_mean")
    return {
        "mean of the means of rows, nats per token": values.item(),
        "mean length, tokens": MASK.sum(-1).double().mean().item(),
    }


def _reported_kl(code: Code, ref: TabularPolicy) -> float:
    return float(code(rows(POLICY), rows(ref), MASK))


@bug(
    "BUG-06",
    title="Nats per token are reported as nats per sequence.",
    symptom="The reported KL is that of a sequence, in nats, divided by the mean length in tokens, so a "
    "target or a budget per sequence is overspent by that factor.",
    why="Averaged over all tokens, k1 gives the KL of the completion over the mean length. Under its "
    "own name that is a fair monitor. A target per sequence does not fit it, and it falls when "
    "completions grow.",
    cure="Sum over the tokens of a row, then average over rows. Name the unit wherever a KL is logged.",
    quantity="reported KL, nats per sequence",
    broken=mean_of_tokens,
    cured=sum_of_tokens,
    truth=_kl,
    line='return reduce(k1(logp, ref_logp), mask, "token_mean")',
    finding="Low by the mean length",
    plot=reports(_reported_kl),
    also=_lengths,
    thread="CarperAI/trlx#441",
    inputs=("logp", "ref_logp", "mask"),
    returns="scalar",
)
def reported_kl(code: Code) -> float:
    """Return what the code reports of the batch that is the population."""
    return _reported_kl(code, REF)
