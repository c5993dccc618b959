"""The terms of the libraries against arithmetic and sums of their own, and the rows against each other."""

import inspect
import math
import re
from datetime import date

import jaxtyping
import pytest
import torch
from scipy.optimize import brentq

from kltutor import exact
from kltutor import libraries as lib
from kltutor.libraries import terms

RATIOS = torch.tensor(
    [[-50.0, -30.0, -15.0, -6.0, -4.0, -2.0, -0.5, 0.0, 0.7, 3.0, 5.0, 9.0, 12.0, 25.0, 45.0]]
).double()
CAP_LOW, CAP_HIGH = (  # where e^(-d) - 1 + d reaches 10
    brentq(lambda d: math.exp(-d) - 1 + d - 10, *bracket) for bracket in ((-5, -1), (5, 15))
)
EVERY = [f for name, f in vars(terms).items() if inspect.isfunction(f) and f.__module__ == terms.__name__]
OF_REF = [f for f in EVERY if not f.__name__.startswith("old_")]
OF_OLD = [f for f in EVERY if f.__name__.startswith("old_")]


def three(d):
    return math.exp(-d) - 1 + d


# term -> value of a fresh token, its slope, and the log-ratios between which it lives
FRESH = {
    terms.k1: (lambda d: d, lambda d: 1, (-math.inf, math.inf)),
    terms.absolute: (abs, lambda d: (d > 0) - (d < 0), (-math.inf, math.inf)),
    terms.k2: (lambda d: d * d / 2, lambda d: d, (-math.inf, math.inf)),
    terms.k3: (three, lambda d: 1 - math.exp(-d), (-math.inf, math.inf)),
    terms.k1_capped: (lambda d: d, lambda d: 1, (-10, 10)),
    terms.k2_capped: (lambda d: d * d / 2, lambda d: d, (-math.sqrt(20), math.sqrt(20))),
    terms.k3_capped: (three, lambda d: 1 - math.exp(-d), (CAP_LOW, CAP_HIGH)),
    terms.k3_clamped: (three, lambda d: 1 - math.exp(-d), (CAP_LOW, CAP_HIGH)),
    terms.k3_floored: (three, lambda d: 1 - math.exp(-d), (CAP_LOW, CAP_HIGH)),
    terms.k3_wide: (three, lambda d: 1 - math.exp(-d), (-40, 40)),
    terms.k3_times_ratio: (three, lambda d: d, (-math.inf, math.inf)),
    terms.k3_times_mean_ratio: (three, None, (-math.inf, math.inf)),
    terms.k3_times_ratio_capped: (three, lambda d: d, (CAP_LOW, CAP_HIGH)),
    terms.k1_times_ratio: (
        lambda d: max(-40, min(40, d)),
        lambda d: 1 + d if abs(d) < 40 else math.copysign(40, d),
        (-math.inf, math.inf),
    ),
    terms.k3_with_score: (three, lambda d: d, (CAP_LOW, CAP_HIGH)),
    terms.k3_with_sampler_ratio: (three, lambda d: d, (CAP_LOW, CAP_HIGH)),
    terms.k3_pulled_by_k2: (three, lambda d: d, None),
    terms.k3_pulled_by_weighted_k2: (three, lambda d: d, None),
}
CAPPED = {10.0: [f for f in OF_REF if re.search(r"capped|clamped|floored|with_|pulled", f.__name__)]}


def test_the_table_above_leaves_no_term_out():
    assert set(FRESH) == set(OF_REF)
    assert len(OF_OLD) == 4
    assert set(terms.UNCLAMPED) <= set(OF_REF)


@pytest.mark.parametrize("term", OF_REF, ids=lambda f: f.__name__)
def test_the_value_of_a_fresh_token(term):
    value, _, _ = FRESH[term]
    logp = torch.full_like(RATIOS, -60.0) + RATIOS
    got = term(logp, torch.full_like(RATIOS, -60.0), logp, torch.ones_like(RATIOS, dtype=torch.bool))[0]
    for d, x in zip(RATIOS[0].tolist(), got.tolist(), strict=True):
        expected = value(d)
        if term in CAPPED[10.0]:
            expected = max(-10.0, min(10.0, expected))
        if term is terms.k3_wide:
            expected = value(max(-40.0, min(40.0, d)))
        assert x == pytest.approx(expected, rel=1e-9, abs=1e-12), d


@pytest.mark.parametrize("term", [f for f in OF_REF if FRESH[f][1]], ids=lambda f: f.__name__)
def test_the_slope_of_a_fresh_token_is_zero_exactly_where_a_clamp_acts(term):
    _, slope, life = FRESH[term]
    low, high = life or (-math.inf, math.inf)
    got = lib.slope(term, RATIOS[0])
    for d, x in zip(RATIOS[0].tolist(), got.tolist(), strict=True):
        if not low < d < high:
            assert x == 0, d
        elif term is terms.k3_times_ratio and d < -20:
            assert x == pytest.approx(d, abs=math.exp(-d) * 1e-15)  # a difference of two exponentials
        else:
            assert x == pytest.approx(slope(d), rel=1e-6, abs=1e-12), d


@pytest.mark.parametrize("term", [f for f in OF_REF if FRESH[f][2]], ids=lambda f: f.__name__)
def test_the_audit_finds_the_ends_of_the_gradient(term):
    assert lib.verdict(term).profile.live == pytest.approx(FRESH[term][2], abs=1e-3)


def test_at_zero_a_gradient_may_vanish_without_a_clamp():
    assert lib.slope(terms.k3, torch.zeros(1)) == 0


@pytest.mark.parametrize("term", EVERY, ids=lambda f: f.__name__)
def test_a_position_filled_with_zero_counts_nothing_and_hurts_no_gradient(term):
    logp = torch.tensor([[-1.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    value = term(logp, torch.tensor([[-1.5, 0.0]]), torch.tensor([[-0.8, 0.0]]), mask)
    assert value[0, 1] == 0
    assert torch.autograd.grad(value.sum(), logp)[0].isfinite().all()
    with pytest.raises(jaxtyping.TypeCheckError):
        term(logp, torch.zeros(1, 1), logp, mask)


STALE = torch.tensor([[0.6, 0.1, 0.3]]).double().log(), torch.tensor([[0.2, 0.3, 0.5]]).double().log()
THEN = torch.tensor([[0.4, 0.35, 0.25]]).double().log()


def stale_slope(term):
    logp, ref_logp = STALE[0].clone().requires_grad_(), STALE[1]
    value = term(logp, ref_logp, THEN, torch.ones_like(THEN, dtype=torch.bool))
    return value.detach(), torch.autograd.grad(value.sum(), logp)[0]


def test_stale_tokens_weigh_by_their_own_ratio_and_the_weight_is_differentiated_where_it_should_be():
    d, rho = STALE[0] - STALE[1], (STALE[0] - THEN).exp()
    k3 = (-d).exp() - 1 + d
    for term in (terms.k3_times_ratio, terms.k3_times_ratio_capped, terms.k3_with_sampler_ratio):
        value, slope = stale_slope(term)
        torch.testing.assert_close(value, rho * k3)
        torch.testing.assert_close(slope, rho * d)  # ρ(k3 + dk3/dδ) = ρδ
    value, slope = stale_slope(terms.k1_times_ratio)
    torch.testing.assert_close(value, rho * d)
    torch.testing.assert_close(slope, rho * (d + 1))
    value, slope = stale_slope(terms.k3_with_score)
    torch.testing.assert_close(value, k3)  # the factor is 1 whatever the age of the sample
    torch.testing.assert_close(slope, d)
    value, slope = stale_slope(terms.k3_pulled_by_weighted_k2)
    torch.testing.assert_close(value, k3)
    torch.testing.assert_close(slope, rho * d)
    value, slope = stale_slope(terms.k3_pulled_by_k2)
    torch.testing.assert_close(slope, d)
    mean = rho.log().mean().exp()
    value, slope = stale_slope(terms.k3_times_mean_ratio)
    torch.testing.assert_close(value, mean * k3)
    torch.testing.assert_close(slope, mean * (1 - (-d).exp() + k3.sum() / 3))


def test_the_frozen_ratio_of_the_straight_through_term_stops_at_ten():
    logp = torch.tensor([[-1.0]], requires_grad=True)
    value = terms.k3_pulled_by_weighted_k2(
        logp, torch.tensor([[-3.0]]), torch.tensor([[-9.0]]), torch.ones(1, 1, dtype=torch.bool)
    )
    assert torch.autograd.grad(value.sum(), logp)[0].item() == pytest.approx(10 * 2.0)


def test_a_clamped_log_ratio_has_no_pull_even_if_a_small_ratio_keeps_the_product_below_the_cap():
    logp = torch.tensor([[-30.0]], requires_grad=True)
    value = terms.k3_with_sampler_ratio(
        logp, torch.tensor([[-55.0]]), torch.tensor([[-20.0]]), torch.ones(1, 1, dtype=torch.bool)
    )
    assert value.item() == pytest.approx(math.exp(-10) * (math.exp(-20) - 1 + 20))
    assert torch.autograd.grad(value.sum(), logp)[0].item() == 0


def test_the_mean_ratio_leaves_masked_positions_out():
    logp, then = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-2.0, -2.5, 0.0]])
    value = terms.k3_times_mean_ratio(logp, logp - 1, then, torch.tensor([[True, True, False]]))
    assert value[0, 0].item() == pytest.approx(math.exp(0.75) * math.exp(-1))


def test_monitors_compare_new_with_old_and_only_one_has_the_sign_of_the_ratio():
    d = STALE[0] - THEN
    expected = {
        terms.old_k1: -d,
        terms.old_k2: d.square() / 2,
        terms.old_k3: d.exp() - 1 - d,
        terms.old_k1_reversed: d,
    }
    assert set(expected) == set(OF_OLD)
    for term, value in expected.items():
        torch.testing.assert_close(stale_slope(term)[0], value)


def test_float32_overflow_gives_nan_where_a_clamp_comes_after_the_exponential():
    far = torch.tensor([-100.0])
    assert lib.slope(terms.k3_capped, far).isnan()  # 0 times infinity
    assert lib.slope(terms.k3_times_ratio, far).isnan()
    assert lib.slope(terms.k3, far) == -math.inf
    assert lib.slope(terms.k3_clamped, far) == lib.slope(terms.k3_floored, far) == 0
    assert lib.slope(terms.k3_pulled_by_k2, far) == -100


# --- labs ------------------------------------------------------------------------------------------------


def softmaxes(lab):
    """Next-token distributions of a lab of one action, straight from the logits; the policy's are leaves."""
    logits = lab.policy.logits.detach()[0, 0].clone().requires_grad_()
    return logits, logits.softmax(-1), lab.ref.logits.detach()[0, 0].softmax(-1)


def test_values_and_gradients_of_one_action_are_weighted_sums():
    lab = lib.far()
    logits, pi, ref = softmaxes(lab)
    a = lab.task.tokens[:, 0]  # which action each completion is
    ones = torch.ones(len(a), 1, dtype=torch.bool)
    for term in EVERY:
        now, then = (x.log()[a][:, None] for x in (pi, ref))
        value = term(now, then, now.detach(), ones)[:, 0]
        loss = pi[a].detach() @ value
        torch.testing.assert_close(lib.mean_value(term, lab), loss.detach())
        (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
        torch.testing.assert_close(lib.mean_gradient(term, lab), slope)
        cost = value.detach()
        (pull,) = torch.autograd.grad(pi[a] @ cost, logits, retain_graph=True)
        got = lib.mean_gradient(lib.in_reward(term), lab)
        torch.testing.assert_close(got, pull)


def per_prefix(lab, divergence):
    """Σ over prefixes of reach, held fixed, times a divergence of next-token distributions; its gradient."""
    probs = torch.tensor(lab.task.prompt_probs).double()[:, None]
    reach = exact.prefix_reach(lab.policy, lab.task).detach()

    def total(policy):
        now = exact.prefix_logps(policy, lab.task)
        then = exact.prefix_logps(lab.ref, lab.task).detach()
        return (probs * reach * divergence(now, then)).sum()

    return exact.gradient(total, lab.policy)


def reverse(now, then):
    return (now.exp() * (now - then)).sum(-1)


def forward(now, then):
    return (then.exp() * (then - now)).sum(-1)


def test_gradients_of_completions():
    lab = lib.completions()
    whole = exact.gradient(lambda p: exact.kl(p, lab.ref, lab.task), lab.policy)
    token = per_prefix(lab, reverse)
    torch.testing.assert_close(lib.mean_gradient(lib.in_reward(terms.k1), lab), whole)
    torch.testing.assert_close(lib.mean_gradient(terms.k3, lab), per_prefix(lab, forward))
    for term in (terms.k2, terms.k3_times_ratio, terms.k3_with_score, terms.k1_times_ratio):
        torch.testing.assert_close(lib.mean_gradient(term, lab), token)
    assert (token - whole).norm() > 0.1 * whole.norm()  # per token is not per completion
    assert lib.mean_gradient(terms.k3_times_mean_ratio, lab).sub(token).norm() > 1e-2 * token.norm()
    assert lib.mean_gradient(terms.k1, lab).norm() < 1e-12


def test_values_of_completions_sum_over_tokens():
    lab = lib.completions()
    distance = exact.kl(lab.policy, lab.ref, lab.task)
    for term in (terms.k1, terms.k3, terms.k3_times_ratio):
        torch.testing.assert_close(lib.mean_value(term, lab), distance.detach())


def test_a_cost_in_the_reward_is_answered_for_by_the_tokens_before_it():
    lab = lib.completions()
    logp, ref_logp = (exact.token_logps(p, lab.task).detach() for p in (lab.policy, lab.ref))
    mask = lab.task.mask
    for term in (terms.k2, terms.absolute, terms.k3_clamped):
        cost = torch.stack([term(a, b, a, mask) for a, b in zip(logp, ref_logp, strict=True)]).masked_fill(
            ~mask, 0
        )

        def objective(policy, cost=cost):
            score = exact.token_logps(policy, lab.task)
            before = score.cumsum(-1)  # a cost at t meets the score of all tokens up to t
            value = (cost * before).sum(-1)
            weights = logp.sum(-1).exp() * torch.tensor(lab.task.prompt_probs).double()[:, None]
            return (weights * value).sum()

        got = lib.mean_gradient(lib.in_reward(term), lab)
        torch.testing.assert_close(got, exact.gradient(objective, lab.policy))


def test_verdicts_tell_one_action_from_completions_and_the_reward_from_the_loss():
    expected = {
        (terms.k1, "loss", "token"): ("KL(π‖ref)", "0"),
        (terms.k1, "reward", "token"): ("KL(π‖ref)", "∇KL(π‖ref)"),
        (terms.k1, "reward", "action"): ("KL(π‖ref)", "∇KL(π‖ref)"),
        (terms.k2, "loss", "token"): ("½E[log²(π/ref)] per token", "∇KL(π‖ref) per token"),
        (terms.k2, "loss", "action"): ("½E[log²(π/ref)]", "∇KL(π‖ref)"),
        (terms.k3, "loss", "action"): ("KL(π‖ref)", "∇KL(ref‖π)"),
        (terms.k3, "reward", "action"): ("KL(π‖ref)", "∇(KL(π‖ref) - KL(ref‖π))"),
        (terms.k3_times_mean_ratio, "loss", "action"): ("KL(π‖ref)", "∇KL(π‖ref)"),
    }
    for (term, placement, level), (value, gradient) in expected.items():
        found = lib.verdict(term, placement, level)
        assert found.name == term.__name__
        assert found.gradient == gradient
        if placement == "loss":
            assert found.value == value
    assert lib.verdict(terms.k3, "reward").gradient.startswith("none of the known")
    assert lib.verdict(terms.k3_times_ratio, "loss", "action").stale_gradient == "∇KL(π‖ref)"
    assert lib.verdict(terms.k3) is lib.verdict(terms.k3)  # asked for once


def test_a_cost_of_stale_samples_meets_the_ratio_of_its_token():
    mask = torch.ones(1, 3, dtype=torch.bool)
    logp = STALE[0].clone().requires_grad_()
    loss = lib.in_reward(terms.k1)(logp, STALE[1], THEN, mask)
    cost = (THEN - STALE[1]).flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(loss.detach(), (STALE[0] - THEN).exp() * cost)
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(slope, (STALE[0] - THEN).exp() * cost)
    gaps = torch.tensor([[True, False, True]])
    held = lib.in_reward(terms.k1)(logp, STALE[1], THEN, gaps)
    assert held[0, 1] == 0
    tail = (THEN - STALE[1])[0, 2]
    assert held[0, 0].item() == pytest.approx(
        ((STALE[0] - THEN)[0, 0].exp() * (cost[0, 0] - cost[0, 1] + tail)).item()
    )


def test_no_clamp_acts_in_the_near_lab_and_both_sides_act_in_the_far_one():
    lab = lib.completions()
    ratio = (exact.token_logps(lab.policy, lab.task) - exact.token_logps(lab.ref, lab.task)).abs().max()
    assert ratio < 2.6
    lab = lib.far()
    ratio = (exact.seq_logp(lab.policy, lab.task) - exact.seq_logp(lab.ref, lab.task)).flatten()
    assert ratio.min() < -20
    assert ratio.max() > CAP_HIGH
    assert ((ratio > -20) & (ratio < CAP_LOW)).any()


def test_a_clamp_hides_the_missing_mass_and_lets_go_of_the_tokens_that_moved_most():
    lab = lib.far()
    pi, ref = [0.01, 1e-10, 0.49 - 1e-10, 0.5], [0.5, 0.1, 0.4 - 1e-6, 1e-6]
    d = [math.log(p / q) for p, q in zip(pi, ref, strict=True)]
    held = [10.0, 10.0, three(d[2]), 10.0]
    assert lib.mean_value(terms.k3_clamped, lab).item() == pytest.approx(
        sum(p * x for p, x in zip(pi, held, strict=True))
    )
    assert lib.mean_value(terms.k3, lab).item() == pytest.approx(
        sum(p * x for p, x in zip(pi, d, strict=True))
    )
    pull = lib.mean_gradient(terms.k3_clamped, lab)
    alone = pi[2] * (1 - math.exp(-d[2]))  # only action 2 still has a gradient
    expected = torch.tensor([alone * ((i == 2) - p) for i, p in enumerate(pi)])
    torch.testing.assert_close(pull, expected.double())
    true = lib.mean_gradient(terms.k3, lab)
    assert pull @ true < 0  # the clamped loss moves the policy the wrong way


# --- rows ------------------------------------------------------------------------------------------------


def test_rows_are_complete_and_unlike():
    assert len({library.what for library in lib.LIBRARIES}) == len(lib.LIBRARIES) >= 12
    for library in lib.LIBRARIES:
        assert date.fromisoformat(library.date)
        assert library.repository.startswith("https://github.com/")
        assert library.source
        for place in library.source:
            assert re.fullmatch(r"`[\w/]+\.py(::[\w.]+)?`( \((reward|loss|monitors)\))?", place), place
        for name in ("monitors", "in_reward", "in_loss", "clamps", "controller", "verified"):
            text = getattr(library, name)
            assert text.endswith(".")
            assert text.count("`") % 2 == 0, text
        assert re.fullmatch(r"\d+\.\d+\.\d+|commit [0-9a-f]{8}", library.version)


@pytest.mark.parametrize("library", lib.LIBRARIES, ids=lambda row: row.what)
def test_the_terms_of_a_row_stand_where_its_text_says(library):
    for where, text in (("reward", library.in_reward), ("loss", library.in_loss)):
        here = [use for use in library.uses if use.where == where]
        assert bool(here) == (not text.startswith("None"))
        assert sum(use.default for use in here) == bool(here)
        assert len({use.option for use in here}) == len(here)
    assert not any(use.default for use in library.uses if use.where == "monitor")
    assert all((use.term in OF_OLD) == (use.where == "monitor") for use in library.uses)
    clamped = any(use.term in terms.UNCLAMPED for use in library.uses)
    assert clamped == (not library.clamps.startswith("None"))


@pytest.mark.parametrize("library", lib.LIBRARIES, ids=lambda row: row.what)
def test_an_option_is_spelt_as_in_the_text_of_its_placement(library):
    texts = {"reward": library.in_reward, "loss": library.in_loss, "monitor": library.monitors}
    for use in library.uses:
        for piece in re.findall(r"`([^`]+)`", use.option):
            words = set(re.findall(r"[\w/-]+", piece)) - {"True", "False"}
            assert all(word in texts[use.where] for word in words), use


def test_every_term_is_used_by_a_library():
    assert {use.term for library in lib.LIBRARIES for use in library.uses} == set(EVERY)


# --- page ------------------------------------------------------------------------------------------------


def test_a_table_has_one_dated_row_a_library_and_a_heading_for_every_cell():
    page = lib.matrix({"In the loss": "in_loss", "Monitors": "monitors"})
    assert page.count("<tr data-as-of=") == len(lib.LIBRARIES)
    assert page.count('<td data-label="In the loss">') == len(lib.LIBRARIES)
    for library in lib.LIBRARIES:
        assert f'data-as-of="{library.date}" data-what="{library.what}" data-mark="short"' in page
    assert page.startswith('<table class="library-matrix">')
    assert "`" not in page
    assert 'data-mark="full"' in lib.matrix({"Version": "version"}, mark="full")
    assert "https://" not in page
    assert page.count("<th ") == 3 + len(lib.LIBRARIES)


def test_libraries_that_have_none_of_it_stand_in_one_line_with_their_dates():
    page = lib.matrix({"In the loss": "in_loss"})
    table, line = page.split("</table>")
    for library in lib.LIBRARIES:
        dated = f'data-as-of="{library.date}" data-what="{library.what}"'
        assert (dated in line) == (library.in_loss == "None.")
        assert (dated in table) == (library.in_loss != "None.")
    assert line.startswith('<p class="library-none">None: <span data-as-of=')
    assert lib.matrix({"Read": "verified"}).endswith("</table>")


def test_only_the_table_of_versions_links():
    page = lib.matrix({"Read": "verified"}, mark="full")
    assert page.count("<a href=") == len(lib.LIBRARIES)


def test_text_is_escaped_and_code_may_break():
    page = lib.measured([{"a < b": "`x<y.z=0.1` & **", 'c"': "d"}])
    assert "<code>x&lt;y.<wbr>z=<wbr>0.1</code> &amp; **" in page
    assert '<th scope="col">a &lt; b</th><th scope="col">c"</th>' in page
    assert 'data-label="c&quot;"' in page


def test_the_printed_source_is_that_of_the_function():
    assert lib.source(terms.k3) == (
        "def k3(logp, ref_logp, old_logp, mask):\n"
        "    log_ratio = logp - ref_logp\n"
        "    return torch.exp(-log_ratio) - 1 + log_ratio"
    )
    for term in EVERY:
        lines = lib.source(term).splitlines()
        assert len(lines) <= 10
        assert max(map(len, lines)) <= 80
    assert lib.source(terms.k1, terms.k2).count("\n\ndef ") == 1


def test_users_name_the_setting_and_the_default():
    assert lib.users(terms.k3_with_score, "loss") == ('NeMo-RL: `reference_policy_kl_type="k3"` (default)')
    assert lib.users(terms.k3_with_score, "reward") == ""
    assert "verl" in lib.users(terms.k3_clamped, "loss")
    assert "SkyRL" in lib.users(terms.k3_clamped, "loss")
