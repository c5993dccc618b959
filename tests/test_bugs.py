"""Every bug of the zoo is caught by its own test, every cure passes it, and the numbers are exact."""

import copy
import inspect
import itertools
import math
import re

import pytest
import torch

from kltutor import bugs, exact, k1, k2, k3, masked_sum, reduce
from kltutor.bugs import clamps, estimates, lab, loops, prices
from kltutor.controllers import ZieglerBeta
from kltutor.policy_gradient import dr_grpo_advantages, group_advantages

BUGS = bugs.all_bugs()
FORM = {
    "id": "BUG-99",
    "title": "A title.",
    "symptom": "A symptom.",
    "cure": "A cure.",
    "quantity": "twice the KL, nats",
    "broken": lambda: 1.0,
    "cured": lambda: 2.0,
    "truth": lambda: 2.0,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def registry(monkeypatch):
    """Let a test register bugs that are gone after it."""
    monkeypatch.setattr(bugs, "_registry", dict(bugs._registry))


def register(**changes):
    return bugs.bug(**(FORM | changes))(lambda code: code())


@pytest.fixture(scope="module")
def numbers():
    """What every bug demonstrates."""
    return {bug.id: bug.demonstrate() for bug in BUGS}


# The registry


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_the_broken_code_is_caught_and_the_cured_passes(bug):
    with pytest.raises(AssertionError, match=re.escape(f"{bug.id}: {bug.symptom} {bug.quantity}")):
        bug.caught(bug.broken)
    bug.caught(bug.cured)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_its_numbers_agree_with_the_truth_where_cured_and_differ_by_a_tenth_where_not(bug, numbers):
    shown = numbers[bug.id]
    assert all(isinstance(value, float) and math.isfinite(value) for value in shown.values())
    assert list(shown)[:3] == ["broken", "cured", "truth"]
    assert shown["cured"] == pytest.approx(shown["truth"], rel=bugs.TOLERANCE, abs=bugs.TOLERANCE)
    assert abs(shown["broken"] - shown["truth"]) > 0.1


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_reader_can_print_a_few_lines_that_differ_in_nothing_but_the_bug(bug):
    source = inspect.getsource(bug.broken)
    body = source.split('"""')[-1].strip().splitlines()
    assert 1 <= len(body) <= 5
    assert len(source.splitlines()) <= 15
    names = [list(inspect.signature(code).parameters) for code in (bug.broken, bug.cured)]
    assert names[0] == names[1]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_texts_are_sentences_and_state_a_unit(bug):
    for text in (bug.title, bug.symptom, bug.cure, bug.quantity):
        assert "\n" not in text
        assert "|" not in text, "would end a cell of a Markdown table"
    assert re.search(r"nats|reward units|no unit", bug.quantity)
    assert re.search(r"nat|\+1", bug.symptom)
    assert bug.thread


def test_the_checklist_is_there_in_its_order():
    assert [bug.id for bug in BUGS] == [f"BUG-{i:02d}" for i in range(1, len(BUGS) + 1)]
    assert len(BUGS) >= 8
    assert bugs.get("BUG-05").broken is loops.shared_reference


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": "BUG-01"}, "taken"),
        ({"id": "bug-1"}, "two digits"),
        ({"title": "no full stop"}, "title of BUG-99 is 'no full stop'"),
        ({"symptom": ""}, "symptom"),
        ({"cure": "."}, "cure"),
        ({"quantity": " "}, "quantity"),
        ({"cured": FORM["broken"]}, "same function"),
        ({"thread": "trl 351"}, "owner/repository#number"),
    ],
)
def test_a_bug_that_breaks_a_rule_is_refused(registry, changes, says):
    with pytest.raises(ValueError, match=says):
        register(**changes)


def test_a_bug_registers_itself_and_an_unknown_one_is_named(registry):
    with pytest.raises(ValueError, match="'BUG-99', which no bug has; expected one of BUG-01"):
        bugs.get("BUG-99")
    register(thread="owner/repo.name-2#12")
    bug = bugs.get("BUG-99")
    assert bugs.all_bugs()[-1] is bug
    assert bug.demonstrate() == {"broken": 1.0, "cured": 2.0, "truth": 2.0}
    with pytest.raises(
        AssertionError, match=r"BUG-99: A symptom. twice the KL, nats: nan, but 2 is expected"
    ):
        bug.caught(lambda: math.nan)


# The mistakes next to each: caught too, so that no test passes by luck


def _all_but_one(logits, ref_logits, tokens, attention, prompt_length):
    return estimates.kl_of_actions(logits, ref_logits, tokens, attention, prompt_length - 1)


def _one_too_few(logits, ref_logits, tokens, attention, prompt_length):
    return estimates.kl_of_actions(logits, ref_logits, tokens, attention, prompt_length + 1)


def _without_end(logits, ref_logits, tokens, attention, prompt_length):
    return estimates.kl_of_actions(logits, ref_logits, tokens, attention & (tokens != 0), prompt_length)


def _padding_too(logits, ref_logits, tokens, attention, prompt_length):
    everything = torch.ones_like(attention)
    return estimates.kl_of_actions(logits, ref_logits, tokens, everything, prompt_length)


def _reward_alone(scores, logp, ref_logp, mask, beta):
    return scores


def _per_mean_length(scores, logp, ref_logp, mask, beta):
    return scores - beta * masked_sum(logp - ref_logp, mask) / mask.sum(-1).double().mean()


def _late_copy(policy):
    moved = copy.deepcopy(policy)
    with torch.no_grad():
        moved.logits.add_(0.1 * torch.arange(moved.logits.numel()).view_as(moved.logits).cos())
    return moved


def _after_and_scaled(scores, log_ratio, group, beta):
    return group_advantages(scores, group) - beta * scores.std() ** 2 * log_ratio


NEXT_TO = [
    ("BUG-01", _all_but_one),
    ("BUG-01", _one_too_few),
    ("BUG-01", _without_end),
    ("BUG-01", _padding_too),
    ("BUG-02", lambda logp, ref_logp: (logp - ref_logp).abs()),
    ("BUG-02", lambda logp, ref_logp: -k3(logp, ref_logp)),
    ("BUG-02", lambda logp, ref_logp: k3(ref_logp, logp)),
    ("BUG-02", k2),
    ("BUG-02", lambda logp, ref_logp: torch.zeros_like(logp)),
    ("BUG-09", lambda logp, ref_logp: (logp - ref_logp).abs()),
    ("BUG-03", _reward_alone),
    ("BUG-03", _per_mean_length),
    ("BUG-05", _late_copy),
    ("BUG-04", lambda: ZieglerBeta(0.5, loops.TARGET, horizon=512)),
    ("BUG-06", lambda logp, ref_logp, mask: reduce(k1(logp, ref_logp), mask, "sequence_mean")),
    ("BUG-06", lambda logp, ref_logp, mask: (logp - ref_logp).mean()),
    ("BUG-07", lambda scores, log_ratio, group, beta: group_advantages(scores, group)),
    ("BUG-07", _after_and_scaled),
    (
        "BUG-08",
        lambda logp, ref_logp: (ref_logp - logp).clamp(max=5).expm1() - (ref_logp - logp).clamp(max=5),
    ),
    ("BUG-08", lambda logp, ref_logp: k3(logp, ref_logp).clamp(max=10)),
    ("BUG-08", lambda logp, ref_logp: k3(ref_logp, logp)),
    ("BUG-10", lambda logp, ref_logp: k3(logp, ref_logp).detach() + 0 * logp),
    ("BUG-10", k1),
]


@pytest.mark.parametrize(("id", "code"), NEXT_TO)
def test_the_mistakes_next_to_it_are_caught_too(id, code):
    with pytest.raises(AssertionError, match=id):
        bugs.get(id).caught(code)


@pytest.mark.parametrize(
    ("id", "code"),
    [
        ("BUG-02", k3),  # another unbiased estimate
        ("BUG-04", lambda: ZieglerBeta(0.7, loops.TARGET, horizon=1000)),
        ("BUG-07", lambda s, log_ratio, group, beta: dr_grpo_advantages(s, group) - beta * log_ratio),
        ("BUG-08", lambda logp, ref_logp: k3(logp, ref_logp) + 1),  # a constant has no gradient
    ],
)
def test_other_right_code_passes(id, code):
    bugs.get(id).caught(code)


# The numbers, from other sums


def test_the_even_policy_makes_a_plain_mean_an_expectation():
    assert torch.allclose(lab.seq_logp(lab.POLICY).exp(), torch.tensor(1 / 40, dtype=torch.float64))
    values = torch.arange(80, dtype=torch.float64) ** 2
    expected = exact.expectation(values.view(2, 40), lab.seq_logp(lab.POLICY), lab.TASK)
    assert expected.item() == pytest.approx(values.mean().item())


def test_01_the_prompt_adds_its_log_ratio_and_nothing_else(numbers):
    policy, ref, task = estimates.Bigram(2), estimates.Bigram(1), estimates.ECHO
    tables = [model.logits.detach().log_softmax(-1) for model in (policy, ref)]
    kl = prompt = 0.0
    for words, share in zip(task.prompt_tokens.tolist(), task.prompt_probs, strict=True):
        prompt += share * (tables[0] - tables[1])[words[0], words[1]].item()
        for seq in task.sequences:
            path = [words[-1], *seq]
            one, two = (sum(t[a, b].item() for a, b in itertools.pairwise(path)) for t in tables)
            kl += share * math.exp(one) * (one - two)
    shown = numbers["BUG-01"]
    assert shown["truth"] == pytest.approx(kl)
    assert shown["mean log-ratio of the prompt's tokens, nats"] == pytest.approx(prompt)
    assert shown["broken"] == pytest.approx(kl + prompt)


def test_02_some_estimates_lie_below_zero_though_their_mean_is_the_kl(numbers):
    log_ratio = -math.log(40) - lab.seq_logp(lab.REF).flatten()
    shown = numbers["BUG-02"]
    assert shown["truth"] == pytest.approx(log_ratio.mean().item())
    assert shown["broken"] == pytest.approx(-log_ratio.mean().item())
    assert (
        shown["share of completions with k1 below zero"]
        == sum(log_ratio.tolist()[i] < 0 for i in range(80)) / 80
    )
    assert 0.1 < shown["share of completions with k1 below zero"] < 0.5
    assert shown["least k1, nats per sequence"] == pytest.approx(log_ratio.min().item())
    error = (log_ratio.square().mean() - log_ratio.mean() ** 2).sqrt().item() / math.sqrt(64)
    assert shown["standard error of the mean of 64, nats per sequence"] == pytest.approx(error)
    assert shown["broken"] < -5 * error  # so 64 completions show it


def test_09_cutting_off_adds_what_lay_below_zero(numbers):
    log_ratio = (-math.log(40) - lab.seq_logp(lab.REF).flatten()).tolist()
    below = -sum(value for value in log_ratio if value < 0) / 80
    shown = numbers["BUG-09"]
    assert shown["broken"] - shown["truth"] == pytest.approx(below)
    assert shown["mean of the absolute value, nats per sequence"] - shown["truth"] == pytest.approx(2 * below)


def test_03_the_mean_over_tokens_has_another_optimum(numbers):
    # max E[r - beta/length·log_ratio] has π = ref·exp(length·(r - λ)/beta - 1) where the mass is 1.
    length, total = lab.TASK.mask.sum(-1).double(), 0.0
    for reward, ref_logp in zip(lab.TASK.reward, lab.seq_logp(lab.REF), strict=True):
        low, high = -20.0, 20.0
        for _ in range(100):
            middle = (low + high) / 2
            logp = ref_logp + length * (reward - middle) / prices.BETA - 1
            low, high = (middle, high) if logp.exp().sum() > 1 else (low, middle)
        total += (logp.exp() * (logp - ref_logp)).sum().item() / 2
    assert numbers["BUG-03"]["broken"] == pytest.approx(total, abs=1e-8)
    tilted = (lab.seq_logp(lab.REF) + lab.TASK.reward).log_softmax(-1)
    assert numbers["BUG-03"]["truth"] == pytest.approx(lab.kl_to_ref(tilted))
    tilted = (lab.seq_logp(lab.REF) + 10 * lab.TASK.reward).log_softmax(-1)
    scaled = "the same with the reward times 10 and beta as it was, nats per sequence"
    assert numbers["BUG-03"][scaled] == pytest.approx(lab.kl_to_ref(tilted))
    assert numbers["BUG-03"]["broken"] > 9 * numbers["BUG-03"]["truth"]


def test_04_the_loop_settles_below_a_gain_times_response_of_2_and_not_above(numbers):
    shown = numbers["BUG-04"]
    response = shown["response of the KL, -dlog KL / dlog beta"]
    rule = loops.patient_controller()
    loops._follow(rule, loops.UPDATES)

    def log_kl(log_beta):
        tilted = (lab.seq_logp(lab.REF) + lab.TASK.reward / math.exp(log_beta)).log_softmax(-1)
        return math.log(lab.kl_to_ref(tilted))

    h, at = 1e-4, math.log(rule.beta)
    assert math.exp(log_kl(at)) == pytest.approx(loops.TARGET)
    assert response == pytest.approx(-(log_kl(at + h) - log_kl(at - h)) / (2 * h), rel=1e-6)
    assert shown["gain times response, cured"] == pytest.approx(response * 0.4)
    assert shown["gain times response, broken"] == pytest.approx(response * 2)
    for product, settles in ((0.7, True), (2.1, False)):
        gain = product / response
        code = lambda gain=gain: ZieglerBeta(0.5, loops.TARGET, horizon=loops.EPISODES / gain)  # noqa: E731
        assert (loops.largest_late_error(code) < 1e-8) is settles


def test_04_its_digits_do_not_depend_on_rounding(numbers):
    moved = loops.largest_late_error(lambda: ZieglerBeta(0.5 * (1 + 1e-13), loops.TARGET, horizon=256))
    assert moved == pytest.approx(numbers["BUG-04"]["broken"], abs=1e-6)


def test_05_a_shared_reference_is_no_penalty_at_all(numbers):
    def reward(policy):
        return exact.expectation(lab.TASK.reward, exact.seq_logp(policy, lab.TASK), lab.TASK)

    alone = exact.ascend(lab.REF, reward, lab.TASK, steps=12, step_size=1 / loops.BETA)
    shown = numbers["BUG-05"]
    assert shown["broken"] == pytest.approx(exact.kl(alone, lab.REF, lab.TASK).item())
    assert {value for name, value in shown.items() if "largest" in name} == {0.0}
    assert len([name for name in shown if "largest" in name]) == 4
    policy, ref = loops._train(loops.frozen_reference, 2)
    assert exact.kl(policy, ref, lab.TASK) > 0.1
    assert not any(parameter.requires_grad for parameter in ref.parameters())


def test_06_the_mean_over_tokens_is_the_kl_over_the_mean_length(numbers):
    shown = numbers["BUG-06"]
    lengths = [len(seq) for seq in lab.TASK.sequences]
    assert shown["mean length, tokens"] == sum(lengths) / len(lengths)
    assert shown["broken"] * shown["mean length, tokens"] == pytest.approx(shown["truth"])
    log_ratio = lab.rows(lab.POLICY) - lab.rows(lab.REF)
    each = (log_ratio * lab.MASK).sum(-1) / torch.tensor(lengths * 2)
    assert shown["mean of the means of rows, nats per token"] == pytest.approx(each.mean().item())
    assert shown["truth"] == numbers["BUG-02"]["truth"]


def test_07_a_nat_costs_beta_times_the_standard_deviation(numbers):
    shown = numbers["BUG-07"]
    p = shown["share of successes"]
    assert p == 1 / 40
    assert shown["standard deviation of the scores, reward units"] == pytest.approx(math.sqrt(p * (1 - p)))
    assert shown["broken"] == pytest.approx(prices.BETA * math.sqrt(p * (1 - p)))
    # One success in a hundred and beta = 0.04: a nat costs 0.00398 reward units.
    scores = torch.zeros(100, dtype=torch.float64).index_fill(0, torch.tensor([3]), 1.0)
    group, log_ratio = torch.zeros(100, dtype=torch.long), torch.linspace(-1, 2, 100, dtype=torch.float64)
    advantages = prices.priced_after_z_score(scores, log_ratio, group, 0.04)
    per_nat = (advantages[1] - advantages[0]) / (log_ratio[1] - log_ratio[0])
    gain = advantages[3] - advantages[2] - per_nat * (log_ratio[3] - log_ratio[2])
    assert -(per_nat / gain).item() == pytest.approx(0.04 * math.sqrt(0.01 * 0.99))
    assert -(per_nat / gain).item() == pytest.approx(0.00398, abs=1e-5)


def test_08_the_clamp_takes_the_pull_from_where_it_is_largest(numbers):
    shown = numbers["BUG-08"]
    left = 0.2 * math.exp(-11)
    assert shown["truth"] == pytest.approx(left - 0.2)  # ∇KL(ref ‖ policy) in a logit is policy - ref
    assert shown["slope of one clamped in logp at 11 nats"] == 0
    assert shown["slope of one k3 in logp at 11 nats"] == pytest.approx(-math.expm1(11))
    assert shown["slope of one k3 in logp at 11 nats"] == pytest.approx(-59873.1, abs=0.1)
    assert shown["slope of one k2 in logp at 11 nats"] == -11
    policy, ref = clamps._pair()
    other = exact.gradient(lambda moving: exact.kl(moving, ref, policy.task), policy)[2].item()
    assert shown["mean gradient of k2 in the same logit"] == pytest.approx(other)
    for dtype in (torch.float32, torch.float16):
        limit = shown[f"log-ratio at which exp overflows {str(dtype)[6:]}, nats"]
        for share, finite in ((0.999, True), (1.001, False)):
            assert torch.tensor(limit * share, dtype=dtype).exp().isfinite().item() is finite


def test_10_a_clamp_inside_the_exponential_pushes_away(numbers):
    shown = numbers["BUG-10"]
    assert shown["slope of one half clamped in logp at 11 nats"] == 1
    assert shown["broken"] > 0 > shown["truth"]  # descent would lower the lost action further
    assert shown["its value at 22026 nats"] == pytest.approx(math.expm1(10) - 22026)
    assert shown["its value at 22026 nats"] < 0
    assert clamps._at(clamps.half_clamped_k3, 22025.0)[0] > 0


def test_the_rows_of_the_batch_are_the_completions_of_the_task():
    assert torch.equal(lab.SCORES.view(2, 40), lab.TASK.reward)
    assert torch.allclose(masked_sum(lab.rows(lab.REF), lab.MASK), lab.seq_logp(lab.REF).flatten())
