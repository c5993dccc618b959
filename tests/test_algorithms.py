"""Each algorithm's mean gradient is the gradient it claims: exact sums over all completions or groups."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from worlds import world

from kltutor import (
    TabularPolicy,
    bradley_terry,
    exact,
    group_advantages,
    grpo_loss,
    kl_loss,
    optimal_policy,
    tasks,
)
from kltutor.algorithms import FROM_PAIRS, FROM_ROLLOUTS, kl_penalty, sft
from kltutor.offline import MOST_PAIRS, Offline
from kltutor.rollout import Now, Rollout, TabularValue, look, roll_out
from kltutor.run import Run
from kltutor.world import World

TASK = world(2)  # 2 prompts, 7 completions each, 18 logits
BETA = 0.4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


REF, POLICY = (TabularPolicy.random(TASK, seeded(seed), 1.2) for seed in (1, 2))
CRITIC = TabularValue(TASK, dtype=torch.float64, device="cpu")
with torch.no_grad():
    CRITIC.table.logits.normal_(generator=seeded(3))
WORLD = World.around(TASK, REF, Run())


def listing(old=POLICY):
    """A rollout that holds every completion to every prompt once, prompts slowest."""
    x, y = (i.flatten() for i in torch.meshgrid(torch.arange(2), torch.arange(7), indexing="ij"))
    tokens, mask = TASK.tokens[y], TASK.mask[y]
    seen = look(old, CRITIC, TASK.prompt_tokens[x], tokens, mask)
    return Rollout(
        prompt=x,
        tokens=tokens,
        mask=mask,
        logp=seen.logp.detach(),
        scores=TASK.reward[x, y],
        group=torch.arange(14),
        ref_logp=WORLD.ref_logp[x, y],
        ref_logps=WORLD.ref_logps[x[:, None], WORLD.prefix[y]],
        values=seen.values.detach(),
    )


def mean_gradient(run, group=None, old=POLICY):
    """The exact mean of the gradient that one batch gives, of one completion or one group."""
    rollout = listing(old)
    rows = torch.arange(14)
    logps = look(
        POLICY, None, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask
    ).logps.detach()

    def loss(logp, mask, chosen):
        part = rollout.rows(chosen)
        part = part._replace(group=torch.zeros_like(chosen)) if group else part
        now = Now(logps[chosen], logp, part.values)
        return FROM_ROLLOUTS[run.algorithm](run, BETA, part, now)

    if group:
        return exact.expected_group_gradient(loss, POLICY, TASK, group, sampler=old, given=(rows,)).mean
    return exact.expected_gradient(loss, POLICY, TASK, sampler=old, given=(rows,)).mean


def value(policy, beta=BETA):
    logp = exact.seq_logp(policy, TASK)
    return exact.expectation(TASK.reward, logp, TASK) - beta * exact.kl(policy, REF, TASK)


ASCENT = exact.gradient(value, POLICY)  # ∇J
REWARD = exact.gradient(lambda p: value(p, 0.0), POLICY)  # ∇E[reward]


def own_prefix(direction):
    """Σ_t E[∇KL of the next token given its prefix], of KL(policy ‖ ref) or KL(ref ‖ policy)."""

    def objective(policy):
        ours, theirs = exact.prefix_logps(policy, TASK), exact.prefix_logps(REF, TASK).detach()
        first, second = (ours, theirs) if direction == "policy‖ref" else (theirs, ours)
        asked = torch.tensor(TASK.prompt_probs, dtype=torch.float64)[:, None]
        visits = asked * exact.prefix_reach(policy, TASK).detach()
        return (visits * (first.exp() * (first - second)).sum(-1)).sum()

    return exact.gradient(objective, POLICY)


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(
    "options", [{"algorithm": "reinforce"}, {"algorithm": "ppo"}, {"algorithm": "ppo", "gae_lambda": 1.0}]
)
def test_reinforce_and_the_first_update_of_ppo_climb_the_objective(options):
    """For PPO with values that are wrong everywhere: at lambda = 1 they are a baseline and no more."""
    close(mean_gradient(Run(**options)), -ASCENT)


def test_values_that_are_wrong_do_move_ppo_at_a_lower_lambda_and_a_discount_moves_both():
    for options in ({"gae_lambda": 0.5}, {"gamma": 0.9}, {"algorithm": "reinforce", "gamma": 0.9}):
        assert (mean_gradient(Run(**options)) + ASCENT).abs().max() > 1e-3


@pytest.mark.parametrize("group", [2, 3])
def test_rloo_climbs_the_objective_at_any_group_size(group):
    close(mean_gradient(Run(algorithm="rloo", group=group, batch=group), group), -ASCENT)


@pytest.mark.parametrize("group", [2, 3])
def test_grpo_without_z_scores_climbs_a_reward_shrunk_by_its_own_mean_less_another_kl(group):
    run = Run(
        algorithm="grpo",
        group=group,
        batch=group,
        advantages="dr_grpo",
        reduction="sequence_sum",
        kl_reduction="sequence_sum",
    )
    shrunk = 1 - 1 / group
    close(mean_gradient(run, group), -shrunk * REWARD + BETA * own_prefix("ref‖policy"))
    in_reward = Run(
        algorithm="grpo",
        group=group,
        batch=group,
        advantages="dr_grpo",
        reduction="sequence_sum",
        kl_placement="reward",
        kl_estimator="k1",
        kl_reduction="sequence_sum",
    )
    close(mean_gradient(in_reward, group), -shrunk * ASCENT)


def test_grpo_with_its_defaults_is_the_published_loss():
    rollout = listing(REF)._replace(group=torch.arange(14) // 7)  # off-policy, so that the clip bites
    now = look(POLICY, None, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
    run = Run(algorithm="grpo")
    advantages = group_advantages(rollout.scores, rollout.group)
    expected = grpo_loss(
        now.logp, rollout.logp, rollout.ref_logp, rollout.mask, advantages, BETA, run.clip_eps
    )
    found = FROM_ROLLOUTS["grpo"](run, BETA, rollout, now)
    close(exact_slope(found), exact_slope(expected), 1e-14)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)


def exact_slope(loss):
    return torch.autograd.grad(loss, POLICY.logits, retain_graph=True)[0]


TOKEN = {"kl_placement": "loss", "kl_level": "token"}


@pytest.mark.parametrize(
    ("options", "kl"),
    [
        ({"kl_placement": "reward", "kl_estimator": "k1"}, "sequence"),
        ({"kl_placement": "reward", "kl_estimator": "k3"}, "sequence less own ref‖policy"),
        (TOKEN | {"kl_estimator": "k1"}, "none"),
        (TOKEN | {"kl_estimator": "k2"}, "own policy‖ref"),
        (TOKEN | {"kl_estimator": "k3"}, "own ref‖policy"),
        (TOKEN | {"kl_estimator": "k1", "kl_correction": "differentiable"}, "sequence"),
        (TOKEN | {"kl_estimator": "k3", "kl_correction": "differentiable"}, "sequence"),
        (
            TOKEN | {"kl_estimator": "k3", "kl_correction": "differentiable", "kl_ratio": "sequence"},
            "sequence",
        ),
        ({"kl_placement": "loss", "kl_level": "sequence", "kl_estimator": "k2"}, "sequence"),
        ({"kl_placement": "loss", "kl_level": "sequence", "kl_estimator": "k3"}, "reverse sequence"),
    ],
)
@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_each_place_of_the_kl_has_its_own_gradient(algorithm, options, kl):
    penalty = {
        "none": torch.zeros_like(ASCENT),
        "sequence": exact.gradient(lambda p: exact.kl(p, REF, TASK), POLICY),
        "reverse sequence": exact.gradient(lambda p: exact.kl(REF, p, TASK), POLICY),
        "own policy‖ref": own_prefix("policy‖ref"),
        "own ref‖policy": own_prefix("ref‖policy"),
    }
    penalty["sequence less own ref‖policy"] = penalty["sequence"] - penalty["own ref‖policy"]
    expected = BETA * penalty[kl] - REWARD
    close(mean_gradient(Run(algorithm=algorithm, **options)), expected)
    for other, gradient in penalty.items():
        assert other == kl or (BETA * gradient - REWARD - expected).abs().max() > 1e-3


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_the_sum_over_the_vocabulary_has_the_gradient_of_k2_at_each_prefix(algorithm):
    rollout = listing()
    now = look(POLICY, None, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
    now = now._replace(values=rollout.values)
    run = Run(algorithm=algorithm, kl_placement="loss", kl_estimator="full")
    asked = torch.tensor(TASK.prompt_probs, dtype=torch.float64)
    total = 0.0
    for i in range(14):
        part = Now(*(each[i : i + 1] for each in now))
        drawn = asked[rollout.prompt[i]] * rollout.logp[i].sum().exp()
        total = total + drawn * FROM_ROLLOUTS[algorithm](run, BETA, rollout.rows(torch.tensor([i])), part)
    close(exact_slope(total).flatten(), BETA * own_prefix("policy‖ref") - REWARD)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.6])
def test_ppo_draws_its_values_to_the_returns(gae_lambda):
    """Errors are averaged over tokens; with lambda below 1 a return leans on the old values after it."""
    rollout = listing()
    now = look(POLICY, CRITIC, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
    loss = FROM_ROLLOUTS["ppo"](Run(gae_lambda=gae_lambda), BETA, rollout, now)
    (slope,) = torch.autograd.grad(loss, now.values)
    expected = torch.zeros_like(slope)
    for i in range(14):
        last = int(rollout.mask[i].sum()) - 1
        after = target = 0.0
        for t in reversed(range(last + 1)):
            reward = -BETA * (rollout.logp - rollout.ref_logp)[i, t] + (rollout.scores[i] if t == last else 0)
            target = reward + (1 - gae_lambda) * after + gae_lambda * target
            after = rollout.values[i, t]
            expected[i, t] = (now.values[i, t] - target) / rollout.mask.sum()
    close(slope, expected)


@pytest.mark.parametrize("correction", ["stopgrad", "differentiable"])
@pytest.mark.parametrize("ratio", [None, "token", "prefix", "sequence"])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum", "sequence_mean"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_correction_reaches_kl_loss_with_the_sampler_s_numbers(correction, ratio, reduction, estimator):
    options = {
        "kl_estimator": estimator,
        "kl_correction": correction,
        "kl_ratio": ratio,
        "kl_reduction": reduction,
    }
    run = Run(kl_placement="loss", **options)
    rollout = listing(old=REF)
    now = look(POLICY, None, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
    expected = BETA * kl_loss(
        now.logp,
        rollout.ref_logp,
        rollout.mask,
        estimator,
        reduction=reduction,
        old_logp=rollout.logp,
        correction=correction,
        ratio=ratio,
    )
    found = kl_penalty(run, BETA, rollout, now)
    assert found == expected
    assert torch.equal(exact_slope(found), exact_slope(expected))


@pytest.mark.parametrize("algorithm", FROM_ROLLOUTS)
@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_without_a_coefficient_there_is_no_kl(algorithm, placement):
    far = torch.where(TASK.mask.repeat(2, 1), -800.0, 0.0).double()  # k3 overflows: e^800
    rollout = listing()._replace(group=torch.arange(14) // 7, logp=far, ref_logp=torch.zeros_like(far))
    now = look(POLICY, CRITIC, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
    run = Run(algorithm=algorithm, kl_placement=placement, kl_estimator="k3", kl_reduction="sequence_sum")
    assert FROM_ROLLOUTS[algorithm](run, 0.0, rollout, now._replace(logp=far)).isfinite()
    with pytest.raises(ValueError, match=r"k3|inf") if placement == "reward" else nullcontext():
        assert FROM_ROLLOUTS[algorithm](run, 1e-9, rollout, now._replace(logp=far)).isinf()


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "ppo", "grpo"])
def test_sampled_gradients_average_to_the_exact_one(algorithm):
    """150 batches of 160 through the sampler: each of 18 coordinates within z = 5.6 of the exact mean.

    Where the mean is right some coordinate is refused with probability 2e-6 at most, by Student's law.
    """
    group = {"rloo": 4, "grpo": 4}.get(algorithm, 1)
    options = {"advantages": "dr_grpo", "reduction": "sequence_sum", "kl_reduction": "sequence_sum"}
    run = Run(
        algorithm=algorithm,
        batch=160,
        **({"group": group} if group > 1 else {}),
        **(options if algorithm == "grpo" else {}),
    )
    expected = -ASCENT
    if algorithm == "grpo":
        expected = -(1 - 1 / group) * REWARD + BETA * own_prefix("ref‖policy")
    generator, slopes = seeded(12), []
    critic = CRITIC if algorithm == "ppo" else None
    for _ in range(150):
        rollout = roll_out(run, WORLD, POLICY, critic, generator)
        now = look(POLICY, critic, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
        slopes.append(exact_slope(FROM_ROLLOUTS[algorithm](run, BETA, rollout, now)).flatten())
    slopes = torch.stack(slopes)
    error = slopes.std(0) / math.sqrt(len(slopes))
    assert ((slopes.mean(0) - expected).abs() < 5.6 * error).all()
    for wrong in (-REWARD, 1.25 * expected, -(1 - 1 / 4) * ASCENT if algorithm != "grpo" else -ASCENT):
        assert ((slopes.mean(0) - wrong).abs() > 5.6 * error).any()  # the test can tell


# From data


# The second answers both prompts as the reference answers the first, which it also sees beside the other.
OTHERS = (POLICY, TabularPolicy(TASK, REF.logits.detach()[[0, 0]]))


def pair_gradient(run, policy=POLICY, generator=None):
    comparison = Offline(run, WORLD).compare(policy, generator or seeded(0))
    return torch.autograd.grad(FROM_PAIRS[run.algorithm](run, BETA, comparison), policy.logits)[0].flatten()


def of_one_pair(run, ratios, means, anchor):
    """The loss of one pair, from log-ratios and means of the chosen and the rejected completion."""
    (a, b), (m, n), eps = ratios, means, run.label_smoothing
    sigma, odds = torch.sigmoid, [mean - torch.log(1 - mean.exp()) for mean in means]
    if run.algorithm == "dpo":
        return -(1 - eps) * sigma(BETA * (a - b)).log() - eps * sigma(BETA * (b - a)).log()
    if run.algorithm == "ipo":
        return (a - b - 1 / (2 * BETA)) ** 2
    if run.algorithm == "kto":
        return 1 - sigma(BETA * (a - anchor)) / 2 - sigma(BETA * (anchor - b)) / 2
    if run.algorithm == "simpo":
        return -sigma(BETA * (m - n) - run.simpo_gamma).log()
    return -m - BETA * sigma(odds[0] - odds[1]).log()


def by_hand(run, policy):
    """The population loss, pair by pair."""
    logp, ref, asked = exact.seq_logp(policy, TASK), WORLD.ref_seq_logp, TASK.prompt_probs
    mean, ratio, total = logp / TASK.mask.sum(-1), logp - ref, 0.0
    anchor = sum(
        asked[x] * asked[other] * ref[other, y].exp() * ratio[x, y].detach()
        for x, other, y in itertools.product(range(2), range(2), range(7))
    ).clamp_min(0)
    for x, a, b in itertools.product(range(2), range(7), range(7)):
        if a != b:
            seen = 2 * asked[x] * (ref[x, a] + ref[x, b]).exp()
            seen = seen * bradley_terry(TASK.reward[x, a], TASK.reward[x, b])
            total = total + seen * of_one_pair(run, ratio[x, [a, b]], mean[x, [a, b]], anchor)
    return total


@pytest.mark.parametrize("algorithm", FROM_PAIRS)
def test_the_population_loss_is_the_sum_over_all_pairs(algorithm):
    extra = {"dpo": {"label_smoothing": 0.1}, "simpo": {"simpo_gamma": 0.3}}.get(algorithm, {})
    run = Run(algorithm=algorithm, data="population", **extra)
    for policy in OTHERS:
        (expected,) = torch.autograd.grad(by_hand(run, policy), policy.logits)
        close(pair_gradient(run, policy), expected.flatten())
        comparison = Offline(run, WORLD).compare(policy, seeded(0))
        loss = FROM_PAIRS[algorithm](run, BETA, comparison)
        torch.testing.assert_close(loss, by_hand(run, policy), atol=1e-12, rtol=0)


def test_kto_s_anchor_was_above_zero_in_that_test():
    run = Run(algorithm="kto", data="population")
    anchors = []
    for policy in OTHERS:
        mismatched = Offline(run, WORLD).compare(policy, seeded(0)).mismatched
        anchors.append((mismatched.seq_logp - mismatched.ref_seq_logp).item())
    assert max(anchors) > 0.05
    assert min(anchors) < -0.05


@pytest.mark.parametrize("algorithm", ["dpo", "ipo", "simpo", "orpo"])
def test_fresh_pairs_average_to_the_population(algorithm):
    """200 batches of 64: z below 5.6 in each of 18 coordinates, refused by chance with probability 2e-6."""
    generator = seeded(4)
    run = Run(algorithm=algorithm, batch=64, data="fresh")
    slopes = torch.stack([pair_gradient(run, generator=generator) for _ in range(200)])
    error = slopes.std(0) / math.sqrt(200)
    expected = pair_gradient(Run(algorithm=algorithm, data="population"))
    assert ((slopes.mean(0) - expected).abs() < 5.6 * error + 1e-15).all()
    assert ((slopes.mean(0) - 1.3 * expected).abs() > 5.6 * error).any()


def test_kto_pairs_each_prompt_with_the_completions_to_another():
    run = Run(algorithm="kto", batch=6, data="fixed", data_size=50)
    surroundings = World.around(TASK, REF, run)
    comparison = Offline(run, surroundings).compare(POLICY, seeded(8))
    rows = torch.randint(50, (6,), generator=seeded(8))
    x, chosen, rejected = (part[rows] for part in surroundings.pairs)
    logp = exact.seq_logp(POLICY, TASK).detach()
    expected = torch.cat([logp[x, chosen.roll(1)], logp[x, rejected.roll(1)]])
    torch.testing.assert_close(comparison.mismatched.seq_logp.detach(), expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(comparison.chosen.seq_logp.detach(), logp[x, chosen], atol=1e-13, rtol=0)
    torch.testing.assert_close(comparison.rejected.ref_seq_logp, WORLD.ref_seq_logp[x, rejected])
    lengths = TASK.mask.sum(-1)
    torch.testing.assert_close(comparison.rejected.mean_logp.detach(), logp[x, rejected] / lengths[rejected])
    assert not torch.equal(x, x.roll(1))  # some prompt did meet a completion to the other


def test_fixed_data_never_leave_the_pairs_of_the_world_and_fresh_ones_do():
    for data, inside in (("fixed", True), ("fresh", False)):
        run = Run(algorithm="dpo", data=data, data_size=3, batch=200)
        surroundings = World.around(TASK, REF, run)
        known = {tuple(row) for row in torch.stack(surroundings.pairs, 1).tolist()}
        drawn = Offline(run, surroundings)._draw(seeded(1))
        assert ({tuple(row) for row in torch.stack(drawn, 1).tolist()} <= known) == inside


def test_supervised_learning_descends_the_forward_kl():
    def forward_kl(policy):
        return exact.kl(REF, policy, TASK)

    run = Run(algorithm="sft", data="population")
    loss = sft(*Offline(run, WORLD).show(POLICY, seeded(0)))
    close(exact_slope(loss).flatten(), exact.gradient(forward_kl, POLICY))
    for data in ("fresh", "fixed"):  # fixed: the mean over 4000 pairs is not that of the law, but near
        run = Run(algorithm="sft", data=data, batch=20_000, data_size=4000)
        sampled = exact_slope(sft(*Offline(run, World.around(TASK, REF, run)).show(POLICY, seeded(1))))
        assert (sampled.flatten() - exact_slope(loss).flatten()).abs().max() < 0.03


def test_dpo_on_the_population_rests_at_the_optimum():
    best, _ = optimal_policy(WORLD.ref_seq_logp, TASK.reward, BETA)
    rest = TabularPolicy(TASK, exact.token_optimum(REF, TASK, BETA, kl_discount=1.0))
    torch.testing.assert_close(exact.seq_logp(rest, TASK).detach(), best, atol=1e-12, rtol=0)
    slope = pair_gradient(Run(algorithm="dpo", data="population"), rest)
    assert slope.abs().max() < 1e-14


def test_a_population_that_is_too_large_is_refused_with_the_way_out():
    run = Run(task="phrases", algorithm="dpo", data="population")
    ref = TabularPolicy.random(tasks.phrases(), seeded(0))
    surroundings = World(tasks.phrases(), ref, WORLD.pairs, torch.zeros(3, 3906).double())
    with pytest.raises(ValueError, match=rf"45770508 pairs; at most {MOST_PAIRS} are summed.*data='fresh'"):
        Offline(run, surroundings)


def test_what_is_missing_is_named():
    rollout = listing()._replace(values=None)
    now = look(POLICY, None, TASK.prompt_tokens[rollout.prompt], rollout.tokens, rollout.mask)
    with pytest.raises(ValueError, match="PPO needs the values of a critic"):
        FROM_ROLLOUTS["ppo"](Run(), BETA, rollout, now)
    comparison = Offline(Run(algorithm="dpo", batch=4), WORLD).compare(POLICY, seeded(0))
    with pytest.raises(ValueError, match="KTO needs mismatched completions"):
        FROM_PAIRS["kto"](Run(algorithm="kto"), BETA, comparison)
