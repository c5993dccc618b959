"""The atlas: every placement's gradient by name, its survey against single triples, and the names."""

import itertools
import math

import pytest
import torch

from kltutor import TabularPolicy, Task, atlas, exact
from kltutor.atlas import PLACEMENTS, Placement

INF, NAN = float("inf"), float("nan")


def world(horizon=2, prompts=2):
    return Task(
        name="world",
        words=("<end>", "a", "b"),
        horizon=horizon,
        prompts=(("x",), ("y",))[:prompts],
        prompt_probs=((1.0,), (0.7, 0.3))[prompts - 1],
        score=lambda prompt, said, ended: 0.0,
    )


TWO = world()


def triple(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(TabularPolicy.random(task, generator) for _ in range(3))


POLICIES = triple(TWO)
KNOWN = {  # (estimator, where, level): names on-policy, stale, with ρ held fixed, with ρ differentiated
    ("k1", "reward", "token"): ("KL(π‖ref)", None, "KL(π‖ref)"),
    ("k1", "reward", "sequence"): ("KL(π‖ref)", "E_old[k2] of the sequence", "KL(π‖ref)"),
    ("k2", "reward", "token"): (None, None, None),
    ("k2", "reward", "sequence"): (None, None, None),
    ("k3", "reward", "token"): (None, None, None),
    ("k3", "reward", "sequence"): ("KL(π‖ref) - KL(ref‖π)", None, "KL(π‖ref) - KL(ref‖π)"),
    ("k1", "loss", "token"): ("0", "-KL(old‖π)", "0", "KL(π‖ref)"),
    ("k1", "loss", "sequence"): ("0", "-KL(old‖π)", "0", "KL(π‖ref)"),
    ("k2", "loss", "token"): ("KL(π‖ref) per token", None, "KL(π‖ref) per token", None),
    ("k2", "loss", "sequence"): (
        "KL(π‖ref)",
        "E_old[k2] of the sequence",
        "KL(π‖ref)",
        "½E[log²] of the sequence",
    ),
    ("k3", "loss", "token"): ("KL(ref‖π) per token", None, "KL(ref‖π) per token", "KL(π‖ref)"),
    ("k3", "loss", "sequence"): ("KL(ref‖π)", "E_old[k3] of the sequence", "KL(ref‖π)", "KL(π‖ref)"),
}
SAMPLES = (("on-policy", "none"), ("stale", "none"), ("stale", "stopgrad"), ("stale", "differentiable"))
NAMES = {
    Placement(*place, *samples): name
    for place, names in KNOWN.items()
    for samples, name in zip(SAMPLES, names, strict=False)
}


def test_there_are_42_placements_and_each_is_listed_once():
    assert len(PLACEMENTS) == len(set(PLACEMENTS)) == 42
    assert set(PLACEMENTS) == set(NAMES)


def slope_of(name):
    return f"-∇{name[1:]}" if name[0] == "-" else f"∇{name}"


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
def test_every_placement_has_the_gradient_it_is_known_for(placement):
    found = atlas.field(placement, *POLICIES, TWO)
    name, expected = atlas.name_gradient(found.mean, *POLICIES, TWO), NAMES[placement]
    if expected is None:
        assert name.startswith("none known")
    else:
        assert name == ("0" if expected == "0" else slope_of(expected))
        landmark = 0 * found.mean if expected == "0" else atlas.landmarks(*POLICIES, TWO)[expected]
        torch.testing.assert_close(found.mean, landmark, atol=1e-13, rtol=0)
    assert found.trace > 0


@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
def test_the_mean_alone_is_the_mean_of_the_field(placement):
    for policies in (POLICIES, triple(TWO, 3)):
        mean = atlas.mean_field(placement, *policies, TWO)
        torch.testing.assert_close(mean, atlas.field(placement, *policies, TWO).mean, rtol=1e-12, atol=1e-14)


def test_the_mean_alone_leaves_out_what_is_never_drawn():
    policy, ref, old = triple(TWO, 3)
    with torch.no_grad():
        old.logits[:, 0, 1] = -INF
    for placement in (p for p in PLACEMENTS if p.samples == "stale"):
        mean = atlas.mean_field(placement, policy, ref, old, TWO)
        field = atlas.field(placement, policy, ref, old, TWO).mean
        torch.testing.assert_close(mean, field, rtol=1e-12, atol=1e-14)


def test_landmarks_are_summed_once_and_asked_many_times(monkeypatch):
    calls = []
    prefix_logps = exact.sums.prefix_logps
    monkeypatch.setattr(exact.sums, "prefix_logps", lambda *a: calls.append(a) or prefix_logps(*a))
    known = atlas.Landmarks(*POLICIES, TWO)
    assert not calls
    for name, gradient in known.gradients.items():
        assert known.name_gradient(gradient) == slope_of(name)
    kl = known.quantities["KL(π‖ref)"]
    assert known.name_value(kl) == "KL(π‖ref)"
    assert known.name_value(kl / known.length) == "per-token KL(π‖ref)"
    spent = len(calls)
    assert 0 < spent < 60
    for _ in range(5):
        assert known.name_gradient(2 * known.gradients["KL(ref‖π)"]) == "2·∇KL(ref‖π)"
        assert known.name_value(-kl) == "-KL(π‖ref)"
    assert len(calls) == spent
    known_again = atlas.landmarks(*POLICIES, TWO)
    assert all(torch.equal(known_again[name], known.gradients[name]) for name in known_again)


def test_gradients_without_a_name_differ_but_where_a_ratio_held_fixed_undoes_staleness():
    means = {p: atlas.field(p, *POLICIES, TWO).mean for p, name in NAMES.items() if name is None}
    for one, other in itertools.combinations(means, 2):
        undone = one[:3] == other[:3] and {one[3:], other[3:]} == {SAMPLES[0], SAMPLES[2]}
        same = (means[one] - means[other]).abs().max() < 1e-13
        assert same == undone, (one, other)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_in_the_reward_it_makes_no_difference_whether_the_ratio_is_held_fixed(estimator, level):
    """The loss written out: score times ρ held fixed, or ρ differentiated; with the cost held fixed."""
    policy = POLICIES[0]
    placement = Placement(estimator, "reward", level, "stale", "stopgrad")
    found = atlas.field(placement, *POLICIES, TWO).mean
    turned = atlas.field(placement._replace(correction="differentiable"), *POLICIES, TWO).mean
    torch.testing.assert_close(found, turned, atol=0, rtol=0)
    ours, theirs, drew = (exact.token_logps(p, TWO).detach() for p in POLICIES)
    cost = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: (-d).exp() - 1 + d}[estimator]
    if level == "token":
        ratio, costs = (ours - drew).cumsum(-1).exp(), cost(ours - theirs)
    else:
        ratio, costs = (ours - drew).sum(-1, keepdim=True).exp(), cost((ours - theirs).sum(-1, keepdim=True))
    push = (ratio * costs).masked_fill(~TWO.mask, 0) if level == "token" else ratio * costs
    weights = torch.tensor(TWO.prompt_probs, dtype=torch.float64)[:, None] * drew.sum(-1).exp()

    def objective(candidate):
        score = exact.token_logps(candidate, TWO)
        before = score.cumsum(-1) if level == "token" else score.sum(-1, keepdim=True)
        return (weights * (push * before).sum(-1)).sum()

    torch.testing.assert_close(found, exact.gradient(objective, policy), atol=1e-13, rtol=0)


def test_on_policy_a_correction_is_by_the_policy_itself_whoever_old_is():
    policy, ref, old = POLICIES
    for estimator, level in itertools.product(("k1", "k3"), ("token", "sequence")):
        placement = Placement(estimator, "loss", level, "on-policy", "differentiable")
        found = atlas.field(placement, policy, ref, old, TWO).mean
        assert atlas.name_gradient(found, policy, ref, old, TWO) == "∇KL(π‖ref)"


def test_stale_samples_of_a_policy_that_never_says_a_word_leave_out_that_word():
    policy, ref, old = triple(TWO, 3)
    with torch.no_grad():
        old.logits[:, 0, 1] = -INF
    for placement in PLACEMENTS:
        found = atlas.field(placement, policy, ref, old, TWO)
        assert found.mean.isfinite().all(), placement
        assert found.variance.isfinite().all(), placement
        if placement.samples == "stale":
            assert (found.mean.view_as(policy.logits)[:, 1] == 0).all()  # never after that word


def test_the_survey_reads_each_triple_as_if_it_stood_alone(monkeypatch):
    monkeypatch.setattr("kltutor.atlas.readings.TRIPLES_AT_ONCE", 2)
    readings = atlas.survey(3, torch.Generator().manual_seed(7), scale=0.8)
    generator, task = torch.Generator().manual_seed(7), world(prompts=1)
    logits = [0.8 * torch.randn(3, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    assert list(readings) == list(PLACEMENTS)
    few = [p for p in PLACEMENTS if (p.estimator, p.level) in (("k1", "token"), ("k3", "sequence"))]
    for i, placement in itertools.product((1, 2), few):
        policies = [TabularPolicy(task, x[i : i + 1]) for x in logits]
        true = exact.gradient(lambda p, ref=policies[1]: exact.kl(p, ref, task), policies[0])
        found = atlas.field(placement, *policies, task)
        reading = readings[placement]
        scatter = found.trace.sqrt() / true.norm()
        assert reading.scatter[i].item() == pytest.approx(scatter.item(), rel=1e-10)
        if NAMES[placement] == "0":
            assert reading.angle[i].isnan()
            assert reading.zero
        else:
            cosine = (found.mean @ true / found.mean.norm() / true.norm()).item()
            assert math.cos(math.radians(reading.angle[i].item())) == pytest.approx(cosine, abs=1e-10)
            assert not reading.zero


def test_right_placements_have_no_angle_and_wrong_ones_have_one():
    readings = atlas.survey(3, torch.Generator().manual_seed(1))
    for placement, (angle, scatter, zero) in readings.items():
        assert angle.shape == scatter.shape == (3,)
        assert zero == (NAMES[placement] == "0")
        assert (scatter > 0).all()
        if NAMES[placement] == "KL(π‖ref)":
            assert angle.max() < 1e-5
        elif not zero:
            assert 0.5 < angle.median() <= 180
    again = atlas.survey(3, torch.Generator().manual_seed(1))
    assert all(torch.equal(again[p].scatter, readings[p].scatter) for p in PLACEMENTS)


def test_one_word_a_completion_makes_token_and_sequence_level_the_same():
    readings = atlas.survey(3, torch.Generator().manual_seed(2), words=4, horizon=1)
    for placement in PLACEMENTS:
        other = readings[placement._replace(level="sequence")]
        torch.testing.assert_close(readings[placement].scatter, other.scatter)
    assert readings[Placement("k2", "loss", "token", "on-policy")].angle.max() < 1e-5


@pytest.mark.parametrize("bad", [{"triples": 0}, {"words": 1}, {"horizon": 0}, {"triples": -3}])
def test_a_survey_needs_triples_words_and_tokens(bad):
    arguments = {"triples": 2, "words": 3, "horizon": 2} | bad
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.* {next(iter(bad.values()))}"):
        atlas.survey(generator=torch.Generator(), **arguments)


def single_sums(policy, ref, old, task):
    """Every landmark as a number whose slope it is, from single probabilities, the sampler fixed or not."""
    reach = exact.prefix_reach(policy, task).detach()

    def lists(p):
        return [row.tolist() for row in exact.seq_logp(p, task)]

    theirs, drew = lists(ref), lists(old)
    ref_tokens = exact.prefix_logps(ref, task).tolist()

    def total(term):
        def number(candidate):
            ours = lists(candidate)
            return sum(
                asked * term(ours[p][i], theirs[p][i], drew[p][i])
                for p, asked in enumerate(task.prompt_probs)
                for i in range(task.size)
            )

        return number

    def per_token(term):
        def number(candidate):
            ours = exact.prefix_logps(candidate, task).tolist()
            return sum(
                asked * reach[p, s].item() * sum(map(term, ours[p][s], ref_tokens[p][s]))
                for p, asked in enumerate(task.prompt_probs)
                for s in range(len(task.open_prefixes))
            )

        return number

    return {
        "KL(π‖ref)": total(lambda a, b, _: math.exp(a) * (a - b)),
        "KL(ref‖π)": total(lambda a, b, _: math.exp(b) * (b - a)),
        "KL(π‖ref) per token": per_token(lambda a, b: math.exp(a) * (a - b)),
        "KL(ref‖π) per token": per_token(lambda a, b: math.exp(b) * (b - a)),
        "-KL(old‖π)": total(lambda a, _, c: -math.exp(c) * (c - a)),
        "½E[log²] of the sequence": total(lambda a, b, _: math.exp(a) * (a - b) ** 2 / 2),
        "½χ²(π‖ref)": total(lambda a, b, _: math.exp(2 * a - b) / 2),
        "KL(π‖ref) - KL(ref‖π)": total(lambda a, b, _: (math.exp(a) + math.exp(b)) * (a - b)),
        "E_old[k2] of the sequence": total(lambda a, b, c: math.exp(c) * (a - b) ** 2 / 2),
        "E_old[k3] of the sequence": total(lambda a, b, c: math.exp(c) * (math.exp(b - a) - 1 + a - b)),
    }


def test_each_landmark_is_the_slope_of_its_sum():
    policy, ref, old = POLICIES
    sums = single_sums(policy, ref, old, TWO)
    found = atlas.landmarks(policy, ref, old, TWO)
    assert list(found) == list(sums)
    steps = torch.eye(policy.logits.numel(), dtype=torch.float64) * 1e-5
    for name, number in sums.items():
        slopes = []
        for step in steps:
            moved = [
                TabularPolicy(TWO, policy.logits.detach() + s * step.view_as(policy.logits)) for s in (1, -1)
            ]
            slopes.append((number(moved[0]) - number(moved[1])) / 2e-5)
        torch.testing.assert_close(
            found[name], torch.tensor(slopes, dtype=torch.float64), atol=1e-8, rtol=1e-6
        )
    for one, other in itertools.combinations(found.values(), 2):
        assert torch.nn.functional.cosine_similarity(one, other, dim=0).abs() < 0.999


def test_a_planted_gradient_is_found_with_its_factor():
    landmarks = atlas.landmarks(*POLICIES, TWO)
    factors = ((1.0, ""), (1 / 3, "0.3333·"), (1e-6, "1e-06·"))
    for (name, landmark), (factor, words) in zip(landmarks.items(), 4 * factors, strict=False):
        planted = "-" * (name[0] == "-") + f"{words}∇{name.removeprefix('-')}"
        assert atlas.name_gradient(factor * landmark, *POLICIES, TWO) == planted
        assert atlas.name_gradient(-factor * landmark, *POLICIES, TWO).startswith("none known")
    true = landmarks["KL(π‖ref)"]
    assert atlas.name_gradient(-true, *POLICIES, TWO) == "none known, 180° from ∇KL(π‖ref)"
    assert atlas.name_gradient(0 * true, *POLICIES, TWO) == "0"
    side = torch.randn(true.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    side = (side - (side @ true) / (true @ true) * true) / true.norm()
    for degrees in (90, 30, 1):
        mixed = (
            math.cos(math.radians(degrees)) * true / true.norm()
            + math.sin(math.radians(degrees)) * side / side.norm()
        )
        assert atlas.name_gradient(mixed, *POLICIES, TWO) == f"none known, {degrees}° from ∇KL(π‖ref)"
    assert atlas.name_gradient(true + 1e-6 * side, *POLICIES, TWO) == "none known, 0° from ∇KL(π‖ref)"


def expectations(policy, ref, old, task):
    """Every quantity with a name, one completion at a time."""
    logps = {
        name: exact.token_logps(p, task).tolist() for name, p in {"π": policy, "ref": ref, "old": old}.items()
    }

    def mean(sampler, term):
        return sum(
            asked * math.exp(sum(logps[sampler][p][i])) * term(*(logps[x][p][i] for x in ("π", "ref", "old")))
            for p, asked in enumerate(task.prompt_probs)
            for i in range(task.size)
        )

    place = {"π": 0, "ref": 1, "old": 2}
    found = {
        f"KL({a}‖{b})": mean(a, lambda *x, i=place[a], j=place[b]: sum(x[i]) - sum(x[j]))
        for a, b in itertools.permutations(place, 2)
    }
    for other, sampler in (("ref", "π"), ("ref", "old"), ("old", "π"), ("old", "old")):
        j = place[other]

        def squares(*x, j=j):
            return sum((a - b) ** 2 for a, b in zip(x[0], x[j], strict=True)) / 2

        def sizes(*x, j=j):
            return sum(abs(a - b) for a, b in zip(x[0], x[j], strict=True))

        found[f"½E_{sampler}[log²(π/{other})] of tokens"] = mean(sampler, squares)
        found[f"½E_{sampler}[log²(π/{other})] of the sequence"] = mean(
            sampler, lambda *x, j=j: (sum(x[0]) - sum(x[j])) ** 2 / 2
        )
        found[f"E_{sampler}|log(π/{other})| of tokens"] = mean(sampler, sizes)
    chi2 = mean("π", lambda a, b, _: math.exp(sum(a) - sum(b)) - 1)
    length = mean("π", lambda a, b, c: sum(x != 0 for x in a))
    return found | {"χ²(π‖ref) - KL(π‖ref)": chi2 - found["KL(π‖ref)"]}, length


def test_a_planted_value_is_found_with_its_sign_and_its_unit():
    quantities, length = expectations(*POLICIES, TWO)
    assert len(quantities) == 19
    assert 1.1 < length < 1.9
    for name, quantity in quantities.items():
        for factor, words in ((1, ""), (-1, "-"), (1 / length, "per-token "), (-1 / length, "-per-token ")):
            assert atlas.name_value(factor * quantity, *POLICIES, TWO) == words + name
        assert atlas.name_value(quantity * (1 + 1e-6), *POLICIES, TWO).startswith("none known")
    kl = quantities["KL(π‖ref)"]
    assert atlas.name_value(2.5 * kl, *POLICIES, TWO) == "none known, 2.5·KL(π‖ref)"
    assert atlas.name_value(-0.125 * kl, *POLICIES, TWO) == "none known, -0.125·KL(π‖ref)"
    assert atlas.name_value(0.0, *POLICIES, TWO) == atlas.name_value(1e-12 * kl, *POLICIES, TWO) == "0"


def test_names_where_a_policy_never_says_a_word():
    policy, ref, old = triple(TWO, 5)
    with torch.no_grad():
        policy.logits[:, 0, 1] = -INF
    for name, landmark in atlas.landmarks(policy, ref, old, TWO).items():
        if name.startswith("E_old"):  # old may say it, at an infinite cost
            continue
        assert landmark.isfinite().all(), name
        if name != "-KL(old‖π)":  # infinite
            assert (landmark.view_as(policy.logits)[:, 0, 1] == 0).all()
            assert landmark.norm() > 1e-3
    assert atlas.name_value(exact.kl(policy, ref, TWO).item(), policy, ref, old, TWO) == "KL(π‖ref)"
    assert atlas.name_value(0.7, ref, policy, old, TWO) == "none known, 0.7"  # KL(π‖ref) is infinite
    assert atlas.name_value(0.7, ref, ref, ref, TWO) == "none known, 0.7"  # KL(π‖ref) is zero
    assert atlas.name_value(0.0, ref, ref, ref, TWO) == "0"
    with pytest.raises(ValueError, match=r"∇KL.* is not finite; a ref that can draw all that policy can"):
        atlas.name_gradient(torch.ones(18, dtype=torch.float64), ref, policy, old, TWO)


def test_names_are_for_finite_numbers_of_the_right_length():
    for value in (NAN, INF, -INF):
        with pytest.raises(ValueError, match=f"value is {value}"):
            atlas.name_value(value, *POLICIES, TWO)
        with pytest.raises(ValueError, match="gradient holds nan or an infinite entry"):
            atlas.name_gradient(torch.full((18,), value).double(), *POLICIES, TWO)
    with pytest.raises(ValueError, match="gradient has 17 entries; 18 parameters are expected"):
        atlas.name_gradient(torch.ones(17).double(), *POLICIES, TWO)
