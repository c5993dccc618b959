"""TinyGPT against a transformer written out row by row, and stacks of it against single models."""

import math
import re

import jaxtyping
import pytest
import torch
from worlds import world

from kltutor import exact, tasks
from kltutor.model import GPTShape, TinyGPT, ValueHead

DOUBLE = {"dtype": torch.float64, "device": "cpu"}
SHAPE = GPTShape(inputs=7, outputs=4, length=6, layers=2, heads=2, width=8)
TIED = GPTShape(inputs=7, outputs=4, length=6, layers=2, heads=2, width=8, tied=True)
BOTH = pytest.mark.parametrize("shape", [SHAPE, TIED], ids=["untied", "tied"])


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def single(number=0, shape=SHAPE, **changes):
    return shake(TinyGPT(shape, generator=seeds(number)[0], **DOUBLE | changes), number)


def shake(model, number=0):
    """Move every parameter, so that none is at a value such as 0 or 1 that hides its part."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=seeds(number + 100)[0], dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return model


def rows(count=5, time=6, number=9, lead=()):
    return torch.randint(7, (*lead, count, time), generator=seeds(number)[0])


def plain_norm(norm, x):
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * norm.gain + norm.shift


def plain(model, row):
    """Logits of one row, token by token, each attending to itself and those before it."""
    shape = model.shape
    size = shape.width // shape.heads
    states = [model.token[word] + model.position[t] for t, word in enumerate(row)]
    for block in model.blocks:
        mixed = [block.query_key_value @ plain_norm(block.attention_norm, x) for x in states]
        queries, keys, values = ([m.view(3, shape.heads, size)[i] for m in mixed] for i in range(3))
        after = []
        for t, x in enumerate(states):
            heads = []
            for h in range(shape.heads):
                scores = torch.stack([queries[t][h] @ keys[s][h] / math.sqrt(size) for s in range(t + 1)])
                weights = scores.exp() / scores.exp().sum()
                heads.append(sum(weights[s] * values[s][h] for s in range(t + 1)))
            x = x + block.attended @ torch.cat(heads)
            inner = block.up @ plain_norm(block.mlp_norm, x)
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            after.append(x + block.down @ inner)
        states = after
    head = model.token[: shape.outputs] / shape.width if shape.tied else model.head
    return torch.stack([head @ plain_norm(model.norm, x) for x in states])


@BOTH
def test_logits_are_those_of_the_transformer_written_out(shape):
    model, tokens = single(shape=shape), rows()
    expected = torch.stack([plain(model, row) for row in tokens])
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-12)
    assert expected.std(dim=(0, 1)).min() > 0.1  # they depend on what was read


def test_a_later_token_changes_nothing_before_it():
    model, tokens = single(), rows()
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    difference = (model(changed) - model(tokens)).abs().amax((0, 2))
    assert difference[:3].max() < 1e-14
    assert difference[3:].min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("task", [tasks.bandit(), tasks.small()], ids=lambda task: task.name)
def test_it_is_a_policy_whose_completions_sum_to_1(task, tied, dtype):
    model = shake(TinyGPT.for_task(task, generator=seeds(3)[0], dtype=dtype, device="cpu", tied=tied))
    logp = exact.seq_logp(model, task)
    assert logp.dtype == torch.float64
    assert (logp.exp().sum(-1) - 1).abs().max() < 1e-12
    assert exact.prefix_logps(model, task).std(-1).max() > 0.05  # not uniform
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_a_model_for_a_task_reads_prompt_and_completion_and_no_more():
    task = world(horizon=3)
    model = TinyGPT.for_task(task, generator=seeds(0)[0], **DOUBLE)
    assert (model.shape.inputs, model.shape.outputs, model.shape.length) == (5, 3, 4)  # stop a b x y
    bandit = TinyGPT.for_task(tasks.bandit(), generator=seeds(0)[0], **DOUBLE)
    assert (bandit.shape.inputs, bandit.shape.outputs, bandit.shape.length) == (4, 3, 2)
    known = world(prompts=(("a",), ("b",)))  # prompts that are words: the model writes the others too
    assert TinyGPT.for_task(known, generator=seeds(0)[0], **DOUBLE).shape.inputs == 3


def test_exact_gradients_go_through_it():
    task = world()
    model = shake(TinyGPT.for_task(task, generator=seeds(0)[0], width=8, **DOUBLE))

    def objective(policy):
        return exact.expectation(task.reward, exact.seq_logp(policy, task), task)

    truth = exact.gradient(objective, model)
    reward = task.reward.flatten()
    sampled = exact.expected_gradient(
        lambda logp, mask, reward: logp.sum(-1) * reward, model, task, given=[reward]
    )
    torch.testing.assert_close(sampled.mean, truth, rtol=0, atol=1e-10)
    assert truth.norm() > 0.1
    assert sampled.trace > 0.01


@BOTH
def test_an_element_of_a_stack_is_the_single_model_of_its_generator(shape):
    stack = TinyGPT(shape, generator=seeds(4, 5, 6), policies=3, **DOUBLE)
    for i, number in enumerate((4, 5, 6)):
        own = TinyGPT(shape, generator=seeds(number)[0], **DOUBLE)
        copied = stack.policy(i)
        assert copied.policies is None
        for name, parameter in own.named_parameters():
            assert torch.equal(stack.get_parameter(name)[i], parameter), name
            assert torch.equal(copied.get_parameter(name), parameter), name
    assert not torch.equal(stack.token[0], stack.token[1])


@BOTH
def test_one_step_of_a_stack_is_a_step_of_each(shape):
    models = [single(number, shape) for number in range(3)]
    stack, tokens = TinyGPT.stack(models), rows(lead=(3,))
    heads = [ValueHead(shape.width, **DOUBLE) for _ in models]
    both = ValueHead(shape.width, policies=3, **DOUBLE)
    with torch.no_grad():
        for i, head in enumerate(heads):
            head.weight.normal_(generator=seeds(i)[0])
            head.bias.fill_(i - 1.0)
            both.weight[i], both.bias[i] = head.weight, head.bias
    scale = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    def losses(model, head, tokens):
        hidden = model.hidden(tokens)
        logp = model.logits(hidden)[..., :-1, :].log_softmax(-1)
        chosen = logp.gather(-1, (tokens[..., 1:] % 4).unsqueeze(-1)).squeeze(-1)
        return (chosen.exp() + 0.1 * (head(hidden)[..., 1:] - 1).square()).mean((-1, -2))

    def step(modules, loss):
        parameters = [parameter for module in modules for parameter in module.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=0.01)
        loss.backward()
        optimiser.step()

    found = losses(stack, both, tokens)
    step([stack, both], (scale * found).sum())
    for i, (model, head) in enumerate(zip(models, heads, strict=True)):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        value = losses(model, head, tokens[i])
        step([model, head], scale[i] * value)
        assert abs(found[i] - value) < 1e-10
        for own, stacked in ((model, stack), (head, both)):
            for name, parameter in own.named_parameters():
                other = stacked.get_parameter(name)
                torch.testing.assert_close(other.grad[i], parameter.grad, rtol=0, atol=1e-10, msg=name)
                torch.testing.assert_close(other[i], parameter, rtol=0, atol=1e-10, msg=name)
                assert parameter.grad.abs().max() > 1e-4, name  # each has a part
        moved = [(new - old).abs().max() for new, old in zip(model.parameters(), before, strict=True)]
        assert min(moved) > 1e-3


def test_the_policies_of_a_stack_do_not_touch_each_other():
    stack = TinyGPT.stack([single(0), single(1)])
    stack(rows(lead=(2,)))[1].square().sum().backward()
    for name, parameter in stack.named_parameters():
        assert not parameter.grad[0].any(), name
        assert parameter.grad[1].any(), name


def test_stacking_and_taking_out_are_copies():
    ref = single()
    stack = TinyGPT.stack([ref, ref])
    kept = stack.policy(1)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(2)
    assert torch.equal(kept(rows()), ref(rows()))
    assert not torch.allclose(stack.policy(1)(rows()), ref(rows()))
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in kept.parameters())


def test_a_seed_is_one_model_whatever_the_dtype():
    first, again, other = (TinyGPT(SHAPE, generator=seeds(n)[0], **DOUBLE) for n in (1, 1, 2))
    coarse = TinyGPT(SHAPE, generator=seeds(1)[0], dtype=torch.float32, device="cpu")
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        assert torch.equal(parameter.float(), coarse.get_parameter(name)), name
    assert not torch.equal(first.token, other.token)


def test_a_new_model_is_neither_certain_nor_a_parrot_at_any_size():
    for layers, width, tied in ((1, 16, False), (8, 16, False), (2, 128, False), (2, 128, True)):
        shape = GPTShape(50, 50, 8, layers, 4, width, tied)
        tokens = torch.randint(50, (40, 8), generator=seeds(1)[0])
        logits = TinyGPT(shape, generator=seeds(0)[0], **DOUBLE)(tokens)
        assert (0.05 if tied else 0.6) < logits.std() < 1.6, (layers, width, tied)
        again = logits.softmax(-1).gather(-1, tokens.unsqueeze(-1))
        assert again.mean() < 0.1, (layers, width, tied)  # 1/50 is chance


def test_from_thousands_to_millions_of_parameters():
    def size(**changes):
        model = TinyGPT(
            GPTShape(8, 6, 8, **changes), generator=seeds(0)[0], dtype=torch.float32, device="cpu"
        )
        assert model(rows(2, 8)).isfinite().all()
        return sum(parameter.numel() for parameter in model.parameters())

    assert 1e3 < size(layers=1, heads=1, width=12) < 4e3
    assert 2e6 < size(layers=4, heads=8, width=224) < 4e6


def test_values_are_linear_in_the_hidden_state_and_start_at_0():
    model, tokens = single(), rows()
    hidden = model.hidden(tokens)
    head = ValueHead(8, **DOUBLE)
    assert not head(hidden).any()
    with torch.no_grad():
        head.weight.copy_(torch.arange(8.0))
        head.bias.fill_(-2.0)
    torch.testing.assert_close(head(hidden), (hidden * torch.arange(8.0)).sum(-1) - 2)
    torch.testing.assert_close(model.logits(hidden), model(tokens))


@pytest.mark.parametrize("policies", [None, 2])
@BOTH
def test_it_compiles_without_a_graph_break(shape, policies):
    model = single(shape=shape) if policies is None else TinyGPT.stack([single(0, shape), single(1, shape)])
    head = ValueHead(8, policies=policies, **DOUBLE)
    tokens = rows(lead=() if policies is None else (policies,))

    def both(model, head, tokens):
        hidden = model.hidden(tokens)
        return model.logits(hidden), head(hidden) + hidden.mean(-1)

    torch.compiler.reset()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(tokens), model(tokens))
    parameters = list(model.parameters())
    found, expected = compiled(model, head, tokens), both(model, head, tokens)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(sum(part.square().sum() for part in found), parameters),
        torch.autograd.grad(sum(part.square().sum() for part in expected), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("policies", [None, 2])
def test_autocast_computes_coarsely_and_answers_in_the_dtype_of_the_parameters(policies):
    fine = [TinyGPT(SHAPE, generator=seed, dtype=torch.float32, device="cpu") for seed in seeds(0, 1)]
    model = fine[0] if policies is None else TinyGPT.stack(fine)
    tokens = rows(lead=() if policies is None else (policies,))
    head = ValueHead(8, policies=policies, dtype=torch.float32, device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        logits, values = model(tokens), head(model.hidden(tokens))
    assert logits.dtype == values.dtype == torch.float32
    assert 1e-5 < (logits - model(tokens)).abs().max() < 0.1
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_another_device_gives_the_same_logits(device):
    if not getattr(torch, device).is_available():
        pytest.skip(f"no {device} on this machine")
    here, there = (
        TinyGPT(SHAPE, generator=seeds(0, 1), policies=2, dtype=torch.float32, device=where)
        for where in ("cpu", device)
    )
    tokens = rows(lead=(2,))
    torch.testing.assert_close(there(tokens.to(device)).cpu(), here(tokens), rtol=1e-4, atol=1e-4)
    with torch.autocast(device, torch.bfloat16):
        coarse = there(tokens.to(device))
    assert coarse.dtype == torch.float32
    assert (coarse.cpu() - here(tokens)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads is 3, which does not divide width 8"),
        ({"outputs": 8}, "outputs is 8 and inputs 7"),
        ({"layers": 0}, "layers is 0"),
        ({"length": 0}, "length is 0"),
        ({"heads": -2}, "heads is -2"),
    ],
)
def test_a_shape_that_no_model_has_is_refused(changes, message):
    fields = {"inputs": 7, "outputs": 4, "length": 6, "layers": 2, "heads": 2, "width": 8}
    with pytest.raises(ValueError, match=message):
        GPTShape(**fields | changes)


class Elsewhere(torch.Generator):
    """A generator that says it is on a GPU, for machines that have none."""

    device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.bfloat16}, "bfloat16.*torch.autocast"),
        ({"device": "mps"}, "mps has no float64; use dtype=torch.float32"),
        ({"generator": seeds(0)}, "a sequence of 1; one generator is expected when policies is None"),
        ({"policies": 2}, "generator is one generator; a sequence of 2 generators is expected"),
        ({"policies": 2, "generator": seeds(0, 1, 2)}, "a sequence of 3; a sequence of 2"),
        ({"policies": 0, "generator": []}, "policies is 0"),
        ({"policies": 2, "generator": seeds(0) * 2}, "one object twice"),
        ({"generator": Elsewhere()}, "generator is on cuda:0; one on the CPU is expected"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TinyGPT(SHAPE, **{"generator": seeds(0)[0]} | DOUBLE | changes)


def test_what_cannot_be_read_is_refused():
    model, stack = single(), TinyGPT.stack([single(0), single(1)])
    with pytest.raises(ValueError, match=r"shape \(2, 5, 6\); \(batch, time\) is expected"):
        model(rows(lead=(2,)))
    with pytest.raises(ValueError, match=r"shape \(5, 6\); \(2, batch, time\) is expected"):
        stack(rows())
    with pytest.raises(ValueError, match=r"\(2, batch, time\)"):
        stack(rows(lead=(3,)))
    with pytest.raises(ValueError, match="rows are 7 tokens long; at most 6"):
        model(rows(time=7))
    beyond = rows(lead=(2,))
    beyond[0, 1, 2] = 7  # of the first policy; the second one's table begins there
    with pytest.raises(ValueError, match=re.escape("tokens[0, 1, 2] is 7, outside the vocabulary 0 to 6")):
        stack(beyond)
    with pytest.raises(jaxtyping.TypeCheckError, match="'tokens'"):
        model(rows().double())
    _, cache = model.extend(rows(time=2), None)
    with pytest.raises(ValueError, match="2 tokens follow the cache; one at a time"):
        model.extend(rows(time=2), cache)


def test_what_cannot_be_stacked_or_taken_out_is_refused():
    with pytest.raises(ValueError, match="models are of 2 kinds"):
        TinyGPT.stack([single(), single(shape=TIED)])
    with pytest.raises(ValueError, match="models are of 0 kinds"):
        TinyGPT.stack([])
    stack = TinyGPT.stack([single(), single()])
    with pytest.raises(ValueError, match="single ones"):
        TinyGPT.stack([stack, stack])
    with pytest.raises(ValueError, match="policy 2 was asked of a stack of 2"):
        stack.policy(2)
    with pytest.raises(ValueError, match="policy 0 was asked of a single model"):
        single().policy(0)
