"""EstimatorPlayground: one stream of draws in two languages, exact numbers, and surprises that are true."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from widget_page import WidgetPage

from kltutor import gaussian_moments
from kltutor.widgets import EstimatorPlayground
from kltutor.widgets.base import HERE, StateError

DEFAULT = EstimatorPlayground().state
# Each is near a point where a curve has no slope: an ulp there moves a root by 1e-8.
LOOSE = {"density": (1e-6, 2e-7), "same_kl": (1e-6, 1e-6)}


def random_state(rng):
    """Any state: what hands can reach and what only code can, bounds, equal means, equal sds, both equal."""

    def real(low, high, step):
        return rng.choice(
            [
                low,
                high,
                *(round(rng.uniform(low, high) / step) * step for _ in range(6)),
                rng.uniform(low, high),
            ]
        )

    state = {
        "policy_mean": real(-3, 3, 0.05),
        "policy_sd": real(0.4, 2.5, 0.05),
        "ref_mean": real(-3, 3, 0.05),
        "ref_sd": real(0.4, 2.5, 0.05),
        "n": rng.choice([10, 10_000, *(round(10 ** rng.uniform(1, 4)) for _ in range(8))]),
        "seed": rng.choice([0, 9999, *(rng.randint(0, 9999) for _ in range(8))]),
    }
    if rng.random() < 0.2:
        state["ref_mean"] = state["policy_mean"]
    if rng.random() < 0.3:
        state["ref_sd"] = state["policy_sd"]
    return state


def states(count, seed=0):
    rng = random.Random(seed)
    return [random_state(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    page = WidgetPage(chromium, EstimatorPlayground(), tmp_path_factory.mktemp("page"))
    yield page
    page.close()


def test_browser_and_package_have_the_same_numbers(page):
    page.agrees(states(240), loose=LOOSE)


def test_browser_and_package_agree_beside_the_policy_and_at_the_limit_of_k3(page):
    near = [
        DEFAULT | {"ref_mean": shift, "ref_sd": sd}
        for shift in (0.0, 1e-3, 0.05)
        for sd in (1.0, 1.001, 0.95)
    ]
    limit = [
        DEFAULT | {"ref_mean": shift, "ref_sd": sd}
        for shift in (0.0, 1.0, 3.0)
        for sd in (1.41, 1.4142, math.sqrt(2), 1.42)
    ]
    # the variance of k3 is a difference of numbers that are 1e6 times as large
    page.agrees(
        near + limit,
        loose=LOOSE | dict.fromkeys(("variance", "sd", "standard_error", "draws_needed"), (1e-6, 1e-10)),
    )


def test_every_number_written_is_one_of_them(page):
    page.shows(states(40, seed=1))
    page.set(DEFAULT)


# ---- the draws -----------------------------------------------------------------------------------------


def test_the_draws_in_the_browser_are_those_of_numpy(page):
    asked = [DEFAULT | {"seed": seed, "n": 100} for seed in (0, 1, 7, 1234, 9999)]
    for state, numbers in zip(asked, page.compute(asked), strict=True):
        truth = np.random.RandomState(state["seed"]).standard_normal(100)
        assert numbers["draws"] == pytest.approx(truth.tolist(), rel=1e-12, abs=1e-14)


def test_the_whole_of_a_long_batch_is_that_of_numpy(page):
    """Ten thousand draws take 25,000 words, forty turns of the twister; one wrong bit moves the mean."""
    asked = [DEFAULT | {"seed": seed, "n": 10_000} for seed in (3, 4242)]
    for state, numbers in zip(asked, page.compute(asked), strict=True):
        truth = np.random.RandomState(state["seed"]).standard_normal(10_000)
        assert numbers["sample_mean"][0] == pytest.approx(0.5 - truth.mean(), abs=1e-12)
        assert numbers["largest"][0] == pytest.approx(0.5 - truth.min(), abs=1e-12)


def test_more_draws_continue_the_same_stream(page):
    few, many = page.compute([DEFAULT | {"n": 64}, DEFAULT | {"n": 6400}])
    for short, long in zip(few["running"], many["running"], strict=True):
        assert short[:-1] == pytest.approx(long[: len(short) - 1], abs=1e-12)


def test_drawing_again_takes_the_next_seed_and_a_seed_can_be_typed(page):
    page.set(DEFAULT)
    before = page.compute([page.state])[0]["sample_mean"]
    page.page.get_by_role("button", name="Draw again").click()
    assert page.state["seed"] == 8
    assert page.compute([page.state])[0]["sample_mean"] != before
    box = page.page.get_by_label("seed", exact=True)
    for typed, taken in (("39", 39), ("70000", 9999), ("2.6", 3), ("", 0), ("-4", 0)):
        box.fill(typed)
        box.press("Enter")
        assert page.state["seed"] == taken
        assert box.input_value() == str(taken)
    page.set(DEFAULT | {"seed": 9999})
    page.page.get_by_role("button", name="Draw again").click()
    assert page.state["seed"] == 0


# ---- hands and keys ------------------------------------------------------------------------------------


def test_keys_move_each_handle_and_stop_at_its_bounds(page):
    page.set(DEFAULT)
    page.press("mean of the reference", "ArrowRight", "ArrowUp")
    assert page.state["ref_mean"] == pytest.approx(1.1)
    page.press("mean of the policy", "ArrowLeft", "PageDown")
    assert page.state["policy_mean"] == pytest.approx(-0.55)
    page.press("sd of the policy", "End", "ArrowRight")
    assert page.state["policy_sd"] == 2.5
    page.press("sd of the reference", "Home")
    assert page.state["ref_sd"] == 0.4
    assert page.grip("sd of the reference").get_attribute("aria-valuetext") == "sd 0.40"


def test_the_slider_of_n_takes_whole_numbers_over_its_track(page):
    label = "draws in the batch, n (logarithmic)"
    page.press(label, "Home")
    assert page.state["n"] == 10
    page.press(label, "End")
    assert page.state["n"] == 10_000
    page.press(label, "Home", *["ArrowRight"] * 5)
    assert page.state["n"] in (12, 13)


def test_a_drag_moves_a_curve_by_what_the_hand_moves(page):
    page.set(DEFAULT)
    scale = page.page.evaluate("document.querySelector('.kl-chart').getScreenCTM().a")
    page.drag("mean of the reference", 48 * scale, 10)  # 24 a unit
    assert page.state["ref_mean"] == pytest.approx(3.0)
    page.drag("sd of the policy", 12 * scale, 0)
    assert page.state["policy_sd"] == pytest.approx(1.5)
    page.drag("sd of the policy", -300, 0)
    assert page.state == DEFAULT | {"ref_mean": 3.0, "policy_sd": 0.4}


def test_the_reference_can_be_dragged_on_the_map(page):
    page.set(DEFAULT | {"policy_mean": 0.5, "policy_sd": 0.5})
    spot = page.page.locator("g.kl-draggable:not(.kl-handle)")
    scale = page.page.evaluate("document.querySelectorAll('.kl-chart')[2].getScreenCTM().a")
    page.drag(spot, 48 * scale, 78.4 * scale)  # a shift of one and a width of one less
    assert page.state["ref_mean"] == pytest.approx(1.5, abs=0.03)
    assert page.state["ref_sd"] == pytest.approx(0.5, abs=0.03)
    page.drag(spot, 900, 900)
    assert page.state["ref_sd"] == 0.4


def test_the_table_holds_what_the_picture_shows(page):
    page.set(DEFAULT)
    page.page.get_by_text("The numbers as a table").click()
    page.page.wait_for_selector(".kl-scroll tbody tr")
    rows = page.page.locator(".kl-scroll tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.children].map(c => c.textContent))"
    )
    w = EstimatorPlayground()
    names = (
        "mean",
        "bias",
        "sd",
        "draws_needed",
        "sample_mean",
        "standard_error",
        "sample_sd",
        "largest",
        "variance",
    )
    assert len(rows) == len(names)
    for (_, *cells), name in zip(rows, names, strict=True):
        assert [float(cell.replace("−", "-")) for cell in cells] == pytest.approx(w.numbers[name], abs=5.1e-5)
    page.page.get_by_text("The numbers as a table").click()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"ref_mean": 0.0}, "The two agree"),
        ({"ref_mean": 1.0}, "k₃ is the quieter one: the sd of k₁ is 1.18 times"),
        ({"ref_mean": 1.2}, "k₁ is the quieter one: the sd of k₃ is 1.11 times"),
        ({"ref_mean": 0.0, "ref_sd": 1.45}, "infinite variance"),
        ({"policy_mean": -3.0, "policy_sd": 0.4, "ref_mean": 3.0, "ref_sd": 0.56}, "finite, but above 10³⁰⁸"),
    ],
)
def test_the_verdict_is_that_of_the_numbers(page, state, says):
    page.set(DEFAULT | state)
    assert says in page.page.locator(".kl-ep-verdict").text_content()
    _, _, third = EstimatorPlayground(**state).sd
    assert (third == math.inf) == ("k₁" not in says and "agree" not in says)


def test_a_redraw_is_quick(page, record_property):
    rng = random.Random(2)
    moves = [{"ref_mean": rng.uniform(-3, 3), "ref_sd": rng.uniform(0.4, 2.5)} for _ in range(200)]
    page.set(DEFAULT | {"n": 10_000})
    taken = sorted(page.times(moves))
    record_property("redraw_ms_95", taken[189])
    print(f"redraw, n = 10,000: median {taken[100]:.2f} ms, 95th percentile {taken[189]:.2f} ms")
    page.set(DEFAULT)


# ---- what the experiments say --------------------------------------------------------------------------


def said():
    text = (HERE / "estimator_playground.js").read_text(encoding="utf-8")
    return text[text.index("const TRY") : text.index("const out =")].replace('" +\n      "', "")


def test_the_first_experiment_is_true():
    w = EstimatorPlayground(ref_mean=0.0, ref_sd=1.5, n=10_000, seed=13)
    assert round(w.kl, 3) == 0.128
    assert w.sd[2] == math.inf
    normal = np.random.RandomState(13).standard_normal(10_000)
    ratio = (normal / 1.5) ** 2 / 2 - normal**2 / 2 + math.log(1.5)
    k3 = np.expm1(-ratio) + ratio
    assert k3.argmax() + 1 == 6917
    assert round(k3.max()) == round(w.largest[2]) == 307
    assert round(np.delete(k3, 6916).mean(), 3) == 0.124
    assert round(w.sample_mean[2], 3) == 0.155
    spreads = []
    for seed in range(1000):
        square = np.random.RandomState(seed).standard_normal(10_000) ** 2
        ratio = square * (1 / 1.5**2 - 1) / 2 + math.log(1.5)
        spreads.append((np.expm1(-ratio) + ratio).std())
    assert 0.5 <= np.mean(np.array(spreads) < 0.9) < 0.55
    narrower = EstimatorPlayground(ref_mean=0.0, ref_sd=1.4)
    assert round(narrower.sd[2], 3) == 1.490
    assert 4 < narrower.sd[2] / narrower.sd[0] < 4.5
    for words in (
        "0.128 nats",
        "draw 6,917",
        "of 307 nats",
        "from 0.124 to 0.155",
        "below 0.9",
        "1.4: now the sd is 1.490",
        "four times",
    ):
        assert words in said(), words


def test_the_second_experiment_is_true():
    w = EstimatorPlayground(ref_mean=0.5, n=20, seed=0)
    assert round(w.sample_mean[0], 3) == -0.160
    assert round(w.negative, 2) == 0.40
    # k1 is normal here, with mean mu²/2 and sd mu, and so is the mean of 20
    assert round(0.5 * math.erfc(0.5 / 2 * math.sqrt(20 / 2)), 2) == 0.13
    assert [math.ceil(w.draws_needed[k] - 1e-9) for k in (0, 2)] == [1600, 218]
    assert EstimatorPlayground(ref_mean=1.2).sd[2] > EstimatorPlayground(ref_mean=1.2).sd[0]
    for words in ("−0.160", "40 %", "13 %", "needs 218", "1,600", "to 1.2"):
        assert words in said(), words


def test_the_third_experiment_is_true():
    wide, narrow = (EstimatorPlayground(ref_mean=0.0, ref_sd=sd) for sd in (2.0, 0.5))
    assert (round(wide.mean[1], 3), round(wide.kl, 3)) == (0.191, 0.318)
    assert round(-wide.bias[1] / wide.kl, 2) == 0.40
    assert (round(narrow.mean[1], 3), round(narrow.kl, 3)) == (2.576, 0.807)
    assert round(narrow.mean[1] / narrow.kl) == 3
    for words in ("0.191", "0.318: 40 % low", "2.576 for 0.807", "three times"):
        assert words in said(), words


# ---- the numbers against an integral over the policy -----------------------------------------------------


def integral(w, power=1):
    """E of k1, k2, k3 and of their bins under the policy, by a sum over a fine grid."""
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    weight = torch.exp(-(x**2) / 2) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    log_ratio = ((x - w.mu) / w.sigma) ** 2 / 2 - x**2 / 2 + math.log(w.sigma)
    return weight, torch.stack([log_ratio, log_ratio**2 / 2, torch.expm1(-log_ratio) + log_ratio])


PAIRS = [
    {},
    {"ref_mean": -0.5, "ref_sd": 0.8},
    {"policy_mean": 1.0, "policy_sd": 2.0, "ref_mean": 0.0, "ref_sd": 1.2},
    {"ref_mean": 0.0, "ref_sd": 1.25},
    {"ref_mean": 0.3, "ref_sd": 1.15},
]


@pytest.mark.parametrize("state", PAIRS)
def test_exact_numbers_are_integrals(state):
    w = EstimatorPlayground(**state)
    weight, values = integral(w)
    mean = values @ weight
    variance = (values - mean[:, None]) ** 2 @ weight
    assert w.mean == pytest.approx(mean.tolist(), rel=1e-8)
    assert w.variance == pytest.approx(variance.tolist(), rel=1e-6)
    assert w.kl == pytest.approx(mean[0].item(), rel=1e-8)
    assert w.negative == pytest.approx(weight[values[0] < 0].sum().item(), abs=1e-4)
    ratio = torch.exp(-values[0])
    assert w.chi2 == pytest.approx(((ratio - 1) ** 2 @ weight).item(), rel=1e-6)
    assert w.jeffreys == pytest.approx(((1 - ratio) * values[0] @ weight).item(), rel=1e-8)
    assert w.variance[2] == pytest.approx(w.variance[0] + w.chi2 - 2 * w.jeffreys, rel=1e-9)
    assert w.draws_needed == pytest.approx([100 * v / w.kl**2 for v in w.variance])
    edges = torch.tensor(w.edges, dtype=torch.float64)
    for row, value in zip(w.density, values, strict=True):
        held = torch.stack(
            [weight[(low < value) & (value <= high)].sum() for low, high in itertools.pairwise(edges)]
        )
        assert (torch.tensor(row) * edges.diff()).tolist() == pytest.approx(held.tolist(), abs=2e-4)


@pytest.mark.parametrize("state", PAIRS)
def test_the_curves_of_the_map_are_where_they_say(state):
    w = EstimatorPlayground(**state)
    for shift, width in zip(*w.same_kl, strict=True):
        if 0.06 < width < 2.59:
            assert gaussian_moments(shift, width)["k1"].mean.item() == pytest.approx(w.kl, abs=1e-9)
    for i in (0, 20, 60):
        inside, outside = (gaussian_moments(i / 20, w.rim[i] * by) for by in (0.999, 1.001))
        assert inside["k3"].variance < inside["k1"].variance
        assert outside["k3"].variance > outside["k1"].variance


def test_only_shift_and_width_count():
    a, b = (
        EstimatorPlayground(),
        EstimatorPlayground(policy_mean=-1.0, policy_sd=2.0, ref_mean=1.0, ref_sd=2.0),
    )
    for name in ("mean", "variance", "chi2", "negative", "sample_mean", "running", "density"):
        assert np.array(a.numbers[name]) == pytest.approx(np.array(b.numbers[name]), abs=1e-9)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"policy_sd": 0.3}, "policy_sd is 0.3; a number from 0.4 to 2.5"),
        ({"ref_mean": math.nan}, "ref_mean is nan"),
        ({"n": 9}, "n is 9; a number from 10 to 10000"),
        ({"n": 20.5}, "n is 20.5; a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_an_impossible_state_is_an_error_that_names_it(state, says):
    with pytest.raises(StateError, match=says):
        EstimatorPlayground(**state)


def test_where_the_two_agree_all_of_every_estimator_is_at_zero():
    w = EstimatorPlayground(ref_mean=0.0)
    edges = np.array(w.edges)
    for row in w.density:
        masses = np.array(row) * np.diff(edges)
        assert masses.sum() == pytest.approx(1)
        assert edges[1:][masses > 0] == pytest.approx([0.0], abs=1e-15)
    assert w.sd == [0.0, 0.0, 0.0]
    assert w.sample_mean == [0.0, 0.0, 0.0]
    assert w.negative == 0
    assert all(math.isnan(count) for count in w.draws_needed)


def test_a_small_probability_keeps_its_digits(page):
    """P(k1 < 0) of equal widths is Φ(-mu/2), here 10⁻¹² and 3·10⁻¹⁴."""
    for shift in (5.6, 6.0):
        state = DEFAULT | {"policy_mean": -3.0, "policy_sd": 0.4, "ref_mean": shift - 3, "ref_sd": 0.4}
        truth = 0.5 * math.erfc(shift / 0.4 / 2 / math.sqrt(2))
        assert truth < 2e-12
        assert page.python(state)["negative"] == pytest.approx(truth, rel=1e-9)
        assert page.compute([state])[0]["negative"] == pytest.approx(truth, rel=1e-9)
