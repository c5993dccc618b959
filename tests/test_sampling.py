"""Samples against the exact law of the completions; cached against uncached; stacked against single."""

import math

import jaxtyping
import pytest
import torch
from scipy.stats import chi2
from worlds import world

from kltutor import TabularPolicy, exact, tasks
from kltutor.model import GPTShape, TinyGPT
from kltutor.sampling import completion_logps, sample
from kltutor.tasks import END

DOUBLE = {"dtype": torch.float64, "device": "cpu"}
SMALL = tasks.small()
LARGEST = 1 - 2**-53  # of what torch.rand draws in float64


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def gpt(number=0, task=SMALL, **changes):
    return TinyGPT.for_task(task, generator=seeds(number)[0], **DOUBLE | {"layers": 2, "width": 16} | changes)


def tabular(number=0, task=SMALL):
    return TabularPolicy.random(task, seeds(number)[0])


def asked(count, task=SMALL):
    """Prompts in turn, and which they are."""
    which = torch.arange(count) % len(task.prompts)
    return task.prompt_tokens[which], which


def draw(policy, count, number=5, task=SMALL, **changes):
    return sample(policy, asked(count, task)[0], task.horizon, seeds(number)[0], **changes)


def listed(drawn, task=SMALL):
    """Which of the completions of the task each row is."""
    index = {seq: i for i, seq in enumerate(task.sequences)}
    cut = [
        tuple(row[keep].tolist())
        for row, keep in zip(drawn.tokens.flatten(0, -2), drawn.mask.flatten(0, -2), strict=True)
    ]
    return torch.tensor([index[seq] for seq in cut])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_the_cache_changes_no_token(tied, dtype):
    policy = gpt(tied=tied, dtype=dtype)
    with_cache, without = draw(policy, 400), draw(policy, 400, cache=False)
    assert torch.equal(with_cache.tokens, without.tokens)
    assert torch.equal(with_cache.mask, without.mask)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(with_cache.logp, without.logp, rtol=0, atol=tolerance)
    assert with_cache.logp.dtype == dtype
    assert len(set(listed(with_cache).tolist())) > 25


def test_the_cache_is_used_and_reads_one_token_at_a_time(monkeypatch):
    policy, read = gpt(), []
    extend = TinyGPT.extend

    def spy(self, tokens, cache):
        read.append(tokens.shape[-1])
        return extend(self, tokens, cache)

    monkeypatch.setattr(TinyGPT, "extend", spy)
    draw(policy, 50)
    assert read == [2, 1, 1, 1]
    read.clear()
    draw(policy, 50, cache=False)
    assert read == [2, 3, 4, 5]


@pytest.mark.parametrize("cache", [True, False])
def test_a_stack_draws_what_its_policies_would(cache):
    models, prompts = [gpt(number) for number in range(3)], asked(60)[0]
    each = torch.stack([prompts, prompts.flip(0), prompts.roll(1, 0)])
    together = sample(TinyGPT.stack(models), each, 4, seeds(7, 8, 9), cache=cache)
    for i, (model, generator) in enumerate(zip(models, seeds(7, 8, 9), strict=True)):
        alone = sample(model, each[i], 4, generator)
        assert torch.equal(together.tokens[i], alone.tokens)
        assert torch.equal(together.mask[i], alone.mask)
        torch.testing.assert_close(together.logp[i], alone.logp, rtol=0, atol=1e-12)
    assert not torch.equal(together.tokens[0], together.tokens[1])


@pytest.mark.parametrize("make", [gpt, tabular])
def test_log_probabilities_are_the_exact_ones_and_those_of_the_forward_pass(make):
    policy, (prompts, which) = make(), asked(300)
    drawn = draw(policy, 300)
    truth = exact.token_logps(policy, SMALL)[which, listed(drawn)]
    torch.testing.assert_close(drawn.logp, truth.detach(), rtol=0, atol=1e-12)
    again = completion_logps(policy, prompts, drawn.tokens, drawn.mask)
    torch.testing.assert_close(again, drawn.logp, rtol=0, atol=1e-12)
    assert not drawn.logp.requires_grad
    parameters = list(policy.parameters())
    weights = torch.randn(truth.shape, generator=seeds(1)[0], dtype=torch.float64)
    found = torch.autograd.grad((weights * again).sum(), parameters)
    expected = torch.autograd.grad((weights * truth).sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_log_probabilities_of_a_stack_are_those_of_its_policies():
    models, prompts = [gpt(number) for number in range(2)], asked(30)[0].expand(2, -1, -1)
    stack = TinyGPT.stack(models)
    drawn = sample(stack, prompts, 4, seeds(1, 2))
    again = completion_logps(stack, prompts, drawn.tokens, drawn.mask)
    torch.testing.assert_close(again, drawn.logp, rtol=0, atol=1e-12)
    for i, model in enumerate(models):
        own = completion_logps(model, prompts[i], drawn.tokens[i], drawn.mask[i])
        torch.testing.assert_close(again[i], own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [gpt, tabular])
def test_completions_are_as_frequent_as_they_are_probable(make):
    """Chi-squared over all completions of each prompt at 99.999 %: a wrong alarm with probability 2e-5."""
    task, count = world(horizon=3), 40_000
    policy = make(task=task)
    drawn, which = draw(policy, count, task=task), asked(count, task)[1]
    seen = listed(drawn, task)
    probs = exact.seq_logp(policy, task).exp().detach()
    for x in range(2):
        expected = probs[x] * (which == x).sum()
        observed = torch.bincount(seen[which == x], minlength=task.size)
        assert expected.min() > 5
        distance = ((observed - expected).square() / expected).sum().item()
        assert distance < chi2.ppf(1 - 1e-5, task.size - 1)
        other = probs[1 - x] * (which == x).sum()  # the law of the other prompt would be noticed
        assert ((observed - other).square() / other).sum().item() > 2 * chi2.ppf(1 - 1e-5, task.size - 1)


@pytest.mark.parametrize("make", [gpt, tabular])
def test_a_token_is_the_inverse_of_the_cumulative_distribution_at_one_number(make):
    policy, which = make(), asked(200)[1]
    drawn = draw(policy, 200, number=3)
    uniform = torch.rand(200, 4, generator=seeds(3)[0], dtype=torch.float64)
    logps = exact.prefix_logps(policy, SMALL).detach()
    for row in range(200):
        prefix = ()
        for t in range(4):
            probs = logps[which[row], SMALL.open_prefixes.index(prefix)].exp().tolist()
            token = next(k for k in range(4) if sum(probs[: k + 1]) > uniform[row, t])
            assert drawn.tokens[row, t] == token
            prefix += (token,)
            if token == END:
                break
    assert drawn.tokens.unique().tolist() == [0, 1, 2, 3]


def test_a_row_stops_after_its_end_token():
    drawn = draw(gpt(), 500)
    ended = 0
    for tokens, mask, logp in zip(*drawn, strict=True):
        length = int(mask.sum())
        assert mask[:length].all()  # no gap
        assert END not in tokens[: length - 1]
        assert (tokens[length:] == END).all()
        assert not logp[length:].any()
        assert (logp[:length] < 0).all()
        assert length == 4 or tokens[length - 1] == END
        ended += int(tokens[length - 1] == END)
    assert 100 < ended < 480


def test_when_all_rows_have_ended_the_policy_is_asked_no_more():
    logits = torch.full((2, 40, 4), -torch.inf, dtype=torch.float64)
    logits[:, 0, 1:] = 0.0  # a word, each as probable,
    logits[:, 1:, END] = 0.0  # then the end
    policy, read = TabularPolicy(SMALL, logits), []

    def spy(tokens):
        read.append(tokens.shape[1])
        return policy(tokens)

    drawn = draw(spy, 30)
    assert read == [2, 3]
    assert drawn.mask.tolist() == [[True, True, False, False]] * 30
    assert not drawn.tokens[:, 1:].any()
    expected = torch.tensor([-math.log(3), 0, 0, 0], dtype=torch.float64).expand(30, 4)
    torch.testing.assert_close(drawn.logp, expected)


def banning(first, last, task=SMALL):
    """A policy that can say neither the first nor the last token, at any prefix."""
    logits = tabular(task=task).logits.detach().clone()
    logits[..., first] = logits[..., last] = -torch.inf
    return TabularPolicy(task, logits)


def always(number):
    """In place of torch.rand."""
    return lambda *size, generator, dtype: torch.full(size, number, dtype=dtype)


@pytest.mark.parametrize("rising", [0.0, 1e-9])
@pytest.mark.parametrize("uniform", [0.0, LARGEST])
def test_a_token_of_probability_0_is_not_drawn_even_at_the_ends(uniform, rising, monkeypatch):
    add = torch.Tensor.cumsum  # added up in parallel, sums may rise where the summand is 0
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda probs, axis: add(probs, axis) + rising * (probs == 0))
    monkeypatch.setattr(torch, "rand", always(uniform))
    drawn = draw(banning(0, 3), 4)
    assert drawn.tokens.tolist() == [[1 if uniform == 0 else 2] * 4] * 4
    assert drawn.logp.isfinite().all()
    assert drawn.mask.all()


def test_a_boundary_belongs_to_the_token_above_it(monkeypatch):
    uniform = TabularPolicy(SMALL, torch.zeros(2, 40, 4, dtype=torch.float64))
    for number, token in ((0.25, 1), (0.5, 2), (0.75, 3), (0.5 - 1e-15, 1)):
        monkeypatch.setattr(torch, "rand", always(number))
        assert (draw(uniform, 2).tokens == token).all()


def test_a_token_of_probability_0_is_not_drawn_at_any_number():
    assert draw(banning(0, 2), 3000).tokens.unique().tolist() == [1, 3]
    only = draw(banning(1, 3), 3000)
    assert only.tokens.unique().tolist() == [0, 2]
    truth = exact.token_logps(banning(1, 3), SMALL)[asked(3000)[1], listed(only)]
    torch.testing.assert_close(only.logp, truth.detach())


def test_numbers_are_taken_before_the_first_token_whatever_is_drawn():
    after = []
    for policy in (gpt(), tabular(), banning(1, 2)):
        generator = seeds(4)[0]
        sample(policy, asked(6)[0], 4, generator)
        after.append(torch.rand(1, generator=generator, dtype=torch.float64))
    generator = seeds(4)[0]
    torch.rand(6, 4, generator=generator, dtype=torch.float64)
    assert after == [torch.rand(1, generator=generator, dtype=torch.float64)] * 3


def test_a_shorter_horizon_and_a_longer_prompt():
    policy = gpt()
    short = sample(policy, asked(50)[0], 2, seeds(0)[0])
    assert short.tokens.shape == (50, 2)
    begun = torch.cat([asked(50)[0], torch.full((50, 1), 2)], 1)
    rest = sample(policy, begun, 3, seeds(0)[0])
    logps = exact.prefix_logps(policy, SMALL)[torch.arange(50) % 2, SMALL.open_prefixes.index((2,))]
    expected = logps[torch.arange(50), rest.tokens[:, 0]].detach()
    torch.testing.assert_close(rest.logp[:, 0], expected)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_another_device_draws_the_same_tokens(device):
    """In float32 a token differs where a number falls within 1e-6 of a boundary: probability below 1e-2."""
    if not getattr(torch, device).is_available():
        pytest.skip(f"no {device} on this machine")
    here, there = (gpt(dtype=torch.float32, device=where) for where in ("cpu", device))
    expected, found = draw(here, 200), draw(there, 200)
    assert found.tokens.device.type == device
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    torch.testing.assert_close(found.logp.cpu(), expected.logp, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_sampled_is_refused():
    policy, (prompts, _), seed = gpt(), asked(4), seeds(0)[0]
    with pytest.raises(ValueError, match="horizon is 0; at least 1"):
        sample(policy, prompts, 0, seed)
    with pytest.raises(ValueError, match=r"prompt of 2 tokens and horizon 6 make rows of 7; .* at most 6"):
        sample(policy, prompts, 6, seed)
    for bad in (-1, 7):
        wrong = prompts.clone()
        wrong[1, 0] = bad
        with pytest.raises(ValueError, match=rf"prompts\[1, 0\] is {bad}; the model reads 0 to 6"):
            sample(policy, wrong, 4, seed)
    for empty in (prompts[:0], prompts[:, :0]):
        with pytest.raises(ValueError, match=r"\(batch, length\), not empty"):
            sample(policy, empty, 4, seed)
    stack = TinyGPT.stack([policy, policy])
    with pytest.raises(ValueError, match=r"shape \(4, 2\); \(2, batch, length\)"):
        sample(stack, prompts, 4, seeds(0, 1))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 2\); \(batch, length\)"):
        sample(policy, prompts.expand(2, -1, -1), 4, seed)
    with pytest.raises(ValueError, match="one generator; a sequence of 2"):
        sample(stack, prompts.expand(2, -1, -1), 4, seed)
    with pytest.raises(ValueError, match="one object twice"):
        sample(stack, prompts.expand(2, -1, -1), 4, [seed, seed])
    with pytest.raises(jaxtyping.TypeCheckError, match="'prompts'"):
        sample(policy, prompts.double(), 4, seed)


class Elsewhere(torch.Generator):
    """A generator that says it is on a GPU, for machines that have none."""

    device = torch.device("cuda", 0)


def test_a_generator_on_a_gpu_is_refused():
    with pytest.raises(ValueError, match="generator is on cuda:0; one on the CPU is expected"):
        sample(gpt(), asked(2)[0], 4, Elsewhere())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits = tabular().logits.detach().clone()
    logits[:, 1:, 2] = bad  # after the first token
    with pytest.raises(ValueError, match=r"nan, \+inf or nothing but -inf as logits of token \[\d+, 1\]"):
        draw(TabularPolicy(SMALL, logits), 20)
    with pytest.raises(ValueError, match="nothing but -inf"):
        draw(TabularPolicy(SMALL, torch.full_like(logits, -torch.inf)), 20)


def test_a_model_of_many_tokens_and_long_rows():
    """The same with a vocabulary of 60, rows of 32, and prompts with ids that are never written."""
    shape = GPTShape(inputs=64, outputs=60, length=32, layers=2, heads=4, width=32)
    model = TinyGPT(shape, generator=seeds(1)[0], **DOUBLE)
    prompts = torch.randint(64, (40, 8), generator=seeds(2)[0])
    fast, slow = (sample(model, prompts, 24, seeds(3)[0], cache=cache) for cache in (True, False))
    assert torch.equal(fast.tokens, slow.tokens)
    torch.testing.assert_close(fast.logp, slow.logp, rtol=0, atol=1e-11)
    assert fast.tokens.max() == 59
    assert 5 < fast.mask.sum(-1).double().mean() < 24
