"""A rollout is what the policy draws, scored by the tables of its world; and what a look at it says."""

import math

import pytest
import torch
from worlds import world

from kltutor import TabularPolicy, exact, k1, tasks
from kltutor.model import TinyGPT, ValueHead
from kltutor.rollout import TabularValue, ask, complete, locate, look, roll_out
from kltutor.run import Run
from kltutor.sampling import Sample, sample
from kltutor.world import World, writer

TASK = world(3)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def setting(task=TASK, **options):
    """A run, a world whose proxy differs from the gold reward, and a policy unlike the reference."""
    run = Run(task="given", **options)
    surroundings = World.around(task, TabularPolicy.random(task, seeded(1)), run)
    return run, surroundings, TabularPolicy.random(task, seeded(2), 1.5)


@pytest.mark.parametrize("task", [world(1), world(3), tasks.small(), tasks.bandit()])
def test_every_completion_is_found_where_the_task_lists_it(task):
    assert locate(task, task.tokens, task.mask).tolist() == list(range(task.size))
    junk = torch.where(task.mask, task.tokens, 1)  # what stands after the end does not matter
    assert locate(task, junk, task.mask).tolist() == list(range(task.size))


@pytest.mark.parametrize("reward", ["gold", "proxy"])
@pytest.mark.parametrize("critic", [True, False])
def test_a_rollout_holds_what_was_drawn_and_what_belongs_to_it(reward, critic):
    options = {"algorithm": "ppo"} if critic else {"algorithm": "rloo", "group": 4}
    run, surroundings, policy = setting(reward=reward, batch=64, **options)
    values = TabularValue(TASK, dtype=torch.float64, device="cpu") if critic else None
    if values is not None:
        with torch.no_grad():
            values.table.logits.normal_(generator=seeded(3))
    rollout = roll_out(run, surroundings, policy, values, seeded(4))
    rows = [
        (x, TASK.sequences.index(tuple(tokens[mask].tolist())))
        for x, tokens, mask in zip(rollout.prompt.tolist(), rollout.tokens, rollout.mask, strict=True)
    ]
    x, y = map(list, zip(*rows, strict=True))
    assert set(x) == {0, 1}
    scores = TASK.reward if reward == "gold" else surroundings.proxy
    assert torch.equal(rollout.scores, scores[x, y])
    assert not torch.equal(TASK.reward[x, y], surroundings.proxy[x, y])
    for found, who in ((rollout.logp, policy), (rollout.ref_logp, surroundings.ref)):
        torch.testing.assert_close(found, exact.token_logps(who, TASK).detach()[x, y], atol=1e-14, rtol=0)
    assert not any(part.requires_grad for part in rollout if part is not None)
    logps = exact.prefix_logps(surroundings.ref, TASK)
    for i, t in rollout.mask.nonzero().tolist():
        prefix = TASK.open_prefixes.index(tuple(rollout.tokens[i, :t].tolist()))
        assert torch.equal(rollout.ref_logps[i, t], logps[x[i], prefix])
        if values is not None:
            assert rollout.values[i, t] == values.table.logits[x[i], prefix, 0]
    size = run.group
    assert rollout.group.tolist() == [i // size for i in range(64)]
    assert all(len({x[i] for i in range(j, j + size)}) == 1 for j in range(0, 64, size))
    assert (rollout.values is None) == (values is None)


def test_prompts_and_completions_come_as_often_as_they_should():
    """Chi-squared of 30 cells, refused with probability 1e-7 if the law is right."""
    run, surroundings, _ = setting(batch=20_000)
    policy = TabularPolicy.random(TASK, seeded(12), 0.8)
    rollout = roll_out(run, surroundings, policy, None, seeded(5))
    law = torch.tensor(TASK.prompt_probs).double()[:, None] * exact.seq_logp(policy, TASK).detach().exp()
    counts = torch.zeros(law.shape, dtype=torch.float64)
    counts.index_put_(
        (rollout.prompt, locate(TASK, rollout.tokens, rollout.mask)), torch.ones(20_000).double(), True
    )
    expected = 20_000 * law
    assert expected.min() > 1
    chi2 = ((counts - expected).square() / expected).sum().item()
    assert chi2 < 87.3  # 29 degrees of freedom: one in ten million lies above


def test_the_same_generator_gives_the_same_rollout_and_the_next_one_differs():
    run, surroundings, policy = setting(batch=32)
    generator = seeded(6)
    first, second = (roll_out(run, surroundings, policy, None, generator) for _ in range(2))
    again = roll_out(run, surroundings, policy, None, seeded(6))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.prompt, again.prompt)
    assert not torch.equal(first.tokens, second.tokens)


def test_rows_keep_every_part_in_step():
    run, surroundings, policy = setting(batch=8)
    values = TabularValue(TASK, dtype=torch.float64, device="cpu")
    rollout = roll_out(run, surroundings, policy, values, seeded(7))
    chosen = torch.tensor([5, 2])
    part = rollout.rows(chosen)
    for name, whole in rollout._asdict().items():
        assert torch.equal(getattr(part, name), whole[chosen]), name
    assert rollout._replace(values=None).rows(chosen).values is None


@pytest.mark.parametrize("kind", ["tabular", "gpt"])
def test_a_look_repeats_what_the_sampler_said_and_is_differentiable(kind):
    run, surroundings, policy = setting(batch=16)
    critic = TabularValue(TASK, dtype=torch.float64, device="cpu")
    if kind == "gpt":
        policy = TinyGPT.for_task(TASK, generator=seeded(8), dtype=torch.float64, device="cpu", width=8)
        critic = ValueHead(8, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(generator=seeded(9))
    rollout = roll_out(run, surroundings, policy, critic, seeded(10))
    now = look(policy, critic, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
    torch.testing.assert_close(now.logp.detach(), rollout.logp, atol=1e-13, rtol=0)
    torch.testing.assert_close(now.values.detach(), rollout.values, atol=1e-13, rtol=0)
    assert rollout.values[rollout.mask].unique().numel() > 3
    chosen = now.logps.gather(-1, rollout.tokens[..., None])[..., 0]
    torch.testing.assert_close(chosen[rollout.mask], now.logp[rollout.mask], atol=1e-14, rtol=0)
    assert (now.logp[~rollout.mask] == 0).all()
    for parameter in policy.parameters():  # errors of the values never move the policy
        (slope,) = torch.autograd.grad(now.values.sum(), parameter, retain_graph=True, allow_unused=True)
        assert slope is None or (slope == 0).all()
    assert all(
        (torch.autograd.grad(now.values.sum(), parameter, retain_graph=True)[0] != 0).any()
        for parameter in critic.parameters()
    )


def test_tables_of_a_world_are_sums_over_its_reference():
    run, surroundings, _ = setting()
    ref = surroundings.ref
    torch.testing.assert_close(
        surroundings.ref_seq_logp, exact.seq_logp(ref, TASK).detach(), atol=1e-13, rtol=0
    )
    torch.testing.assert_close(surroundings.ref_logp, exact.token_logps(ref, TASK).detach(), atol=0, rtol=0)
    print_of = surroundings.fingerprint()
    logp = exact.seq_logp(ref, TASK).detach()
    for found, values in zip(print_of, (TASK.reward, surroundings.proxy, logp), strict=True):
        assert math.isclose(found, exact.expectation(values, logp, TASK).item(), rel_tol=1e-12)
    other = World.around(TASK, TabularPolicy.random(TASK, seeded(99)), run)
    assert all(abs(a - b) > 1e-3 for a, b in zip(print_of, other.fingerprint(), strict=True))


def test_the_seed_of_the_world_and_no_other_decides_reference_and_data():
    def made(**options):
        run = Run(**options)
        return World.around(writer(run).task, writer(run), run)

    first, again, other = made(), made(seed=5, beta=1.0), made(world_seed=1)
    assert torch.equal(first.ref.logits, again.ref.logits)
    assert torch.equal(first.pairs.chosen, again.pairs.chosen)
    assert not torch.equal(first.ref.logits, other.ref.logits)
    assert torch.equal(made(ref_scale=2.0).ref.logits, 2 * first.ref.logits)
    flipped = made(flip=0.4)
    assert not torch.equal(flipped.proxy, first.proxy)
    assert len(made(data_size=7).pairs.prompt) == 7
    with pytest.raises(ValueError, match="task is 'given', so it comes with a World"):
        writer(Run(task="given"))


def test_float32_policies_get_float32_numbers():
    run, surroundings, policy = setting(batch=8, dtype="float32")
    rollout = roll_out(run, surroundings, policy.float(), None, seeded(11))
    kinds = {part.dtype for part in rollout if part is not None and part.is_floating_point()}
    assert kinds == {torch.float32}
    assert k1(rollout.logp, rollout.ref_logp).isfinite().all()


def test_a_stack_asks_draws_and_looks_as_its_members_do():
    run, surroundings, _ = setting(batch=6, group=3, algorithm="rloo")
    singles = [
        TinyGPT.for_task(TASK, generator=seeded(seed), dtype=torch.float64, device="cpu", width=8)
        for seed in (1, 2)
    ]
    critics = [ValueHead(8, dtype=torch.float64, device="cpu") for _ in singles]
    together = ValueHead(8, dtype=torch.float64, device="cpu", policies=2)
    with torch.no_grad():
        for parameter in together.parameters():
            parameter.normal_(generator=seeded(3))
        for i, critic in enumerate(critics):
            for own, stacked in zip(critic.parameters(), together.parameters(), strict=True):
                own.copy_(stacked[i])
    stack, generators = TinyGPT.stack(singles), [seeded(5), seeded(6)]
    asked = [ask(run, surroundings, generator) for generator in generators]
    prompts = torch.stack([TASK.prompt_tokens[prompt] for prompt in asked])
    drawn = sample(stack, prompts, TASK.horizon, generators)
    now = look(stack, together, prompts, drawn.tokens, drawn.mask)
    for i, (policy, critic) in enumerate(zip(singles, critics, strict=True)):
        alone = roll_out(run, surroundings, policy, critic, seeded(5 + i))
        own = complete(
            run, surroundings, asked[i], Sample(*(part[i] for part in drawn)), now.values[i].detach()
        )
        for name, part in alone._asdict().items():
            torch.testing.assert_close(getattr(own, name), part, atol=1e-12, rtol=0)
        said = look(policy, critic, prompts[i], alone.tokens, alone.mask)
        for part, whole in zip(said, now, strict=True):
            torch.testing.assert_close(whole[i], part, atol=1e-12, rtol=0)
