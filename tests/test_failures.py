"""Each failure is one, by exact quantities; its cure takes the same seed and leaves the failure out."""

import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch

from kltutor import exact, failures
from kltutor.failures import MODES, Produced, produce, scene
from kltutor.failures.ensembles import lower_confidence, proxies, stop_at
from kltutor.failures.lengths import (
    even,
    group_ascent,
    length_controlled,
    length_slope,
    lengths,
    longer,
    price_for,
)
from kltutor.failures.references import in_rounds, table_of, tuned
from kltutor.failures.worlds import along, beta_for, practice, world_of
from kltutor.optimum import frontier, optimal_policy
from kltutor.pairs import Pairs, all_pairs, sample_pairs
from kltutor.preference import dpo_loss
from kltutor.records import rollout_metrics
from kltutor.rollout import roll_out
from kltutor.run import Run
from kltutor.tasks import TabularPolicy
from kltutor.train import train

MINE = ("collapse", "runaway", "over-optimisation", "length-drift", "wrong-reference")


@cache
def made(mode, seed, cured):
    return produce(mode, seed, cured=cured)


def ends(found):
    return [record.exact for record in found.records if record.exact is not None]


@cache
def first_word():
    return world_of("first word", 0)


@pytest.mark.parametrize("seed", [0, 15])  # on the gold reward; on a proxy within its budget
def test_a_healthy_run_ends_near_the_best_gold_reward_of_its_kl(seed):
    found = made("healthy", seed, False)
    start, end = (ends(found)[i] for i in (0, -1))
    world, betas = found.world, torch.logspace(-3, 2, 200, dtype=torch.float64)
    points = frontier(world.ref_seq_logp, world.reward(found.run), betas)
    asked = torch.tensor(world.task.prompt_probs, dtype=torch.float64)[:, None]
    kl, best = (asked * points.kl).sum(0), (asked * points.reward).sum(0)
    there = best[(kl - end.kl).abs().argmin()].item()
    reward = (start.gold, end.gold) if found.run.reward == "gold" else (start.proxy, end.proxy)
    assert end.gold > start.gold + 0.15
    assert reward[1] - reward[0] > 0.8 * (there - reward[0])


@pytest.mark.parametrize("seed", [0, 11])  # beta too large; dead entropy
def test_a_collapsed_run_stays_at_the_reference_and_its_cure_leaves(seed):
    stuck, cured = (ends(made("collapse", seed, cured)) for cured in (False, True))
    assert max(each.kl for each in stuck) < 0.05
    assert abs(stuck[-1].gold - stuck[0].gold) < 0.05
    assert cured[-1].kl > 0.2
    assert cured[-1].gold > cured[0].gold + 0.15


@pytest.mark.parametrize("seed", [0, 1])  # tiny beta; over-confident proxy
def test_a_runaway_s_kl_and_length_climb_to_the_end_while_gold_falls(seed):
    wild, held = (ends(made("runaway", seed, cured)) for cured in (False, True))
    assert wild[-1].kl > max(4, 1.1 * wild[len(wild) // 2].kl)
    assert wild[-1].length > 1.4 * wild[0].length
    assert wild[-1].proxy > wild[0].proxy + 0.5
    assert wild[-1].gold < max(each.gold for each in wild) - 0.15
    assert held[-1].kl < wild[-1].kl / 2
    assert held[-1].gold > wild[-1].gold


@pytest.mark.parametrize("seed", [0, 2])  # cured by a larger beta; by an ensemble
def test_over_optimisation_lets_gold_rise_and_fall_while_the_proxy_rises(seed):
    found = made("over-optimisation", seed, False)
    lost, kept = ends(found), ends(made("over-optimisation", seed, True))
    top = max(range(len(lost)), key=lambda i: lost[i].gold)
    assert 0 < top < len(lost) - 1
    assert lost[-1].gold < lost[top].gold - 0.15
    assert lost[-1].proxy > lost[top].proxy
    assert kept[-1].gold > lost[-1].gold


@pytest.mark.parametrize("seed", [0, 1])
def test_length_drifts_where_the_gold_reward_does_not_pay_for_it(seed):
    long, short = (ends(made("length-drift", seed, cured)) for cured in (False, True))
    assert long[-1].length > 1.35 * long[0].length
    assert long[-1].gold > max(each.gold for each in long) - 0.1  # so this is not over-optimisation
    assert short[-1].length < 1.2 * short[0].length
    assert short[-1].gold > short[0].gold + 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_wrong_reference_shows_at_step_0_and_pulls_the_policy_off_what_it_was_tuned_to(seed):
    wrong, right = (made("wrong-reference", seed, cured) for cured in (False, True))
    assert ends(wrong)[0].kl > 0.3 > 1e-9 > abs(ends(right)[0].kl)
    assert ends(wrong)[0].gold == pytest.approx(ends(right)[0].gold)  # the same start
    assert ends(wrong)[0].entropy == pytest.approx(ends(right)[0].entropy)
    best = [
        optimal_policy(found.world.ref_seq_logp, found.world.task.reward, found.run.beta)[0]
        for found in (wrong, right)
    ]
    sft, held = right.world.ref_seq_logp, wrong.world.ref_seq_logp
    assert exact.mean_kl(sft, held, wrong.world.task).item() == pytest.approx(ends(wrong)[0].kl)
    lost, kept = (exact.mean_kl(logp, sft, right.world.task).item() for logp in best)
    assert lost > kept + 0.2


def test_the_seed_makes_runs_unlike_and_the_cure_leaves_all_else_alone():
    first, second = made("runaway", 0, False), made("runaway", 1, False)
    assert first.run != second.run
    assert first.world.fingerprint() != second.world.fingerprint()
    cured = made("runaway", 0, True)
    moved = {"beta", "controller"}
    assert {n for n in vars(cured.run) if getattr(cured.run, n) != getattr(first.run, n)} <= moved
    assert cured.world.fingerprint() == first.world.fingerprint()
    again = produce("runaway", 0)
    assert [replace(r, seconds=0) for r in again.records] == [replace(r, seconds=0) for r in first.records]


def test_a_run_stops_early_when_its_kl_has_used_up_the_budget():
    lost = made("over-optimisation", 0, False)
    stopped = stop_at(lost.run, lost.world, 1.0)
    heard = [record.sampled["kl"] for record in stopped.records]
    first = next(step for step, kl in enumerate(heard) if kl >= 1)
    assert first <= stopped.records[-1].step < first + lost.run.exact_every
    assert stopped.records[-1].exact == lost.records[stopped.records[-1].step].exact


def test_the_registry_knows_ten_modes_and_refuses_others(monkeypatch):
    failures._load()
    assert set(failures._scenes) <= set(MODES)
    assert {"healthy", *MINE} <= set(failures._scenes)
    assert len(MODES) == 10
    with pytest.raises(ValueError, match="mode is 'slow'; one of healthy, collapse"):
        produce("slow", 0)
    with pytest.raises(ValueError, match="seed is -1; at least 0"):
        produce("collapse", -1)
    with pytest.raises(ValueError, match="nothing to cure"):
        produce("healthy", 0, cured=True)
    with pytest.raises(ValueError, match="mode 'collapse' has a scene"):

        @scene("collapse")
        def other(seed: int, cured: bool) -> Produced:
            raise NotImplementedError


def test_the_optimum_along_beta_is_the_frontier_of_its_reward():
    world = first_word()
    found = along(world, world.task.reward, (2.0, 0.3))
    points = frontier(world.ref_seq_logp, world.task.reward, found.beta)
    asked = torch.tensor(world.task.prompt_probs, dtype=torch.float64)[:, None]
    torch.testing.assert_close(found.kl, (asked * points.kl).sum(0))
    torch.testing.assert_close(found.gold, (asked * points.reward).sum(0))
    assert beta_for(world, world.task.reward, found.kl[1].item()) == pytest.approx(0.3)
    astray = along(world_of("all words", 0), world_of("all words", 0).proxy, (100.0, 0.5, 0.05))
    assert (astray.at_peak(), int(astray.kl.argmax())) == (1, 2)
    with pytest.raises(ValueError, match="target_kl is 50"):
        beta_for(world, world.task.reward, 50.0)


def test_practice_without_z_scores_has_none():
    drawn = [practice(random.Random(i), z_scores=False) for i in range(50)]
    assert not any(Run(**how).advantages == "z_score" for how in drawn)
    assert {how["algorithm"] for how in drawn} == {"ppo", "rloo", "grpo"}


def test_what_a_batch_logs_is_what_its_completions_say_one_by_one():
    run = Run(algorithm="rloo", batch=64, beta=0.3, seed=3)
    world = world_of("small", 1)
    policy = tuned(world, 1.0, 0)
    drawn = roll_out(run, world, policy, None, torch.Generator().manual_seed(0))
    found = rollout_metrics(run, 0.7, drawn)
    rows = [
        [(a - b).item() for a, b in zip(logp[mask], ref[mask], strict=True)]
        for logp, ref, mask in zip(drawn.logp, drawn.ref_logp, drawn.mask, strict=True)
    ]
    sums = [math.fsum(row) for row in rows]
    mean = sum(sums) / 64
    assert found["kl"] == pytest.approx(mean)
    assert found["kl_sd"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in sums) / 64))
    assert found["k3"] == pytest.approx(sum(math.exp(-d) - 1 + d for row in rows for d in row) / 64)
    assert found["kl_token"] == pytest.approx(sum(sums) / sum(map(len, rows)))
    assert found["penalty"] == pytest.approx(-0.7 * mean)
    assert "penalty" not in rollout_metrics(Run(algorithm="grpo"), 0.7, drawn)  # its KL is in the loss
    squared = rollout_metrics(replace(run, kl_estimator="k2"), 0.7, drawn)
    assert squared["penalty"] == pytest.approx(-0.7 * sum(d * d / 2 for row in rows for d in row) / 64)


# Over-optimisation: what an ensemble is worth


def test_a_minimum_over_an_ensemble_does_not_hang_on_constants_that_no_preference_fixes():
    world = world_of("small", 3, pairs=60)
    members = proxies(world, pairs="bootstrap", flip=0.0, generator=torch.Generator().manual_seed(0))
    means = (world.ref_seq_logp.exp() * members).sum(-1)
    torch.testing.assert_close(means, torch.zeros_like(means))
    assert members.std(0).max() > 0.1  # bootstrap draws differ


def test_lower_confidence_goes_from_the_mean_to_below_the_minimum():
    members = torch.randn(8, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(lower_confidence(members, 0.0), members.mean(0))
    torch.testing.assert_close(lower_confidence(members, math.inf), members.min(0).values)
    assert (lower_confidence(members, 3.0) < members.min(0).values).all()  # of 8, none is 3 sd off
    with pytest.raises(ValueError, match="k is -1"):
        lower_confidence(members, -1.0)


def test_ensembles_keep_gold_that_one_proxy_loses_and_fresh_labels_more_than_bootstraps():
    kept = {"one": [], "bootstrap": [], "fresh": []}
    for seed in range(12):
        world = world_of("small", seed, pairs=50)
        rewards = {"one": world.proxy}
        for pairs in ("bootstrap", "fresh"):
            generator = torch.Generator().manual_seed(seed)
            rewards[pairs] = proxies(world, pairs=pairs, flip=0.0, generator=generator).amin(0)
        for name, reward in rewards.items():
            kept[name].append(along(world, reward, (0.1,)).gold.item())
    one, bootstrap, fresh = (sum(each) / 12 for each in kept.values())
    assert one + 0.3 < bootstrap < fresh - 0.1


# Length: which mechanism makes it drift


def test_the_optimum_at_a_large_beta_is_longer_by_the_covariance_over_beta():
    world, beta = first_word(), 1e4
    asked = torch.tensor(world.task.prompt_probs, dtype=torch.float64)
    for reward in (world.proxy, world.task.reward):
        start, moved = along(world, reward, (1e9, beta)).length.tolist()
        assert (moved - start) * beta == pytest.approx(
            (asked @ length_slope(world, reward)[0]).item(), rel=1e-3
        )


def test_no_correlation_with_length_under_the_reference_is_no_cure_but_a_price_is():
    world, beta = first_word(), 0.1
    fair = length_controlled(world, world.proxy)
    assert length_slope(world, fair)[0].abs().max() < 1e-12 < length_slope(world, world.proxy)[0].min()
    assert along(world, fair, (beta,)).length > 1.25 * along(world, fair, (1e9,)).length
    priced = world.proxy - price_for(world, world.proxy, beta, 3.0) * lengths(world)
    assert along(world, priced, (beta,)).length.item() == pytest.approx(3.0)
    with pytest.raises(ValueError, match="tokens is 7"):
        price_for(world, world.proxy, beta, 7.0)


def test_divided_by_length_wrong_answers_grow_and_right_ones_shrink_and_summed_neither():
    world = even(first_word())
    mean, total = (group_ascent(world, r, steps=51, rate=1.0) for r in ("sequence_mean", "sequence_sum"))
    for found in (mean, total):
        assert found.if_right[0].item() == pytest.approx(found.if_wrong[0].item())  # length goes with nothing
        assert (found.reward.diff() > 0).all()
    assert (mean.if_wrong.diff() > 0).all()
    assert (mean.if_right.diff() < 0).all()
    torch.testing.assert_close(total.if_wrong, total.if_wrong[:1].expand(51))
    torch.testing.assert_close(total.if_right, total.if_right[:1].expand(51))


def test_a_common_shift_of_all_tokens_adds_beta_shift_gap_to_the_margin_of_dpo_and_raw_log_probs_nothing():
    world, beta, shift = world_of("small", 0), 0.1, 0.05
    pairs, weights = all_pairs(world.task, world.ref_seq_logp)
    ref, tokens = world.ref_seq_logp, lengths(world)

    def of(table):
        return table[pairs.prompt, pairs.chosen], table[pairs.prompt, pairs.rejected]

    gap = of(tokens)[0] - of(tokens)[1]

    def loss(table):
        return dpo_loss(*of(table), *of(ref), beta)

    # At the reference every pair has the loss log 2, whatever its lengths or its log-probabilities.
    torch.testing.assert_close(loss(ref), torch.full_like(gap, math.log(2)))
    torch.testing.assert_close(
        loss(longer(world, shift)), -torch.nn.functional.logsigmoid(beta * shift * gap)
    )
    slope = (weights @ (loss(longer(world, 1e-5)) - loss(longer(world, -1e-5)))).item() / 2e-5
    assert slope == pytest.approx(-beta / 2 * (weights @ gap).item(), rel=1e-6)
    # With labels by coin, longer winners are as improbable as ever, and nothing drifts.
    pairs, weights = all_pairs(world.task, ref, preference=lambda a, b: torch.full_like(a, 0.5))
    gap = of(tokens)[0] - of(tokens)[1]
    assert abs((weights @ gap).item()) < 1e-12


def test_pairs_of_one_length_keep_labels_that_favour_length_from_dpo():
    world, size = first_word(), 2000
    score, favour = world.task.score, 0.4
    biased = replace(
        world.task, score=lambda prompt, said, ended: score(prompt, said, ended) + favour * len(said)
    )
    drawn = sample_pairs(biased, world.ref_seq_logp, 20_000, torch.Generator().manual_seed(0))
    tokens = lengths(world)[0]
    matched = Pairs(*(part[tokens[drawn.chosen] == tokens[drawn.rejected]][:size] for part in drawn))
    run = Run(task="given", algorithm="dpo", data="fixed", data_size=size, beta=0.2, steps=60, batch=256)
    found = []
    for pairs in (Pairs(*(part[:size] for part in drawn)), matched):
        records = list(train(run, world=replace(world, pairs=pairs)))
        found.append(records[-1].exact)
    start = records[0].exact
    assert found[0].length > start.length + 1.5
    assert found[1].length < start.length + 0.8
    assert found[1].gold > found[0].gold > start.gold


# References: the wrong one, and moving the right one


def test_a_table_of_a_law_over_completions_says_it_again():
    world = world_of("small", 0)
    logp, _ = optimal_policy(world.ref_seq_logp, world.task.reward, 0.5)
    again = exact.seq_logp(TabularPolicy(world.task, table_of(world, logp)), world.task).detach()
    torch.testing.assert_close(again, logp)


def test_the_tuned_model_is_better_than_its_base_and_elsewhere():
    world = world_of("small", 0)
    sft = exact.seq_logp(tuned(world, 1.0, 0), world.task).detach()
    gold, before = (exact.expectation(world.task.reward, p, world.task) for p in (sft, world.ref_seq_logp))
    assert exact.mean_kl(sft, world.ref_seq_logp, world.task) > 0.3
    plain, _ = optimal_policy(world.ref_seq_logp, world.task.reward, 1.0)
    assert exact.mean_kl(sft, plain, world.task) > 0.3  # a style of its own, which no reward asks for
    with pytest.raises(ValueError, match="gain is 0"):
        tuned(world, 0.0, 0)
    assert gold > before


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_rounds_that_move_the_reference_are_one_round_at_a_smaller_beta(rounds):
    world = world_of("small", 1)
    moved = in_rounds(world.ref_seq_logp, world.task.reward, 0.9, rounds)
    once, _ = optimal_policy(world.ref_seq_logp, world.task.reward, 0.9 / rounds)
    assert (moved - once).abs().max() < 1e-11
