"""BetaSweep: the browser has the package's numbers, hands move it, and what it suggests to try is true."""

import itertools
import math
import random
import re

import pytest
from widget_page import WidgetPage, parse

from kltutor.widgets import BetaSweep
from kltutor.widgets.base import HERE, StateError

FIVE = (0.2, 0.5, 0.7, 0.6, 1.0)


def random_state(rng):
    """Any state: two to eight answers, ties among the rewards, beta over the whole track and at its ends."""
    n = rng.randint(2, 8)
    ref = [rng.random() ** 3 + 1e-3 for _ in range(n)]
    return {
        "answers": [f"answer {i}" for i in range(n)],
        "beta": rng.choice([1e-3, 1e3, *(10 ** rng.uniform(-3, 3) for _ in range(8))]),
        "log_scale": rng.random() < 0.5,
        "ref": [p / math.fsum(ref) for p in ref],
        "reward": [rng.choice([0.0, 1.0, round(rng.random(), 2), rng.random()]) for _ in range(n)],
    }


def states(count, seed=0):
    rng = random.Random(seed)
    return [random_state(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    page = WidgetPage(chromium, BetaSweep(), tmp_path_factory.mktemp("page"))
    yield page
    page.close()


def test_browser_and_package_have_the_same_numbers(page):
    page.agrees(states(300))


def test_every_number_written_is_one_of_them(page):
    page.shows(states(40, seed=1))
    page.set(BetaSweep().state)


def test_the_formula_adds_up_as_it_is_written(page):
    for state in states(20, seed=3):
        page.set(state)
        line = page.page.locator(".kl-formula p").nth(1).inner_text()
        value, rest = line.replace(" nats", "").split(" = ")[0:2]
        paid = re.fullmatch(r"(.+?) − (\S+) · (\S+)", " ".join(rest.split()))
        numbers = page.python(state)
        kl = pytest.approx(numbers["kl"], rel=0.01, abs=6e-4)
        assert parse(value) == pytest.approx(numbers["value"], rel=0.01, abs=6e-4)
        assert parse(paid[1]) == pytest.approx(numbers["expected_reward"], rel=0.01, abs=6e-4)
        assert float(paid[2]) == pytest.approx(state["beta"], rel=0.01)
        assert parse(paid[3]) == kl
    page.set(BetaSweep().state)


def test_the_slider_moves_beta_over_its_whole_track(page):
    page.press("β, the price of a nat in reward (logarithmic)", "Home")
    assert page.state["beta"] == 1e-3
    page.press("β, the price of a nat in reward (logarithmic)", "End")
    assert page.state["beta"] == 1e3
    page.press("β, the price of a nat in reward (logarithmic)", "Home", *["ArrowRight"] * 100)
    assert page.state["beta"] == pytest.approx(1e-2, rel=1e-4)


def test_keys_move_a_reward(page):
    page.set(BetaSweep().state)
    page.press("reward of good", "ArrowUp", "ArrowUp")
    assert page.state["reward"] == pytest.approx([0.2, 0.52, 0.7, 0.6, 1.0])
    page.press("reward of good", "PageDown")
    assert page.state["reward"][1] == pytest.approx(0.42)
    page.press("reward of good", "Home")
    assert page.state["reward"][1] == 0
    page.press("reward of good", "End", "ArrowUp")  # at its bound it stays there
    assert page.state["reward"] == [0.2, 1.0, 0.7, 0.6, 1.0]
    assert page.grip("reward of good").get_attribute("aria-valuetext") == "1.00"


def test_a_drag_moves_one_reward_by_what_the_hand_moves(page):
    page.set(BetaSweep().state)
    scale = page.page.evaluate("document.querySelector('.kl-chart').getScreenCTM().a")
    page.drag("reward of great", 0, 32 * scale)  # the strip of rewards is 80 high
    assert page.state["reward"] == pytest.approx([0.2, 0.5, 0.3, 0.6, 1.0], abs=0.011)
    page.drag("reward of great", 60, 500)
    assert page.state["reward"][2] == 0


def test_the_optimum_can_be_dragged_along_the_frontier(page):
    page.set(BetaSweep().state)
    star = page.page.locator("g.kl-draggable:has(path.kl-optimum)")
    before = page.widget.__class__().kl
    page.drag(star, 60, 0)
    after = BetaSweep(beta=page.state["beta"]).kl
    scale = page.page.evaluate("document.querySelectorAll('.kl-chart')[1].getScreenCTM().a")
    nats = 60 / scale / (332 - 44) * BetaSweep().kl_bound * 1.12
    assert after - before == pytest.approx(nats, abs=0.02)
    page.drag(star, 900, 0)
    assert page.state["beta"] == 1e-3
    page.drag(star, -900, 0)
    assert page.state["beta"] == 1e3


def test_the_table_holds_what_the_picture_shows(page):
    page.set(BetaSweep().state)
    page.page.get_by_text("The numbers as a table").click()
    page.page.locator(".kl-table tbody tr").first.wait_for()  # the browser tells of the opening later
    cells = page.page.locator(".kl-table tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.children].map(c => c.textContent))"
    )
    w = BetaSweep()
    assert [row[0] for row in cells] == [*w.answers, "E[reward]", "KL to ref, nats", "J"]
    for row, *numbers in zip(cells, w.reward, w.ref, w.star, w.tilt, strict=False):
        assert [float(text) for text in row[1:]] == pytest.approx(numbers, abs=5.1e-5)
    assert [float(text) for text in cells[7][2:]] == pytest.approx(
        [w.ref_reward, w.value, w.tilt_value], abs=5.1e-5
    )
    page.page.get_by_text("The numbers as a table").click()


def test_an_experiment_sets_its_state_up(page):
    for name in ("Who keeps the losers?", "A hair decides", "Nats that cannot"):
        page.page.get_by_role("button", name=re.compile(f"Set it up: {re.escape(name)}")).click()
        assert page.python(page.state)["kl"] > 0.9
    assert page.state["beta"] == 0.02


def test_a_redraw_is_quick(page, record_property):
    rng = random.Random(2)
    moves = [
        {"beta": 10 ** rng.uniform(-3, 3), "reward": [rng.random() for _ in range(5)]} for _ in range(200)
    ]
    page.set(BetaSweep().state)
    taken = sorted(page.times(moves))
    record_property("redraw_ms_95", taken[189])
    print(f"redraw: median {taken[100]:.2f} ms, 95th percentile {taken[189]:.2f} ms")


# ---- what the experiments say --------------------------------------------------------------------------


def test_the_first_experiment_is_true():
    few = BetaSweep(beta=0.01, reward=FIVE)
    assert few.losers == pytest.approx(6e-13, rel=0.1)
    assert few.tilt_losers == pytest.approx(0.019, abs=5e-4)
    assert BetaSweep(beta=0.005).tilt_losers / few.tilt_losers == pytest.approx(0.5, abs=0.01)
    assert BetaSweep(beta=0.2).tilt_losers < BetaSweep(beta=0.2).losers


def test_the_second_experiment_is_true():
    before = BetaSweep(beta=0.002, reward=(0.2, 0.5, 0.87, 0.6, 0.9))
    after = BetaSweep(beta=0.002, reward=(0.2, 0.5, 0.93, 0.6, 0.9))
    assert (round(before.kl, 2), round(after.kl, 2)) == (3.51, 1.71)
    assert before.star[4] > 0.99
    assert after.star[2] > 0.99
    assert round(after.value - before.value, 2) == 0.03


def test_the_third_experiment_is_true():
    rewards = (1.0, 0.5, 0.7, 0.6, 0.9)
    kls = [BetaSweep(beta=beta, reward=rewards).kl for beta in (1.0, 0.1, 0.02, 0.001)]
    assert all(a < b for a, b in itertools.pairwise(kls))
    assert kls[-1] <= -math.log(0.4) == pytest.approx(0.92, abs=5e-3)
    below = BetaSweep(beta=0.001, reward=(0.8, 0.5, 0.7, 0.6, 0.9))
    assert below.kl == pytest.approx(-math.log(0.03), abs=1e-6) == pytest.approx(3.51, abs=5e-3)


def test_the_experiments_say_the_numbers_that_were_checked():
    text = (HERE / "beta_sweep.js").read_text(encoding="utf-8")
    said = text[text.index("const TRY") : text.index("const FORMULA")]
    for words in (
        "6·10⁻¹³",
        "leaves 0.019",
        "β to 0.2",
        "3.51 to",
        "1.71 nats",
        "J gains 0.03",
        "0.4 = 0.92",
    ):
        assert words in said, words


# ---- Python alone --------------------------------------------------------------------------------------


def test_numbers_follow_the_state_without_a_browser():
    w = BetaSweep()
    w.beta = 0.1
    assert w.kl == BetaSweep(beta=0.1).kl > BetaSweep().kl
    assert w.value == pytest.approx(w.expected_reward - w.beta * w.kl) == pytest.approx(w.beta * w.log_z)
    assert w.tilt_value < w.value
    assert sum(w.tilt) == pytest.approx(1)
    assert [b * p for b, p in zip([w.beta] * 5, w.ref, strict=True)] == pytest.approx(
        [t * (w.tilt_lambda - r) for t, r in zip(w.tilt, w.reward, strict=True)]
    )


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"beta": 0.0}, "beta is 0.0; a number from 0.001 to 1000"),
        ({"beta": math.nan}, "beta is nan"),
        ({"beta": True}, "beta is True"),
        ({"reward": [0.1, 2.0, 0, 0, 0]}, r"reward\[1\] is 2.0"),
        ({"reward": [0.1, 0.2]}, "lengths are"),
        ({"ref": [0.5, 0.4, 0.05, 0.03, 0.01]}, "ref sums to 0.99"),
        ({"answers": "abcde"}, "a list of names"),
        ({"log_scale": 1}, "True or False"),
    ],
)
def test_an_impossible_state_is_an_error_that_names_it(state, says):
    with pytest.raises(StateError, match=says):
        BetaSweep(**state)
