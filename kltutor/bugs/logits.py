"""Bugs between logits and a KL: normalised too late, in the wrong order, place or temperature."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kltutor import exact
from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.bugs.echo import ECHO, Bigram, echo_distances, echo_kl, echo_refs
from kltutor.bugs.lab import MASK, POLICY, REF, TASK, reports
from kltutor.masking import masked_sum, token_logps
from kltutor.tasks import TabularPolicy, Task

Logits = Float[Tensor, "batch time vocab"]


def all_rows(task: Task) -> Int[Tensor, "row time"]:
    """Return every completion to every prompt, the prompt first."""
    prompts = task.prompt_tokens.repeat_interleave(task.size, 0)
    return torch.cat([prompts, task.tokens.repeat(len(task.prompts), 1)], 1)


def predictions(policy: TabularPolicy, task: Task) -> Logits:
    """Return the logits that predict each token of every completion."""
    start = task.prompt_tokens.shape[1] - 1
    logits: Tensor = policy(all_rows(task)).detach()[:, start:-1]
    return logits


def gathered_first(logits: Logits, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Pick the logit of the chosen token, and normalise what is left."""
    chosen = logits.gather(-1, tokens[..., None])
    return chosen.log_softmax(-1).squeeze(-1)


def _kl() -> float:
    return exact.kl(POLICY, REF, TASK).item()


def _from_logits(code: Code, ref: TabularPolicy) -> float:
    tokens = TASK.tokens.repeat(len(TASK.prompts), 1)
    logp, ref_logp = (code(predictions(policy, TASK), tokens) for policy in (POLICY, ref))
    return float(masked_sum(logp - ref_logp, MASK).mean())


@bug(
    "BUG-15",
    title="The softmax comes after the gather.",
    symptom="The log-probability of every token is 0, so the KL is 0 nats at every step, and so is its "
    "gradient.",
    why="A gather leaves one number in each place, and the softmax of one number is 1. Its logarithm "
    "is 0 for every model, so that policy and reference always agree.",
    cure="Normalise over the vocabulary first, and pick the token's entry then: `token_logps`.",
    quantity="mean of the summed k1, nats per sequence",
    broken=gathered_first,
    cured=token_logps,
    truth=_kl,
    line="return chosen.log_softmax(-1).squeeze(-1)",
    finding="Zero, whatever the distance",
    plot=reports(_from_logits),
    thread="huggingface/trl#1061",
)
def kl_from_logits(code: Code) -> float:
    """Return the KL by k1, from the log-probabilities that the code makes of logits."""
    return _from_logits(code, REF)


def swapped_kl_div(
    logits: Logits, ref_logits: Logits, mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Name the two in the order of the formula."""
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    kl = F.kl_div(logp, ref_logp, reduction="none", log_target=True)
    return masked_sum(kl.sum(-1), mask)


def ordered_kl_div(
    logits: Logits, ref_logits: Logits, mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Name the second of the formula first."""
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    kl = F.kl_div(ref_logp, logp, reduction="none", log_target=True)
    return masked_sum(kl.sum(-1), mask)


def _over_the_vocabulary(code: Code, ref: TabularPolicy) -> float:
    return float(code(predictions(POLICY, TASK), predictions(ref, TASK), MASK).mean())


def _of_three() -> dict[str, float]:
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    return {
        "F.kl_div(log p, log q, log_target=True) of three outcomes, nats": F.kl_div(
            p.log(), q.log(), reduction="sum", log_target=True
        ).item(),
        "KL(q ‖ p), nats": (q @ (q / p).log()).item(),
        "KL(p ‖ q), nats": (p @ (p / q).log()).item(),
    }


@bug(
    "BUG-16",
    title="`F.kl_div(p, q)` is read as KL(p ‖ q).",
    symptom="The reported KL is that of the other direction, in nats per sequence: never negative, 0 where "
    "the two are equal, and wrong elsewhere.",
    why="torch writes losses as `loss(input, target)`, and `F.kl_div(input, target)` is KL(target ‖ "
    "input). Leave out `log_target=True` as well and log-probabilities are read as probabilities: "
    "the result is nan.",
    cure="`F.kl_div` takes the second distribution of the formula first: write `F.kl_div(ref_logp, logp, "
    "log_target=True)` for KL(policy ‖ ref), or take `full_vocab_kl`.",
    quantity="mean of the KL of each token's choice, summed, nats per sequence",
    broken=swapped_kl_div,
    cured=ordered_kl_div,
    truth=_kl,
    line='kl = F.kl_div(logp, ref_logp, reduction="none", log_target=True)',
    finding="The other direction",
    plot=reports(_over_the_vocabulary),
    also=_of_three,
    thread="pytorch/pytorch#57459",
    inputs=("logits", "ref_logits", "mask"),
    returns="sequence",
)
def kl_over_the_vocabulary(code: Code) -> float:
    """Return the mean over completions of the code's sum over the vocabulary."""
    return _over_the_vocabulary(code, REF)


def same_place(logits: Logits, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch shorter"]:
    """Score each token with the logits that stand at its own place."""
    logp = logits.log_softmax(-1)
    chosen = logp.gather(-1, tokens[..., None]).squeeze(-1)
    return chosen[:, 1:]


def place_before(logits: Logits, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch shorter"]:
    """Score each token with the logits that predicted it."""
    logp = logits.log_softmax(-1)
    chosen = logp[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return chosen


def _scored(code: Code, policy: Bigram, ref: Bigram) -> Float[Tensor, "prompt completion"]:
    """Return the summed log-ratio of every completion."""
    tokens, start = all_rows(ECHO), ECHO.prompt_tokens.shape[1] - 1
    logp, ref_logp = (code(model(tokens).detach(), tokens)[:, start:] for model in (policy, ref))
    return masked_sum(logp - ref_logp, ECHO.mask.repeat(len(ECHO.prompts), 1)).view(-1, ECHO.size)


def _shifted(code: Code, ref: Bigram) -> float:
    policy = Bigram(2)
    return exact.expectation(_scored(code, policy, ref), exact.seq_logp(policy, ECHO), ECHO).item()


def _surprise() -> dict[str, float]:
    policy, tokens, start = Bigram(2), all_rows(ECHO), ECHO.prompt_tokens.shape[1] - 1
    mask, weight = ECHO.mask.repeat(len(ECHO.prompts), 1), exact.seq_logp(policy, ECHO).detach()
    found = {}
    for name, code in (("as scored", same_place), ("entropy", place_before)):
        total = masked_sum(code(policy(tokens).detach(), tokens)[:, start:], mask).view(-1, ECHO.size)
        found[f"mean of -log policy of its own completions, {name}, nats per sequence"] = -exact.expectation(
            total, weight, ECHO
        ).item()
    return found


@bug(
    "BUG-17",
    title="A token is scored with the logits at its own place, which predict the next.",
    symptom="The KL is 0 nats at step 0, as it should be, and means nothing after it; the mean of -logp "
    "over the policy's own completions is not its entropy.",
    why="The logits at place t predict token t + 1. Paired with the token at place t they say how "
    "likely the model is to repeat it. Two equal models agree on that too, so the check at step 0 "
    "passes.",
    cure="Score `tokens[:, 1:]` with `logits[:, :-1]`. Check that the mean of `-logp` over fresh completions "
    "is the entropy, or that it is what the sampler recorded.",
    quantity="mean of the summed k1, nats per sequence",
    broken=same_place,
    cured=place_before,
    truth=echo_kl,
    line="chosen = logp.gather(-1, tokens[..., None]).squeeze(-1)",
    finding="Right at step 0 only",
    plot=Plot(
        x="KL(policy ‖ ref) [nats per sequence]",
        y="reported KL [nats per sequence]",
        points=echo_distances,
        at=lambda code: [_shifted(code, ref) for ref in echo_refs()],
    ),
    also=_surprise,
    thread="AI-Hypercomputer/maxtext#2103",
)
def kl_by_place(code: Code) -> float:
    """Return the KL by k1 from the log-probabilities that the code gives, for two bigram models."""
    return _shifted(code, Bigram(1))


TEMPERATURE = 0.5


def cold_rollouts_scored_warm(
    logits: Logits, tokens: Int[Tensor, "batch time"], temperature: float
) -> Float[Tensor, "batch time"]:
    """Draw at one temperature, and score at 1."""
    logp = logits.log_softmax(-1)
    return logp.gather(-1, tokens[..., None]).squeeze(-1)


def scored_as_drawn(
    logits: Logits, tokens: Int[Tensor, "batch time"], temperature: float
) -> Float[Tensor, "batch time"]:
    """Score at the temperature of the rollouts."""
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(-1, tokens[..., None]).squeeze(-1)


def _flat() -> TabularPolicy:
    """Return a policy that has the reference's taste, with less conviction."""
    return TabularPolicy(TASK, 0.6 * REF.logits.detach())


def _at(temperature: float, policy: TabularPolicy) -> TabularPolicy:
    return TabularPolicy(TASK, policy.logits.detach() / temperature)


def _drawn_at(code: Code, temperature: float) -> float:
    policy, tokens = _flat(), TASK.tokens.repeat(len(TASK.prompts), 1)
    logp, ref_logp = (code(predictions(one, TASK), tokens, temperature) for one in (policy, REF))
    total = masked_sum(logp - ref_logp, MASK).view(-1, TASK.size)
    return exact.expectation(total, exact.seq_logp(_at(temperature, policy), TASK).detach(), TASK).item()


def _kl_at_temperature() -> float:
    return exact.kl(_at(TEMPERATURE, _flat()), _at(TEMPERATURE, REF), TASK).item()


def _kl_at_one() -> dict[str, float]:
    return {
        "KL(policy ‖ ref) of both at temperature 1, nats per sequence": exact.kl(_flat(), REF, TASK).item()
    }


def _temperatures() -> list[float]:
    return [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4]


@bug(
    "BUG-18",
    title="Completions are drawn at one temperature and scored at another.",
    symptom="The mean log-ratio lies below zero, in nats per sequence, at every step and by many standard "
    "errors, with the subtraction the right way round.",
    why="The mean of `log policy - log ref` is a KL only over samples of that policy. At temperature "
    "0.5 the tokens come from a sharper one. Its favourites are those that the reference here "
    "likes even more, and their log-ratio is negative.",
    cure="Divide the logits of policy and reference by the temperature of the rollouts before the softmax, "
    "or draw at 1. The same holds for top-k and top-p.",
    quantity="mean of the summed k1, nats per sequence",
    broken=cold_rollouts_scored_warm,
    cured=scored_as_drawn,
    truth=_kl_at_temperature,
    line="logp = logits.log_softmax(-1)",
    finding="Colder than 1, the mean falls below zero",
    plot=Plot(
        x="temperature of the rollouts [no unit]",
        y="mean of the summed k1 [nats per sequence]",
        points=_temperatures,
        at=lambda code: [_drawn_at(code, temperature) for temperature in _temperatures()],
    ),
    also=_kl_at_one,
    thread="huggingface/trl#3029",
)
def kl_of_what_was_drawn(code: Code) -> float:
    """Return the mean log-ratio of completions drawn at a low temperature."""
    return _drawn_at(code, TEMPERATURE)
