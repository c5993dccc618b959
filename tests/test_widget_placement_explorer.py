"""PlacementExplorer: the browser has the package's numbers, hands move it, and what it says is true."""

import itertools
import json
import math
import random
import re
from types import SimpleNamespace

import pytest
import torch
from widget_page import WidgetPage, parse

from kltutor import TabularPolicy, atlas, exact, k1, k2, k3, kl, ppo_clip_loss, tasks
from kltutor.widgets import PlacementExplorer
from kltutor.widgets.base import HERE, StateError
from kltutor.widgets.placement_explorer import GRID, NAMES, TOKENS

ROUNDING = {"angle": (1e-6, 1e-5)}  # near 0 and 180 degrees it is what rounding left of two gradients
PLACES = list(itertools.product(("loss", "reward"), ("none", "stopgrad", "differentiable"), (0.0, 0.5)))


def distribution(rng, n):
    """Probabilities of n tokens, none below one in fifty."""
    raw = [rng.random() ** 2 + 0.03 for _ in range(n)]
    return [0.02 + (1 - 0.02 * n) * p / math.fsum(raw) for p in raw]


def random_state(rng):
    """Any state: two to four tokens, fresh and stale, every placement, the ends of the tracks."""
    n = rng.randint(2, 4)
    policy, at = distribution(rng, n), rng.randrange(n)
    least = math.log(policy[at] / 0.99)
    return {
        "policy": policy,
        "ref": policy if rng.random() < 0.05 else distribution(rng, n),
        "token": TOKENS[at],
        "place": rng.choice(["loss", "reward"]),
        "correction": rng.choice(["none", "stopgrad", "differentiable"]),
        "log_rho": rng.choice([0.0, 1.5, max(-1.5, least), rng.uniform(max(-1.5, least), 1.5)]),
        "clamp": rng.choice([5.0, 0.5, rng.uniform(0.5, 3.0)]),
        "advantage": rng.choice([0.0, -2.0, 2.0, rng.uniform(-2, 2)]),
        "beta": rng.choice([0.0, 1.0, rng.random()]),
        "clip_eps": rng.choice([0.05, 0.5, rng.uniform(0.05, 0.5)]),
        **{f"show_{name}": rng.random() < 0.7 for name in NAMES},
    }


def states(count, seed=0):
    rng = random.Random(seed)
    return [random_state(rng) for _ in range(count)]


def as_state(**values):
    """The first state with some values changed, as a page holds it."""
    return json.loads(json.dumps(PlacementExplorer(**values).state))


def solved(**values):
    """State and numbers of a widget as one thing, computed once."""
    w = PlacementExplorer(**values)
    return SimpleNamespace(**w.state, **w.numbers)


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    page = WidgetPage(chromium, PlacementExplorer(), tmp_path_factory.mktemp("page"))
    yield page
    page.close()


def test_browser_and_package_have_the_same_numbers(page):
    page.agrees(states(240), loose=ROUNDING)


def test_every_number_written_is_one_of_them(page):
    page.shows(states(40, seed=1))
    page.set(as_state())


def test_a_drag_along_the_axis_moves_one_token_and_chooses_it(page):
    page.set(as_state())
    scale = page.page.evaluate("document.querySelector('.kl-chart').getScreenCTM().a")
    page.drag("log-ratio of ho", 28.8 * scale, 0)  # the axis has ten nats on 288
    state = page.state
    assert state["token"] == "ho"
    assert math.log(state["policy"][1] / 0.4) == pytest.approx(math.log(0.3 / 0.4) + 1, abs=0.06)
    assert sum(state["policy"]) == pytest.approx(1, abs=1e-12)
    assert state["policy"][0] / state["policy"][2] == pytest.approx(6)  # the others keep their odds
    page.drag("log-ratio of ho", 900, 0)
    assert min(page.state["policy"]) == pytest.approx(0.01)  # and none is lost
    assert page.python(page.state)["log_ratio"] < 5


def test_a_press_alone_chooses_a_token(page):
    page.set(as_state())
    page.grip("log-ratio of hi").click()
    assert page.state == as_state(token="hi")
    page.press("log-ratio of ho", "Enter")
    assert page.state == as_state(token="ho")


def test_probabilities_are_dragged_on_their_logarithm(page):
    page.set(as_state())
    page.press("reference probability of ha", "ArrowUp", "ArrowUp")
    assert page.state["ref"][0] == pytest.approx(0.1 * math.exp(0.04), rel=0.011)
    assert sum(page.state["ref"]) == pytest.approx(1, abs=1e-12)
    page.press("policy probability of hi", "Home")
    assert page.state["policy"][2] == pytest.approx(0.01, rel=0.01)
    assert page.grip("policy probability of hi").get_attribute("aria-valuetext") == "0.010"


def test_old_stays_a_distribution_whatever_is_dragged(page):
    page.set(as_state(log_rho=-0.5))
    page.press("policy probability of ha", "End")
    assert page.state["log_rho"] == pytest.approx(math.log(page.state["policy"][0] / 0.99))
    assert page.python(page.state)["old"][0] == pytest.approx(0.99)
    page.press("log ρ of the token [nats]", "Home")
    assert page.python(page.state)["old"][0] < 1
    page.set(as_state(log_rho=-1.5, token="hi"))
    page.press("log-ratio of ha", "Enter")  # the same ρ would give it an old probability of 2.7
    assert page.python(page.state)["old"][0] == pytest.approx(0.99)


def test_the_clamp_and_the_clip_are_dragged_by_their_edges(page):
    page.set(as_state())
    page.press("clamp of the log-ratio", "PageDown", "ArrowLeft")
    assert page.state["clamp"] == pytest.approx(4.45)
    page.press("clamp of the log-ratio", "End")
    page.press("half width ε of the clip", "ArrowRight")
    assert page.state == as_state(clip_eps=0.21)
    page.drag("clamp of the log-ratio", -900, 0)
    assert page.state["clamp"] == 5  # on the other side of zero the same edge
    scale = page.page.evaluate("document.querySelector('.kl-chart').getScreenCTM().a")
    page.drag("clamp of the log-ratio", -100.8 * scale, 0)
    assert page.state["clamp"] == pytest.approx(1.5, abs=0.051)


def test_the_point_moves_in_both_directions(page):
    page.set(as_state())
    scale = page.page.evaluate("document.querySelectorAll('.kl-chart')[2].getScreenCTM().a")
    page.drag("advantage from the score", 38.4 * scale, 55 * scale)  # 3 nats on 288, 4 rewards on 220
    assert page.state["log_rho"] == pytest.approx(0.4, abs=0.051)
    assert page.state["advantage"] == pytest.approx(0, abs=0.051)
    before = page.state["log_rho"]
    page.press("advantage from the score", "ArrowUp", "PageUp")
    assert page.state["log_rho"] == before  # keys move one of the two


def test_the_choices_are_native_and_named(page):
    page.set(as_state())
    page.page.get_by_role("radio", name="in the reward").check()
    page.page.get_by_role("radio", name="differentiated").check()
    page.page.get_by_role("checkbox", name="k₂").uncheck()
    assert page.state == as_state(place="reward", correction="differentiable", show_k2=False)
    assert page.page.locator(".kl-line.kl-k2").first.is_hidden()
    for n in (4, 2):
        page.page.get_by_role("radio", name=str(n), exact=True).check()
        assert len(page.state["policy"]) == n == len(page.python(page.state)["old"])
        assert page.page.get_by_role("slider", name=re.compile("log-ratio of")).count() == n


def test_the_table_holds_what_the_picture_shows(page):
    page.set(as_state())
    page.page.get_by_text("The numbers as a table").click()
    page.page.locator(".kl-table tbody tr").first.wait_for()
    rows = page.page.locator(".kl-table tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.children].map(c => c.textContent))"
    )
    rows = [[name, *(parse(text) for text in rest)] for name, *rest in rows]
    w = solved()
    assert [row[0] for row in rows] == ["ha", "ho", "hi"]
    for i, (_, policy, ref, old, log_ratio, *rest) in enumerate(rows):
        assert [policy, ref, old] == pytest.approx([w.policy[i], w.ref[i], w.old[i]])
        assert log_ratio == pytest.approx(w.log_ratios[i], abs=5.1e-5)
        assert rest[:3] == pytest.approx([row[i] for row in w.weights], abs=5.1e-5)
        assert rest[4:6] == pytest.approx([row[i] for row in w.gradient[1:]], abs=5.1e-5)
        assert rest[6] == pytest.approx(w.true_gradient[i], abs=5.1e-5)
    page.page.get_by_text("The numbers as a table").click()


def test_the_mean_gradients_are_named_as_the_atlas_names_them(page):
    policy, ref = (0.5, 0.25, 0.2, 0.05), (0.1, 0.2, 0.3, 0.4)
    for place, correction, log_rho in PLACES:
        state = as_state(policy=policy, ref=ref, place=place, correction=correction, log_rho=log_rho)
        page.set(state)
        said = page.page.locator("[data-field]").all_text_contents()
        w = solved(**state)
        task = tasks.bandit((0.0,) * 4)
        models = [
            TabularPolicy(task, torch.tensor(p, dtype=torch.float64)[None, None].log())
            for p in (w.policy, w.ref, w.old)
        ]
        known = atlas.landmarks(*models, task)
        half = {"∇½E[log²]": known["½E[log²] of the sequence"]}
        half["∇½E[log²] − ∇KL(π‖ref)"] = half["∇½E[log²]"] - known["KL(π‖ref)"]
        for name, mean in zip(said, torch.tensor(w.gradient, dtype=torch.float64), strict=True):
            if name in half:
                assert torch.allclose(mean, half[name])
                continue
            found = atlas.name_gradient(mean, *models, task).removesuffix(" of the sequence")
            wanted = name.replace("−", "-").replace("- ∇", "- ")
            ours = found if name != "none of a KL" else found[:10].replace("none known", "none of a KL")
            assert ours.replace(" - ∇", " - ") == wanted, (place, correction, log_rho)
    page.set(as_state(clamp=0.5))
    assert set(page.page.locator("[data-field]").all_text_contents()) == {"cut by the clamp"}


def test_the_formulas_written_are_the_weights(page):
    for place, correction, log_rho in PLACES:
        for clamp in (5.0, 1.0):
            state = as_state(place=place, correction=correction, log_rho=log_rho, clamp=clamp)
            page.set(state)
            w = solved(**state)
            for k, text in enumerate(page.page.locator("[data-formula]").all_inner_texts()):
                said, _, cut = text.partition(", ")
                if text == "clamped":
                    assert clamp == 1
                    assert w.weight[k] == 0
                    continue
                assert bool(cut) == (clamp == 1)
                if cut and correction == "differentiable" and place == "loss":
                    continue  # the formula's slope is gone: the number beside it is what is left
                d, e = min(w.log_ratio, clamp), math.exp(-min(w.log_ratio, clamp))
                python = said.replace("\n", "").replace("e−δ", "e").replace("−", "-").replace("½", ".5*")
                python = python.replace("δ²", "d**2").replace("δ", "d").replace("ρ", "r")
                python = re.sub(r"(?<=[rd)]) (?=[.rde(])", "*", python).replace(".5* ", ".5*")
                assert eval(python, {"r": w.rho, "d": d, "e": e}) == pytest.approx(w.weight[k]), text


def test_an_experiment_sets_its_state_up_and_is_drawn(page):
    shown = set()
    for i in range(3):
        page.page.locator(".kl-try button").nth(i).click()
        shown.add(page.page.locator(".kl-formula").first.text_content())
        assert "ha: δ" in page.page.locator(".kl-formula p").first.text_content()
    assert len(shown) == 3
    assert page.state == as_state(log_rho=0.4)


def test_a_redraw_is_quick(page, record_property):
    rng = random.Random(2)
    moves = [
        {"policy": distribution(rng, 3), "log_rho": rng.uniform(0, 1), "clamp": rng.uniform(1, 5)}
        for _ in range(200)
    ]
    page.set(as_state())
    taken = sorted(page.times(moves))
    record_property("redraw_ms_95", taken[189])
    print(f"redraw: median {taken[100]:.2f} ms, 95th percentile {taken[189]:.2f} ms")


# ---- against sums over all tokens ------------------------------------------------------------------------


def test_the_mean_gradients_are_those_of_the_atlas():
    rng = random.Random(3)
    for place, correction, log_rho in PLACES:
        policy, ref = distribution(rng, 3), distribution(rng, 3)
        w = solved(policy=policy, ref=ref, place=place, correction=correction, log_rho=log_rho, token="ho")
        task = tasks.bandit((0.0,) * 3)
        models = [
            TabularPolicy(task, torch.tensor(p, dtype=torch.float64)[None, None].log())
            for p in (policy, ref, w.old)
        ]
        for name, ours in zip(NAMES, w.gradient, strict=True):
            kind = atlas.Placement(name, place, "sequence", "stale", correction)
            theirs = atlas.field(kind, *models, task).mean
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs)
        true = exact.gradient(lambda p, models=models, task=task: exact.kl(p, models[1], task), models[0])
        torch.testing.assert_close(torch.tensor(w.true_gradient, dtype=torch.float64), true)


def test_weights_give_the_mean_gradients_and_the_true_one_the_true():
    for state in states(60, seed=4):
        w = solved(**state)
        policy, old = torch.tensor(w.policy, dtype=torch.float64), torch.tensor(w.old, dtype=torch.float64)
        score = torch.eye(len(policy), dtype=torch.float64) - policy  # ∇log π of each token, in rows
        own = torch.tensor(w.log_ratios, dtype=torch.float64) * policy / old
        for weights, mean in [*zip(w.weights, w.gradient, strict=True), (own, w.true_gradient)]:
            found = (old * torch.as_tensor(weights, dtype=torch.float64)) @ score
            assert found.tolist() == pytest.approx(mean, abs=1e-12)
        at = TOKENS.index(w.token)
        assert w.true_weight == pytest.approx(own[at].item())
        assert w.kl == pytest.approx(kl(policy.log(), torch.tensor(w.ref, dtype=torch.float64).log()).item())


def test_old_is_a_distribution_with_the_ratio_it_was_given():
    for state in states(60, seed=5):
        w = solved(**state)
        at = TOKENS.index(w.token)
        assert sum(w.old) == pytest.approx(1)
        assert math.log(w.policy[at] / w.old[at]) == pytest.approx(w.log_rho) == math.log(w.rho)
        ratios = [p / q for i, (p, q) in enumerate(zip(w.policy, w.old, strict=True)) if i != at]
        assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_curves_are_difference_quotients_of_the_losses():
    step = 1e-6
    base = torch.full_like(GRID, -8.0)
    estimate = {"k1": k1, "k2": k2, "k3": k3}

    def loss(name, log_ratio, moved, w):
        """The loss of a row at log-ratio + moved, with what a trainer holds fixed held fixed."""
        value = estimate[name](base + (log_ratio + moved).clamp(-w.clamp, w.clamp), base)
        if w.place == "reward":
            fixed = estimate[name](base + log_ratio.clamp(-w.clamp, w.clamp), base)
            return fixed * moved * (1 if w.correction == "none" else w.rho)
        return value * {"none": 1, "stopgrad": w.rho, "differentiable": w.rho * math.exp(moved)}[w.correction]

    for place, correction, log_rho in PLACES:
        w = solved(place=place, correction=correction, log_rho=log_rho, clamp=2.01)
        for name, curve in zip(NAMES, w.curve, strict=True):
            up, down = (loss(name, GRID, sign * step, w) for sign in (1, -1))
            assert ((up - down) / (2 * step)).tolist() == pytest.approx(curve, rel=1e-5, abs=1e-6)
        assert w.true_curve == pytest.approx((w.rho * GRID).tolist())


def test_pushes_are_those_of_the_two_losses():
    for state in states(60, seed=6):
        w = solved(**state)
        at = TOKENS.index(w.token)
        logp, old, ref = (
            torch.tensor([[p[at]]], dtype=torch.float64).log() for p in (w.policy, w.old, w.ref)
        )
        mask, logp = torch.tensor([[True]]), logp.requires_grad_()
        score = torch.tensor([[w.advantage]], dtype=torch.float64)
        clipped = ppo_clip_loss(logp, old, score, mask, w.clip_eps)
        (slope,) = torch.autograd.grad(clipped + w.beta * k3(logp, ref).sum(), logp)
        assert w.push_loss == pytest.approx(-slope.item(), abs=1e-12)
        net = score - w.beta * (logp - ref).detach()
        (slope,) = torch.autograd.grad(ppo_clip_loss(logp, old, net, mask, w.clip_eps), logp)
        assert w.push_reward == pytest.approx(-slope.item(), abs=1e-12)
        outward = (w.rho > 1 + w.clip_eps and w.net > 0) or (w.rho < 1 - w.clip_eps and w.net < 0)
        assert (w.push_reward == 0) == (outward or w.net == 0)


# ---- what the experiments say --------------------------------------------------------------------------

FIRST = {"policy": (0.25, 0.74, 0.01), "ref": (0.02, 0.25, 0.73)}
SECOND = {"policy": (0.57, 0.04, 0.39), "ref": (0.08, 0.6, 0.32), "clamp": 1.5}


def test_the_first_experiment_is_true():
    w = solved(**FIRST)
    assert [round(d, 1) for d in w.log_ratios] == [2.5, 1.1, -4.3]
    assert (round(w.weight[2], 2), round(w.true_weight, 2)) == (0.92, 2.53)
    assert w.weights[2][2] == pytest.approx(-72)
    assert round(w.angle[2]) == 91
    ref, logits = (torch.tensor(p, dtype=torch.float64).log() for p in (w.ref, w.policy))
    after = (logits - 0.01 * torch.tensor(w.gradient[2], dtype=torch.float64)).log_softmax(-1)
    assert kl(after, ref).item() > w.kl  # a step of k3
    assert kl((logits - 0.01 * torch.tensor(w.true_gradient)).log_softmax(-1), ref).item() < w.kl
    w = solved(**FIRST, place="reward")
    assert all(weight > 0 for weight in w.weights[2])
    assert round(max(w.weights[2]), 1) == 67.7 == round(w.weights[2][2], 1)
    assert min(w.curve[2]) == 0


def test_the_second_experiment_is_true():
    w = solved(**SECOND)
    assert [round(d, 1) for d in w.log_ratios] == [2.0, -2.7, 0.2]
    assert [row[:2] for row in w.weights] == [[0, 0]] * 3
    assert w.gradient[1][0] < 0 < w.gradient[1][2]  # ha goes up, hi down
    assert w.true_gradient[0] > 0 > w.true_gradient[2]
    assert round(w.angle[1]) == 159
    w = solved(**SECOND, place="reward")
    assert w.weight[0] == 1.5
    assert round(w.angle[0], 1) == 2.4


def test_the_third_experiment_is_true():
    w = PlacementExplorer(log_rho=0.4)
    assert (round(w.rho, 1), round(w.log_ratio, 1)) == (1.5, 1.8)
    assert w.net > 0
    assert w.push_reward == 0 == w.push_score
    assert round(w.push_loss, 2) == -0.25
    assert round(w.beta * w.log_ratio, 2) == 0.54
    w.advantage = 0.4
    assert round(w.push_reward, 2) == -0.21
    w.beta = 0.0
    assert w.push_reward == 0


def test_the_experiments_say_the_numbers_that_were_checked():
    text = (HERE / "placement_explorer.js").read_text(encoding="utf-8")
    said = re.sub(r'" \+\s+"', "", text[text.index("const TRY") : text.index("const out")])
    for words in (
        "2.5 nats too high",
        "with 0.92 where 2.53",
        "4.3 nats too low: −72 for −4.3",
        "91° off: it makes KL(π‖ref) larger",
        "with 67.7",
        "policy: [0.25, 0.74, 0.01], ref: [0.02, 0.25, 0.73]",
        "2.0 nats too high and <i>ho</i> 2.7 too low",
        "159° off",
        "weighs 1.5 on <i>ha</i> and is 2.4° off",
        "policy: [0.57, 0.04, 0.39], ref: [0.08, 0.6, 0.32], clamp: 1.5",
        "1.5 times as likely and stands 1.8 nats",
        "pulls with −0.25",
        "<i>A</i> = 0.4, below βδ = 0.54: now PPO pulls with −0.21",
        "log_rho: 0.4",
    ):
        assert words in said, words


# ---- Python alone --------------------------------------------------------------------------------------


def test_where_policy_and_reference_agree_there_is_no_direction():
    w = PlacementExplorer(policy=(0.5, 0.3, 0.2), ref=(0.5, 0.3, 0.2))
    assert all(math.isnan(angle) for angle in w.angle)
    assert all(math.isnan(length) for length in w.length)
    assert PlacementExplorer().length[0] == 0
    assert math.isnan(PlacementExplorer().angle[0])


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"policy": [0.5, 0.5]}, "lengths are"),
        ({"policy": [0.2] * 5, "ref": [0.2] * 5}, "equal ones from 2 to 4"),
        ({"policy": [0.5, 0.4, 0.05]}, "policy sums to 0.95"),
        ({"ref": [0.5, 0.499, 0.001]}, r"ref\[2\] is 0.001"),
        ({"token": "hm"}, "token is 'hm'; here one of ha, ho, hi"),
        ({"token": "he"}, "token is 'he'"),
        ({"log_rho": -0.6}, "the old probability of ha would be 1.093"),
        ({"clamp": 0.0}, "clamp is 0.0; a number from 0.5 to 5"),
        ({"clip_eps": math.nan}, "clip_eps is nan"),
        ({"place": "both"}, "place is 'both'"),
        ({"correction": "ratio"}, "correction is 'ratio'"),
        ({"show_k1": 1}, "True or False"),
    ],
)
def test_an_impossible_state_is_an_error_that_names_it(state, says):
    with pytest.raises(StateError, match=says):
        PlacementExplorer(**state)
