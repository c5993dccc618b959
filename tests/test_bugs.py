"""Every bug of the zoo is caught by its own test, every cure passes it, and the numbers are exact."""

import copy
import inspect
import itertools
import math
import re

import pytest
import torch

from kltutor import bugs, exact, k1, k2, k3, masked_mean, masked_sum, reduce
from kltutor.audit import check
from kltutor.bugs import (
    batches,
    charges,
    clamps,
    curves,
    echo,
    estimates,
    lab,
    logits,
    loops,
    losses,
    page,
    prices,
    ratios,
)
from kltutor.controllers import ZieglerBeta
from kltutor.estimators import full_vocab_kl
from kltutor.policy_gradient import dr_grpo_advantages, group_advantages

BUGS = bugs.all_bugs()


def half():
    factor = 1.0
    return factor


PLOT = curves.Plot("step", "y [nats]", lambda: [0, 1, 2], lambda code: [code()] * 3)
FORM = {
    "id": "BUG-99",
    "title": "A title.",
    "symptom": "A symptom.",
    "why": "A reason.",
    "cure": "A cure.",
    "quantity": "twice the KL, nats",
    "broken": half,
    "cured": lambda: 2.0,
    "truth": lambda: 2.0,
    "line": "factor = 1.0",
    "finding": "Half of it",
    "plot": PLOT,
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
    for text in (bug.title, bug.symptom, bug.why, bug.cure, bug.quantity, bug.finding):
        assert "\n" not in text
        assert "|" not in text, "would end a cell of a Markdown table"
        assert len(text) < 320
    assert len(bug.finding) < 50
    assert re.search(r"nats|reward units|no unit", bug.quantity)
    assert re.search(r"nat|reward units|\+1", bug.symptom)
    assert bug.thread


def test_the_checklist_is_there_in_its_order():
    assert [bug.id for bug in BUGS] == [f"BUG-{i:02d}" for i in range(1, len(BUGS) + 1)]
    assert len(BUGS) >= 20
    assert bugs.get("BUG-05").broken is loops.shared_reference
    assert len({bug.title for bug in BUGS}) == len({bug.why for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": "BUG-01"}, "taken"),
        ({"id": "bug-1"}, "two digits"),
        ({"title": "no full stop"}, "title of BUG-99 is 'no full stop'"),
        ({"symptom": ""}, "symptom"),
        ({"why": "because"}, "why of BUG-99 is 'because'"),
        ({"finding": " "}, "finding of BUG-99 is empty"),
        ({"line": "factor = 2.0"}, "'factor = 2.0', found 0 times"),
        ({"line": "factor"}, "found 0 times"),
        ({"inputs": ("logp",)}, "both or none"),
        ({"returns": "token"}, "both or none"),
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


def logits_of(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def _k3_of_halves(logp, ref_logp, mask):
    middle = logp.shape[1] // 2
    parts = (slice(0, middle), slice(middle, None))
    return sum(ratios.k3_of_the_sequence(logp[:, part], ref_logp[:, part], mask[:, part]) for part in parts)


def _without_log_target(logits, ref_logits, mask):
    kl = torch.nn.functional.kl_div(ref_logits.log_softmax(-1), logits.log_softmax(-1), reduction="none")
    return masked_sum(kl.sum(-1), mask)


def _placed(scores, mask, at):
    return torch.zeros_like(mask, dtype=scores.dtype).scatter_(1, at[:, None], scores[:, None])


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
    ("BUG-11", k2),
    ("BUG-11", lambda logp, ref_logp: -k3(logp, ref_logp)),
    ("BUG-12", lambda logp, ref_logp: (ref_logp - logp).exp() - (ref_logp - logp)),
    ("BUG-12", lambda logp, ref_logp: torch.expm1(ref_logp - logp) + ref_logp - logp),
    ("BUG-13", lambda logp, ref_logp: (ref_logp - logp).exp() - 1 - (ref_logp - logp)),
    ("BUG-13", lambda logp, ref_logp: k3(logp, ref_logp).half()),
    ("BUG-13", k1),
    ("BUG-14", lambda logp, ref_logp, mask: masked_sum(k1(logp, ref_logp), mask)),
    ("BUG-14", _k3_of_halves),
    ("BUG-15", lambda logits, tokens: logits.gather(-1, tokens[..., None]).squeeze(-1)),
    ("BUG-15", lambda logits, tokens: logits.log_softmax(1).gather(-1, tokens[..., None]).squeeze(-1)),
    ("BUG-15", lambda logits, tokens: logits.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)),
    ("BUG-16", lambda logits, ref, mask: masked_mean(full_vocab_kl(logits, ref), mask)),
    ("BUG-16", lambda logits, ref, mask: -masked_sum(full_vocab_kl(logits, ref), mask)),
    ("BUG-16", _without_log_target),
    ("BUG-17", lambda logits, tokens: logits_of(logits[:, 1:], tokens[:, :-1])),
    ("BUG-17", lambda logits, tokens: logits_of(logits.roll(2, 1)[:, 1:], tokens[:, 1:])),
    ("BUG-18", lambda logits, tokens, temperature: logits_of(logits * temperature, tokens)),
    ("BUG-18", lambda logits, tokens, temperature: logits_of(logits, tokens) / temperature),
    ("BUG-19", lambda logp, ref_logp, mask: masked_sum(k3(logp, ref_logp), mask)),
    ("BUG-19", lambda logp, ref_logp, mask: -losses.k2_of_the_sequence(logp, ref_logp, mask)),
    ("BUG-19", lambda logp, ref_logp, mask: 2 * losses.k2_of_the_sequence(logp, ref_logp, mask)),
    ("BUG-20", lambda logp, ref_logp, mask: losses.k2_of_the_sequence(logp.detach(), ref_logp, mask)),
    ("BUG-21", lambda logp, ref_logp, mask: ratios.k3_of_the_sequence(logp, ref_logp, mask)),
    ("BUG-22", lambda r, logp, ref_logp, beta: r * logp + beta * (logp - ref_logp).square() / 2),
    ("BUG-22", lambda r, logp, ref_logp, beta: -r * logp + beta * (logp - ref_logp).square()),
    ("BUG-23", charges.negated_penalty),
    ("BUG-23", lambda r, logp, ref_logp, beta: -r * logp),
    ("BUG-24", lambda r, logp, ref_logp, beta: -(r + beta * (logp - ref_logp).detach()) * logp),
    ("BUG-24", lambda r, logp, ref_logp, beta: -(r - (0.1 * (logp - ref_logp)).detach()) * logp),
    ("BUG-25", lambda logp, mask: (logp * mask).mean(-1)),
    ("BUG-25", lambda logp, mask: (logp * mask).sum(-1) / mask.sum(-1).sqrt()),
    ("BUG-26", lambda scores, mask: _placed(scores, mask, mask.long().cumsum(1).argmax(1))),
    ("BUG-26", lambda scores, mask: _placed(scores, mask, (mask.sum(-1) - 1).clamp(min=0))),
    ("BUG-27", lambda scores: (scores - scores.mean()) / (scores.std() + 1e-8) + 1e-3),
    (
        "BUG-27",
        lambda scores: (
            (centred := scores - sum(scores) / len(scores)) / (centred.square().mean().sqrt() + 1e-6)
        ),
    ),
    ("BUG-28", lambda logp, old_logp, ref_logp: (ref_logp.exp() * (ref_logp - logp)).sum(-1).mean()),
    ("BUG-28", lambda logp, old_logp, ref_logp: loops.kl_to_the_reference(logp, old_logp, ref_logp) / 2.9),
]


@pytest.mark.parametrize(("id", "code"), NEXT_TO)
def test_the_mistakes_next_to_it_are_caught_too(id, code):
    with pytest.raises(AssertionError, match=id):
        bugs.get(id).caught(code)


def _half_in_each(scores, logp, ref_logp, beta):
    rewards = scores - beta / 2 * (logp - ref_logp).detach()
    return -rewards * logp + beta / 4 * (logp - ref_logp).square()


@pytest.mark.parametrize(
    ("id", "code"),
    [
        ("BUG-02", k3),  # another unbiased estimate
        ("BUG-04", lambda: ZieglerBeta(0.7, loops.TARGET, horizon=1000)),
        ("BUG-07", lambda s, log_ratio, group, beta: dr_grpo_advantages(s, group) - beta * log_ratio),
        ("BUG-08", lambda logp, ref_logp: k3(logp, ref_logp) + 1),  # a constant has no gradient
        ("BUG-11", k1),
        ("BUG-12", lambda logp, ref_logp: (ref_logp - logp).exp() - 1 - (ref_logp - logp)),
        ("BUG-13", k2),
        ("BUG-15", lambda logits, tokens: logits_of(logits + 3.0, tokens)),
        ("BUG-16", lambda logits, ref, mask: masked_sum(full_vocab_kl(logits, ref), mask)),
        ("BUG-19", losses.with_gradient),
        ("BUG-22", charges.penalty_in_the_reward),
        ("BUG-23", _half_in_each),
        ("BUG-24", charges.penalty_in_the_loss),
        ("BUG-25", masked_sum),
        ("BUG-27", lambda scores: scores - scores.median()),
        ("BUG-28", lambda logp, old, ref: (logp.exp() * (logp - old + old - ref)).sum(-1).mean()),
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
    policy, ref, task = echo.Bigram(2), echo.Bigram(1), echo.ECHO
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


# The line, the curve, the page

REPAIR = {  # what the wrong line alone becomes
    "BUG-01": "return masked_sum(logp - ref_logp, attention[:, 1:] & "
    "(torch.arange(tokens.shape[1] - 1) >= prompt_length - 1))",
    "BUG-02": "return logp - ref_logp",
    "BUG-03": "return scores - beta * masked_sum(logp - ref_logp, mask)",
    "BUG-04": "return ZieglerBeta(0.5, TARGET, horizon=EPISODES * 2.5)",
    "BUG-05": "return copy.deepcopy(policy).requires_grad_(False)",
    "BUG-06": 'return reduce(k1(logp, ref_logp), mask, "sequence_sum")',
    "BUG-07": "return group_advantages(scores - beta * log_ratio, group)",
    "BUG-08": "delta = ref_logp - logp",
    "BUG-09": "return logp - ref_logp",
    "BUG-10": "return delta.exp() - delta - 1",
    "BUG-11": "return torch.expm1(-log_ratio) + log_ratio",
    "BUG-12": "return ratio - 1 - ratio.log()",
    "BUG-13": "return torch.expm1(delta) - delta",
    "BUG-14": "return masked_sum(torch.expm1(ref_logp - logp) + logp - ref_logp, mask)",
    "BUG-15": "return (chosen - logits.logsumexp(-1, keepdim=True)).squeeze(-1)",
    "BUG-16": 'kl = F.kl_div(ref_logp, logp, reduction="none", log_target=True)',
    "BUG-17": "chosen = logp.roll(1, 1).gather(-1, tokens[..., None]).squeeze(-1)",
    "BUG-18": "logp = (logits / temperature).log_softmax(-1)",
    "BUG-19": "return log_ratio.square() / 2",
    "BUG-20": "with torch.enable_grad():",
    "BUG-21": "return masked_sum(log_ratio, mask).square() / 2",
    "BUG-22": "return policy_loss + beta * kl",
    "BUG-23": "rewards = scores",
    "BUG-24": "returns = scores - beta * kl",
    "BUG-25": "return total",
    "BUG-26": "last, scores = mask.sum(-1) - 1, scores * mask.any(-1)",
    "BUG-27": "return centred / spread if scores.max() > scores.min() else torch.zeros_like(scores)",
    "BUG-28": "log_ratio = logp - ref_logp",
}


def _run(bug, lines):
    names = dict(vars(inspect.getmodule(bug.broken)))
    exec("\n".join(lines), names)
    return names["suspect"]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_the_printed_code_has_the_bug_and_loses_it_with_the_line(bug):
    lines, wrong = page.listing(bug)
    assert lines[wrong - 1].strip() == bug.line
    assert bug.broken.__name__ not in "\n".join(lines)
    with pytest.raises(AssertionError, match=bug.id):
        bug.caught(_run(bug, lines))
    indent = lines[wrong - 1].removesuffix(bug.line)
    bug.caught(_run(bug, [*lines[: wrong - 1], indent + REPAIR[bug.id], *lines[wrong:]]))


@pytest.fixture(scope="module")
def seen():
    return {bug.id: bug.curve() for bug in BUGS}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_curve_tells_the_broken_code_from_the_cured(bug, seen):
    curve = seen[bug.id]
    reach = max(*curve.broken, *curve.cured) - min(*curve.broken, *curve.cured)
    assert max(abs(a - b) for a, b in zip(curve.broken, curve.cured, strict=True)) > 0.07 * reach
    assert bug.plot.x.endswith("]") or re.match(r"step|update|tokens|nats|empty|size", bug.plot.x)
    assert bug.plot.y.endswith("]")


def test_cured_code_reports_the_kl_at_every_distance(seen):
    reported = [curve for curve in seen.values() if curve.plot.y.startswith("reported KL")]
    assert len(reported) == 9
    for curve in reported:
        assert curve.cured == pytest.approx(curve.x, abs=1e-12)


def test_curves_by_beta_are_those_of_the_optimum(seen):
    def at(beta):
        return lab.kl_to_ref((lab.seq_logp(lab.REF) + lab.TASK.reward / beta).log_softmax(-1))

    for id in ("BUG-03", "BUG-23", "BUG-24", "BUG-25"):
        assert seen[id].cured == pytest.approx([at(beta) for beta in seen[id].x], abs=1e-2, rel=1e-2)
    assert seen["BUG-25"].cured == pytest.approx([at(beta) for beta in seen["BUG-25"].x], abs=1e-8)
    assert seen["BUG-23"].broken == pytest.approx([at(2 * beta) for beta in seen["BUG-23"].x], abs=1e-5)
    assert len({round(kl, 9) for kl in seen["BUG-24"].broken}) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": (0.0, 1.0)}, r"\[2, 3, 3\] values"),
        ({"x": (0.0, 1.0, 1.0)}, "increasing"),
        ({"x": (0.0, math.nan, 1.0)}, "increasing"),
        ({"broken": (0.0, math.inf, 1.0)}, "broken holds inf"),
        ({"cured": (1.0, 2.0, math.nan)}, "cured holds nan"),
        ({"plot": curves.Plot("x", "y", list, list, y_scale="log"), "broken": (1.0, 0.0, 1.0)}, "above 0"),
        ({"plot": curves.Plot("x", "y", list, list, x_scale="log")}, "x holds 0"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_refused(changes, says):
    form = {
        "finding": "Up",
        "plot": PLOT,
        "x": (0.0, 1.0, 2.0),
        "broken": (1.0, 2.0, 3.0),
        "cured": (1.0,) * 3,
    }
    curves.Curve(**form)
    with pytest.raises(ValueError, match=says):
        curves.Curve(**form | changes)


FUNCTIONS = [bug for bug in BUGS if bug.kind == "KL function"]


@pytest.mark.parametrize("bug", FUNCTIONS, ids=lambda bug: bug.id)
def test_the_auditor_says_of_the_broken_code_what_it_does_not_say_of_the_cured(bug):
    said = page.audited(bug)
    assert said.startswith(" `kltutor.check` says: ")
    assert len(said) > 60, "all it says holds for the cured code too"


def test_the_auditor_names_what_the_zoo_says_of_itself():
    def of(id):
        bug = bugs.get(id)
        verdict = check(bug.broken, inputs=bug.inputs, returns=bug.returns)
        return verdict.value, verdict.gradient

    assert len(FUNCTIONS) >= 13
    assert of("BUG-02") == ("-KL(π‖ref)", "0")
    assert of("BUG-11")[0] == "χ²(π‖ref) - KL(π‖ref) per token"
    assert of("BUG-16")[0] == "KL(ref‖π) per token"
    assert of("BUG-19") == ("KL(π‖ref)", "0")
    assert of("BUG-20")[1] == "no gradient (detached)"
    assert of("BUG-21")[1] == "∇KL(π‖ref) per token"
    assert of("BUG-12")[0] == "none of the known"


def test_every_bug_is_a_suspect_and_every_suspect_a_bug():
    assert {id for ids in page.SUSPECTS.values() for id in ids} == {bug.id for bug in BUGS}
    table = page.suspects()
    assert all(f'<a href="#{bug.id.lower()}">{bug.id}</a>' in table for bug in BUGS)


@pytest.mark.parametrize("id", ["BUG-11", "BUG-22"])
def test_an_exhibit_folds_its_answer_and_describes_its_plot(id):
    bug = bugs.get(id)
    text = page.exhibit(bug)
    shown, folded = text.split("<details>")
    assert bug.broken.__name__ not in text
    assert 'alt="' in shown
    assert len(re.search(r'alt="([^"]*)"', shown)[1]) > 40
    assert "data:image/svg+xml,%3Csvg" in shown
    assert f"Line {page.listing(bug)[1]}." in folded
    assert f'href="https://github.com/{bug.thread.replace("#", "/issues/")}"' in folded
    assert text == page.exhibit(bug), "or a second execution of the page would change it"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e-17, "0"), (-0.0, "0"), (-2.34567, "-2.35"), (59873.0, "59900"), (1e-5, "1e-05"), (999.9, "1000")],
)
def test_a_number_has_three_digits_and_no_rounding_noise(value, shown):
    assert page.number(value) == shown


# The numbers of the bugs beyond the checklist, from other sums


def test_11_the_inverted_k3_is_chi2_minus_kl_of_every_token(numbers, seen):
    def of(ref):
        total = 0.0
        for prompt in range(2):
            for path, probability in _prefixes(lab.POLICY, prompt):
                p, q = (one.logits[prompt, path].detach().softmax(-1).tolist() for one in (lab.POLICY, ref))
                chi2 = sum(a * a / b for a, b in zip(p, q, strict=True)) - 1
                kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
                total += probability / 2 * (chi2 - kl)
        return total

    assert numbers["BUG-11"]["broken"] == pytest.approx(of(lab.REF))
    chi2 = numbers["BUG-11"]["chi2 of each token's choice, summed along the completion, no unit"]
    assert chi2 - numbers["BUG-11"]["truth"] == pytest.approx(numbers["BUG-11"]["broken"])
    assert seen["BUG-11"].broken[-1] == pytest.approx(of(lab.ref_at(lab.MOVES[-1])))
    assert seen["BUG-11"].broken[1] == pytest.approx(seen["BUG-11"].cured[1], rel=0.05)  # near: no difference


def _prefixes(policy, prompt):
    """Return the index of every open prefix and how likely the policy is to come by it."""
    tables = policy.logits[prompt].detach().softmax(-1)
    found, order = {(): 1.0}, list(lab.TASK.open_prefixes)
    for prefix in order[1:]:
        found[prefix] = found[prefix[:-1]] * tables[order.index(prefix[:-1]), prefix[-1]].item()
    return [(order.index(prefix), probability) for prefix, probability in found.items()]


def test_12_equal_policies_have_e_minus_2_nats_per_token(numbers, seen):
    length = lab.TASK.mask.sum(-1).double().mean().item()
    assert seen["BUG-12"].broken[0] == pytest.approx((math.e - 2) * length)
    assert (
        numbers["BUG-12"]["the same where policy and reference are equal, nats"] == seen["BUG-12"].broken[0]
    )
    assert round(math.e - 2, 2) == 0.72


def test_13_the_lost_values_are_far_above_what_expm1_keeps(numbers):
    shown = numbers["BUG-13"]
    assert shown["broken"] == 1
    assert shown["largest value that is lost, billionths of a nat"] == pytest.approx(
        1e9 * (1500 / 2**23) ** 2 / 2, rel=1e-3
    )
    assert shown["largest relative error of the cured, no unit"] < 0.01
    assert all(-1.5 + k / 2**23 + 1.5 == k / 2**23 for k in (400, 1500))


@pytest.mark.parametrize("tokens", [1, 10, 100])
def test_14_the_variance_has_a_closed_form_that_grows_exponentially(tokens):
    p, q = (torch.tensor([share, 1 - share], dtype=torch.float64) for share in ratios.SHARES)
    chi2 = (q * q / p).sum() - 1
    jeffreys = ((p - q) * (p / q).log()).sum()
    log_ratio = (q / p).log()
    spread = (p * log_ratio**2).sum() - (p * log_ratio).sum() ** 2
    variance = (1 + chi2) ** tokens - 1 + tokens * spread - 2 * tokens * jeffreys
    assert ratios._deviation(ratios.k3_of_the_sequence, tokens) == pytest.approx(
        variance.sqrt().item(), rel=1e-6
    )
    k1_spread = ratios._deviation(lambda a, b, mask: masked_sum(k1(a, b), mask), tokens)
    assert k1_spread == pytest.approx(math.sqrt(tokens * spread))


def test_14_two_completions_in_three_read_too_low(numbers):
    shown = numbers["BUG-14"]
    assert round(shown["share of completions whose k3 is below the KL, no unit"], 2) == 0.65
    assert round(shown["KL of the completion, nats per sequence"], 2) == 2.04


def test_15_every_log_probability_is_0():
    tokens = lab.TASK.tokens.repeat(2, 1)
    assert (logits.gathered_first(logits.predictions(lab.POLICY, lab.TASK), tokens) == 0).all()
    assert torch.allclose(
        logits_of(logits.predictions(lab.REF, lab.TASK), tokens)[lab.MASK], lab.rows(lab.REF)[lab.MASK]
    )


def test_16_the_swapped_call_is_the_other_direction_at_each_prefix(numbers):
    total = 0.0
    for prompt in range(2):
        for path, probability in _prefixes(lab.POLICY, prompt):
            p, q = (one.logits[prompt, path].detach().softmax(-1).tolist() for one in (lab.POLICY, lab.REF))
            total += probability / 2 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert numbers["BUG-16"]["broken"] == pytest.approx(total)
    shown = numbers["BUG-16"]
    called = shown["F.kl_div(log p, log q, log_target=True) of three outcomes, nats"]
    assert called == pytest.approx(shown["KL(q ‖ p), nats"])
    assert called != pytest.approx(shown["KL(p ‖ q), nats"], rel=1e-3)


def test_17_the_surprise_is_not_the_entropy_but_equal_models_agree(numbers, seen):
    shown = numbers["BUG-17"]
    surprise = [value for name, value in shown.items() if name.startswith("mean of -log policy")]
    policy = exact.seq_logp(echo.Bigram(2), echo.ECHO).detach()
    entropy = -exact.expectation(policy, policy, echo.ECHO).item()
    assert surprise[1] == pytest.approx(entropy)
    assert abs(surprise[0] - entropy) > 0.5
    assert seen["BUG-17"].broken[0] == 0


def test_18_the_mean_falls_below_zero_at_a_temperature_below_1(numbers, seen):
    curve = seen["BUG-18"]
    assert curve.broken[curve.x.index(1.0)] == pytest.approx(curve.cured[curve.x.index(1.0)])
    assert numbers["BUG-18"]["broken"] < -0.2
    assert min(curve.cured) > 0
    policy, warm = logits._at(0.5, logits._flat()), logits._flat()
    total = (lab.seq_logp(policy).exp() * (lab.seq_logp(warm) - lab.seq_logp(lab.REF))).sum(-1).mean()
    assert numbers["BUG-18"]["broken"] == pytest.approx(total.item())


def test_19_20_the_gradient_is_0_and_the_value_right(numbers):
    assert losses.mean_gradient(losses.k1_as_loss, lab.REF).abs().max() < 1e-15
    assert losses.mean_gradient(losses.without_gradient, lab.REF).abs().max() == 0
    mean = losses.k1_as_loss(lab.rows(lab.POLICY), lab.rows(lab.REF), lab.MASK).mean().item()
    assert mean == pytest.approx(numbers["BUG-02"]["truth"])
    right = numbers["BUG-19"]["length of the true gradient, nats per logit"]
    assert right == pytest.approx(losses.mean_gradient(losses.with_gradient, lab.REF).norm().item())


def test_21_a_third_is_missing_and_the_sum_over_tokens_is_the_log_ratio(numbers):
    assert 0.3 < numbers["BUG-21"]["broken"] < 0.4
    assert 0.9 < numbers["BUG-21"]["cosine of the two gradients, no unit"] < 0.99
    log_ratio = lab.rows(lab.POLICY) - lab.rows(lab.REF)
    assert torch.allclose(
        masked_sum(log_ratio, lab.MASK), (lab.seq_logp(lab.POLICY) - lab.seq_logp(lab.REF)).flatten()
    )


def test_22_23_24_end_where_the_sums_say(numbers):
    favourite = (lab.seq_logp(lab.REF) + 1e6 * lab.TASK.reward).log_softmax(-1)
    assert numbers["BUG-24"]["broken"] == pytest.approx(lab.kl_to_ref(favourite), abs=1e-6)
    assert numbers["BUG-23"]["broken"] == pytest.approx(
        numbers["BUG-23"]["KL of the optimum at twice beta, nats per sequence"]
    )
    assert round(numbers["BUG-23"]["broken"], 3) == 0.046
    assert round(numbers["BUG-23"]["truth"], 3) == 0.190
    assert numbers["BUG-22"]["broken"] > 15 * numbers["BUG-22"]["truth"]


def test_25_dpo_on_sums_finds_the_optimum_and_on_means_lengthens_log_ratios(numbers):
    assert numbers["BUG-25"]["truth"] == numbers["BUG-03"]["truth"]
    assert numbers["BUG-25"]["broken"] > 8 * numbers["BUG-25"]["truth"]


def test_26_the_reward_of_an_empty_answer_stands_on_padding(numbers, seen):
    assert numbers["BUG-26"]["broken"] == 2  # two empty answers, one reward unit each
    assert seen["BUG-26"].broken == pytest.approx([-empty / 8 for empty in range(8)])
    assert numbers["BUG-26"]["where argmax of the cumulative sum puts it, position"] == 0
    assert numbers["BUG-26"]["where counting puts it, position"] == 3
    scores, mask = batches._answers(2)
    kept = batches.at_the_last_action(scores + 1, mask)
    assert torch.equal(kept.sum(-1), (scores + 1).masked_fill(~mask.any(-1), 0))


def test_27_the_rounding_of_a_mean_becomes_an_advantage(numbers):
    residue = abs(0.7 - 5.6 / 8)  # in float64 there may be none; in float32 it is half a digit of 0.7
    assert residue < 1e-15
    assert numbers["BUG-27"]["broken"] == pytest.approx(2**-24 / (2**-24 + 1e-8), rel=1e-6)
    assert round(numbers["BUG-27"]["broken"], 2) == 0.86
    assert numbers["BUG-27"]["the same of rewards of 1, no unit"] == 0
    assert numbers["BUG-27"]["the same with 1e-4 in the place of 1e-8, no unit"] < 1e-3


def test_28_the_deaf_controller_lets_the_policy_go(numbers, seen):
    favourite = (lab.seq_logp(lab.REF) + 1e6 * lab.TASK.reward).log_softmax(-1)
    assert numbers["BUG-28"]["broken"] == pytest.approx(lab.kl_to_ref(favourite), rel=1e-3)
    assert seen["BUG-28"].broken[0] == seen["BUG-28"].cured[0]
    assert all(a < b for a, b in itertools.pairwise(seen["BUG-28"].broken))
    assert numbers["BUG-28"]["truth"] == loops.TARGET
