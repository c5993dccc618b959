"""What `diagnose` makes of runs on which no threshold was fixed: the committed table, and that it is made so.

Of 50 runs the 95 % interval of Clopper and Pearson is 92.9 to 100 % when all are right, and 78.2 to 96.7 %
when 45 are; of 50 healthy runs 0 to 7.1 % when none is taken for sick, and 0.5 to 13.7 % when two are.
"""

import csv
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import beta

from kltutor.failures import MODES

ROOT = Path(__file__).parents[1]
AGAIN = [(mode, place) for mode in MODES for place in (0, 1)]  # by turns of the seed: two routes
EXACTLY = ("mode", "seed", "route", "diagnosis", "cause", "measured", "threshold", "also")


@pytest.fixture
def diagnosis(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from runs import diagnosis

    return diagnosis


def test_the_table_has_fifty_unseen_runs_of_every_mode(diagnosis):
    rows = diagnosis.read()
    assert [(row["mode"], int(row["seed"])) for row in rows] == [
        (mode, seed) for mode in MODES for seed in range(diagnosis.FIRST, diagnosis.FIRST + 50)
    ]
    first, *lines = diagnosis.FILE.read_text().splitlines()
    assert first.startswith("# kltutor ")
    assert "seeds 2000 to 2049 of each mode, python -m runs.diagnosis" in first
    assert diagnosis.text(rows).splitlines()[1:] == lines


def test_nine_in_ten_runs_that_failed_are_named_rightly(diagnosis):
    failed = [row for row in diagnosis.read() if row["mode"] != "healthy"]
    assert sum(row["mode"] == row["diagnosis"] for row in failed) >= 0.9 * len(failed)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "healthy"])
def test_fifty_runs_of_no_mode_speak_against_nine_in_ten(mode, diagnosis):
    named = Counter(row["diagnosis"] for row in diagnosis.read() if row["mode"] == mode)
    assert diagnosis.interval(named[mode], named.total())[1] >= 0.9, named  # 95 %: 40 of 50 would fail


def test_one_healthy_run_in_twenty_at_most_is_taken_for_sick(diagnosis):
    named = Counter(row["diagnosis"] for row in diagnosis.read() if row["mode"] == "healthy")
    assert named.total() - named["healthy"] <= 0.05 * named.total(), named


@pytest.mark.parametrize(("mode", "place"), AGAIN)
def test_a_run_made_again_is_diagnosed_as_the_table_says(mode, place, diagnosis):
    seed = diagnosis.FIRST + place
    (kept,) = (row for row in diagnosis.read() if (row["mode"], row["seed"]) == (mode, str(seed)))
    again = diagnosis.diagnosed(mode, seed)
    assert {name: again[name] for name in EXACTLY} == {name: kept[name] for name in EXACTLY}
    if kept["measure"]:  # two digits, of which rounding may turn the last
        assert float(again["measure"]) == pytest.approx(float(kept["measure"]), rel=0.11)


def test_the_summary_counts_rows_and_states_intervals(diagnosis):
    rows = [{"mode": "runaway", "diagnosis": name} for name in ["runaway"] * 45 + ["healthy"] * 5]
    found = diagnosis.confusion(rows)
    assert {name: n for name, n in found["runaway"].items() if n} == {"runaway": 45, "healthy": 5}
    assert not any(found["healthy"].values())
    low, high = diagnosis.interval(45, 50)
    assert (low, high) == pytest.approx((beta.ppf(0.025, 45, 6), beta.ppf(0.975, 46, 5)))
    assert (round(low, 3), round(high, 3)) == (0.782, 0.967)
    assert diagnosis.interval(50, 50) == pytest.approx((0.025 ** (1 / 50), 1.0))
    assert diagnosis.interval(2, 50) == pytest.approx((0.005, 0.137), abs=5e-4)


def test_a_cell_with_a_comma_survives_the_table(diagnosis):
    row = dict.fromkeys(diagnosis.ROW, "") | {"mode": "runaway", "route": "average, share 0.1"}
    (back,) = csv.DictReader(diagnosis.text([row]).splitlines()[1:])
    assert back == row
