"""Claims of section 6.6: what reductions estimate, why prompts are masked, what a token-level clip costs."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.lab import THREE, TWO, listed, rows, triple
from kltutor.claims.witnesses import KL, agree, differ, ensure, num
from kltutor.divergences import kl
from kltutor.estimators import k1
from kltutor.masking import Reduction, masked_sum, reduce, token_logps
from kltutor.policy_gradient import ppo_clip_loss
from kltutor.tasks import TabularPolicy

HOW: tuple[Reduction, ...] = ("token_mean", "sequence_mean", "sequence_sum")
BETA, CLIP = 0.3, 0.2


@claim(
    "KL-628",
    section="6.6",
    says=r"Of one batch the three reductions of $\sum_t k_1$ are three numbers ($2/11$, $0.55$ and $1$): the "
    rf"sum over tokens is an unbiased estimate of {KL} of the completion, the mean of each row one of "
    r"$\mathrm{E}[\sum_t k_1/T]$, and the mean over all tokens estimates the latter with one row in the "
    r"batch and $\mathrm{KL}/\mathrm{E}[T]$ with many; the last two are no KL and can fall while the KL "
    "rises.",
    verdict="folklore is wrong",
    folklore="The masked mean over the tokens of a batch is the KL, up to a constant.",
    kind="exact",
    source_rows=("m:I25",),
)
def three_reductions() -> str:
    """A batch of ten small tokens and one large; all batches of one and two; a policy that talks longer."""
    values = torch.zeros(2, 10, dtype=torch.float64)
    values[0], values[1, 0] = 0.1, 1.0
    mask = torch.arange(10) < torch.tensor([[10], [1]])
    one_batch = [reduce(values.masked_fill(~mask, torch.nan), mask, how) for how in HOW]
    agree(torch.stack(one_batch), torch.tensor([2 / 11, 0.55, 1.0], dtype=torch.float64), "one batch")

    policy, ref, _ = triple(TWO)
    logp, ref_logp = rows(policy, TWO), rows(ref, TWO)
    probs, logs, lengths = logp.sum(-1).exp(), k1(logp, ref_logp), TWO.mask.sum(-1).double()
    divergence = kl(logp.sum(-1), ref_logp.sum(-1))
    limit, by_row = divergence / (probs @ lengths), probs @ (logs.sum(-1) / lengths)
    means = {1: _batch_means(probs, logs, TWO.mask, 1), 2: _batch_means(probs, logs, TWO.mask, 2)}
    for size, mean in means.items():
        agree(mean["sequence_sum"], divergence, f"the sum over batches of {size}")
        agree(mean["sequence_mean"], by_row, f"the mean of each row over batches of {size}")
    agree(means[1]["token_mean"], by_row, "the mean over tokens of one row")
    differ(means[2]["token_mean"], means[1]["token_mean"], "the mean over tokens of two rows", 0.01)
    ensure(
        (means[2]["token_mean"] - limit).abs() < (means[1]["token_mean"] - limit).abs(),
        "two rows are further from KL/E[T] than one",
    )
    many = 200  # of each completion in proportion to its probability, nearly
    counts = (probs * many**2).round().long()
    large = reduce(logs.repeat_interleave(counts, 0), TWO.mask.repeat_interleave(counts, 0), "token_mean")
    agree(large, limit, "the mean over the tokens of many rows", 1e-3)

    longer = TabularPolicy(TWO, policy.logits.detach().clone())
    with torch.no_grad():
        longer.logits[0, 0, 0] -= 3.0  # ends after one token less often
    other = rows(longer, TWO)
    further = kl(other.sum(-1), ref_logp.sum(-1))
    mean_length = other.sum(-1).exp() @ lengths
    ensure(bool(further > divergence), f"the KL of the longer policy is {further}, of the other {divergence}")
    ensure(bool(further / mean_length < limit), f"KL/E[T] rises from {limit} to {further / mean_length}")
    other_row = other.sum(-1).exp() @ (k1(other, ref_logp).sum(-1) / lengths)
    ensure(bool(other_row < by_row), f"the mean of rows rises from {by_row} to {other_row}")
    return (
        f"One batch: {listed(one_batch, 4)}. All batches of 1 and 2: sum {num(divergence, 4)} = KL, mean of "
        f"rows {num(by_row, 4)}, mean over tokens {num(means[1]['token_mean'], 4)} and "
        f"{num(means[2]['token_mean'], 4)}, KL/E[T] {num(limit, 4)}. A longer policy: KL {num(further, 4)}, "
        f"mean of rows {num(other_row, 4)}, KL/E[T] {num(further / mean_length, 4)}."
    )


@claim(
    "KL-629",
    section="6.6",
    says="Prompt tokens are masked because they are no actions, not because policy and reference agree on "
    r"them: counting them adds $\mathrm{E}[\log(\pi(x)/\pi_{\mathrm{ref}}(x))]$, of either sign, to the "
    r"number; held fixed in the reward it adds nothing to the mean gradient, differentiated in a loss it "
    r"adds $\beta\, \mathrm{E}[\nabla \log \pi(x)]$, which is no part of $\nabla J$ and unlearns the "
    "prompts.",
    verdict="folklore is wrong",
    folklore="On prompt tokens both models read the same input, so the KL there is 0 up to rounding.",
    kind="exact",
    source_rows=("f:W23",),
)
def prompts_are_no_actions() -> str:
    """Texts of one prompt token and two answers, all nine of them; the models predict the prompt as well."""
    asked = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # by the data, whatever the models think
    reward = torch.tensor([[1.0, 0.0, 0.4], [0.2, 0.9, 0.0], [0.0, 0.3, 0.7]], dtype=torch.float64)
    seed = torch.Generator().manual_seed(0)
    start, other = torch.randn(2, 4, 3, generator=seed, dtype=torch.float64)
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # (prompt, answer)
    answer, whole = torch.tensor([[False, True]]).expand(9, 2), torch.ones(9, 2, dtype=torch.bool)

    def tokens_of(logits: Tensor) -> Float[Tensor, "text 2"]:
        both = torch.stack([logits[:1].expand(9, 3), logits[1:][grid[:, 0]]], 1)
        return token_logps(both, grid)

    ref = tokens_of(other)

    def weights(logp: Tensor) -> Float[Tensor, " text"]:
        return asked[grid[:, 0]] * logp[:, 1].exp()

    def objective(logits: Tensor) -> Tensor:
        logp = tokens_of(logits)
        return weights(logp) @ (reward[grid[:, 0], grid[:, 1]] - BETA * masked_sum(k1(logp, ref), answer))

    logits = start.clone().requires_grad_()
    logp = tokens_of(logits)
    truth = torch.autograd.grad(objective(logits), logits)[0]
    agree(truth[0], torch.zeros(3), "the gradient of J in the logits of the prompt", 1e-15)
    fixed, drawn = logp.detach(), weights(logp).detach()
    numbers = [drawn @ masked_sum(k1(fixed, ref), mask) for mask in (answer, whole)]
    exact_kl = asked @ kl(start[1:].log_softmax(-1), other[1:].log_softmax(-1))
    agree(numbers[0], exact_kl, "the masked number and the KL")
    prompt_part = asked @ (start[0].log_softmax(-1) - other[0].log_softmax(-1))
    agree(numbers[1] - numbers[0], prompt_part, "what counting the prompt adds")
    differ(prompt_part, 0, "the same and 0", 0.1)
    swapped = asked @ (other[0].log_softmax(-1) - start[0].log_softmax(-1))
    ensure(bool(prompt_part * swapped < 0), "the part of the prompt has one sign only")

    for mask in (answer, whole):  # in the reward: the score of the answer times a number that is held fixed
        paid = reward[grid[:, 0], grid[:, 1]] - BETA * masked_sum(k1(fixed, ref), mask)
        score = torch.autograd.grad((drawn * paid) @ logp[:, 1], logits, retain_graph=True)[0]
        agree(score, truth, "the policy gradient", 1e-12)
    extra = torch.autograd.grad(
        BETA * drawn @ (masked_sum(k1(logp, ref), whole) - masked_sum(k1(logp, ref), answer)), logits
    )[0]
    agree(extra[1:], torch.zeros(3, 3), "what a loss on the prompt adds in the logits of the answers", 1e-15)
    agree(extra[0], BETA * (asked - start[0].softmax(-1)), "what it adds in those of the prompt")
    differ(extra[0], torch.zeros(3), "the same and 0", 0.03)
    stepped = (start[0] - 0.5 * extra[0]).log_softmax(-1)
    ensure(bool(asked @ stepped < asked @ start[0].log_softmax(-1)), "a step does not unlearn the prompts")
    return (
        f"KL {num(numbers[0], 4)}; with the prompt {num(numbers[1], 4)}. Gradient of J in the prompt's "
        f"logits 0; of a loss that counts the prompt ({listed(extra[0], 2)})."
    )


@claim(
    "KL-630",
    section="6.6",
    says="On fresh samples the clipped token-level surrogate has exactly the policy gradient; on stale ones "
    "its ratios leave out those of the other tokens, and the clip drops the tokens beyond it, so its "
    "mean gradient is off, at first in proportion to the step and later by most of its length; what is "
    "bought is variance, as the ratio of the whole completion is exact but its variance explodes.",
    verdict="holds",
    kind="exact",
    sources=("schulman2017ppo",),
)
def price_of_the_clip() -> str:
    """All completions of an old policy, the new one further and further away, three surrogates."""
    policy, _, old = triple(THREE)
    reward, old_rows = THREE.reward[0], rows(old, THREE)
    advantage = reward - old_rows.sum(-1).exp() @ reward
    table = {}
    for step in (0.0, 0.01, 0.02, 0.3, 1.0):
        new = TabularPolicy(THREE, (old.logits + step * (policy.logits - old.logits)).detach())
        truth = exact.gradient(
            lambda p: exact.expectation(THREE.reward, exact.seq_logp(p, THREE), THREE), new
        )
        means = {}
        for name in ("clipped", "token", "completion", "dropped"):
            means[name], spread = _surrogate(name, new, old, old_rows, advantage)
            table[name, step] = ((means[name] + truth).norm() / truth.norm()).item(), spread.item()
        agree(means["clipped"], means["dropped"], "the clip and no clip without the tokens beyond it", 1e-12)
    for name in ("clipped", "token", "completion"):
        agree(table[name, 0.0][0], 0, f"fresh samples, {name}", 1e-12)
        agree(table[name, 0.0][1] / table["token", 0.0][1], 1, f"variance on fresh samples, {name}", 1e-12)
    agree(max(table["completion", s][0] for s in (0.01, 0.3, 1.0)), 0, "the ratio of the completion", 1e-12)
    agree(table["clipped", 0.02][0] / table["clipped", 0.01][0], 2, "the error at twice the step", 0.05)
    agree(table["clipped", 0.02][0], table["token", 0.02][0], "before the clip takes part", 1e-12)
    ensure(table["clipped", 0.3][0] > 2 * table["token", 0.3][0], "the clip costs nothing")
    ensure(table["clipped", 1.0][0] > 0.5, "far away the clipped gradient is right")
    ensure(table["completion", 1.0][1] > 10 * table["clipped", 1.0][1], "the clip buys no variance")
    errors = [
        f"{100 * table['clipped', s][0]:.2g} ({100 * table['token', s][0]:.2g})" for s in (0.01, 0.3, 1)
    ]
    spreads = [table[name, 1.0][1] for name in ("clipped", "token", "completion")]
    return (
        f"Error of the clipped (unclipped) token surrogate at .01, .3 and all of the way to a policy "
        f"{num(exact.kl(old, policy, THREE).detach(), 2)} nats from the old: {', '.join(errors)} % of the "
        f"gradient; variance there {listed(spreads, 2)} for clipped, token and whole-completion ratios."
    )


def _batch_means(
    probs: Float[Tensor, " completion"],
    values: Float[Tensor, "completion time"],
    mask: Bool[Tensor, "completion time"],
    size: int,
) -> dict[str, Tensor]:
    """Return the mean of each reduction over all batches of one or two completions."""
    batches = torch.cartesian_prod(*[torch.arange(len(probs))] * size).view(-1, size)
    weights = probs[batches].prod(-1)
    return {
        how: weights @ torch.stack([reduce(values[batch], mask[batch], how) for batch in batches])
        for how in HOW
    }


def _surrogate(
    name: str,
    new: TabularPolicy,
    old: TabularPolicy,
    old_rows: Float[Tensor, "completion time"],
    advantage: Float[Tensor, " completion"],
) -> tuple[Float[Tensor, " parameter"], Float[Tensor, ""]]:
    """Return mean and summed variance of the gradient of a surrogate over completions of the old policy."""

    def loss(logp: Tensor, mask: Tensor, old_logp: Tensor, advantage: Tensor) -> Tensor:
        if name == "completion":
            return -masked_sum(logp - old_logp, mask).exp() * advantage
        paid = advantage[:, None].expand_as(logp)
        if name == "clipped":
            return ppo_clip_loss(logp, old_logp, paid, mask, CLIP, reduction="sequence_sum")
        ratio = (logp - old_logp).exp()
        beyond = torch.where(paid > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
        return -masked_sum(ratio * paid, mask & ~beyond if name == "dropped" else mask)

    result = exact.expected_gradient(loss, new, THREE, sampler=old, given=(old_rows, advantage))
    return result.mean, result.variance.sum()
