"""Figures of runs: what they show is what the log holds, and each run is named by what sets it apart."""

import itertools
import json

import pytest

from kltutor import figures, plots
from kltutor.plots import Logged
from kltutor.run import Run
from kltutor.train import train


def record(step, sampled=None, **exact):
    found = {"kl": step / 10, "gold": step / 20, "proxy": 2 + step, "objective": 0.0, "length": 3.0}
    found |= {"kl_to_optimum": 10.0 ** -(step / 10), "entropy": 1.0} | exact
    return {
        "step": step,
        "episodes": 8 * step,
        "seconds": 0.5 * step,
        "sampled": sampled or {},
        "exact": found if step % 10 == 0 else None,
    }


def logged(name="a", records=None, **options):
    rows = records or [record(step, {"kl": 0.7 + step, "reward": 0.3 + step}) for step in range(0, 31, 5)]
    return Logged(name, Run(**({"algorithm": "ppo"} | options)), rows)


def line(ax, i=0):
    return [tuple(map(float, point)) for point in ax.lines[i].get_xydata()]


def texts(ax):
    return [text.get_text().replace("\n", " ") for text in ax.texts]


def test_a_run_in_a_folder_is_read_as_it_was_written(tmp_path):
    run = Run(task="bandit", algorithm="exact", steps=4, exact_every=2)
    records = [json.loads(json.dumps(each.to_dict())) for each in train(run, folder=tmp_path / "run")]
    found = plots.read(tmp_path / "run")
    assert (found.name, found.run, found.records) == ("run", run, records)


@pytest.mark.parametrize("missing", ["log.jsonl", "checkpoint.safetensors"])
def test_a_folder_without_a_run_is_an_error_that_names_what_is_missing(tmp_path, missing):
    for _ in train(Run(task="bandit", algorithm="exact", steps=1), folder=tmp_path):
        pass
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"has no {missing}.*kltutor train"):
        plots.read(tmp_path)
    with pytest.raises(ValueError, match=r"has no checkpoint"):
        plots.read(tmp_path / "nowhere")


def test_an_empty_log_is_an_error(tmp_path):
    train(Run(task="bandit", algorithm="exact", steps=1), folder=tmp_path)
    with pytest.raises(ValueError, match="without a first record"):
        plots.read(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({}, {"beta": 0.1}, ["beta 0.5", "beta 0.1"]),
        ({}, {"algorithm": "grpo"}, ["ppo", "grpo"]),
        ({}, {"algorithm": "grpo", "beta": 0.1}, ["ppo, beta 0.5", "grpo, beta 0.1"]),
        ({}, {"algorithm": "grpo", "group": 4}, ["ppo", "grpo, group 4"]),
        ({}, {"algorithm": "dpo", "data": "population"}, ["ppo", "dpo, data population"]),
        ({}, {"kl_estimator": "k3", "seed": 2}, ["kl_estimator k1, seed 0", "kl_estimator k3, seed 2"]),
        ({}, {"exact_every": 7}, ["a", "b"]),
        ({}, {"policy": "gpt"}, ["tabular", "gpt"]),
        (
            {},
            {"controller": {"class": "ZieglerBeta", "target_kl": 2.0, "horizon": 9.0}},
            ["fixed beta", "ZieglerBeta target_kl 2.0 horizon 9.0"],
        ),
    ],
)
def test_a_run_is_named_by_what_sets_it_apart(first, second, names):
    assert plots.labels([logged("a", **first), logged("b", **second)]) == names


def test_runs_that_share_a_name_get_that_of_their_folder():
    runs = [logged("a"), logged("b"), logged("c", beta=0.1)]
    assert plots.labels(runs) == ["beta 0.5 (a)", "beta 0.5 (b)", "beta 0.1"]


def test_one_run_shows_exact_values_where_they_were_measured_and_what_batches_said():
    figure = plots.draw(logged())
    kl, optimum, rewards = figure.axes
    assert line(kl, 1) == [(0, 0), (10, 1), (20, 2), (30, 3)]
    assert line(kl, 0) == [(step, 0.7 + step) for step in range(0, 31, 5)]
    assert dict(line(optimum)) == pytest.approx({0: 1, 10: 0.1, 20: 0.01, 30: 0.001})
    assert optimum.get_yscale() == "log"
    assert line(rewards, 0) == [(step, 0.3 + step) for step in range(0, 31, 5)]
    assert line(rewards, 1) == [(0, 0), (10, 0.5), (20, 1), (30, 1.5)]
    assert line(rewards, 2) == [(0, 2), (10, 12), (20, 22), (30, 32)]
    assert texts(kl) == ["exact", "k1, sampled"]
    assert texts(rewards) == ["gold", "proxy"]
    assert "ppo on the small task, beta 0.5, 30 steps" in figure.get_suptitle()
    assert [ax.get_ylabel() for ax in figure.axes] == ["nats per sequence"] * 2 + ["reward units"]


def test_the_batches_of_a_run_on_the_proxy_are_shown_with_the_proxy():
    rewards = plots.draw(logged(reward="proxy")).axes[2]
    assert line(rewards, 0) == [(0, 0), (10, 0.5), (20, 1), (30, 1.5)]
    assert line(rewards, 1)[1] == (5, 5.3)


def test_a_run_without_beta_or_batches_has_no_panel_and_no_dots_of_them():
    rows = [record(step, kl_to_optimum=None) for step in (0, 10)]
    figure = plots.draw(logged(records=rows, algorithm="exact", beta=0.0))
    assert [ax.get_title("left") for ax in figure.axes] == ["KL(π ‖ ref)", "rewards"]
    assert [len(ax.lines) for ax in figure.axes] == [1, 2]


def test_an_overlay_has_a_panel_a_quantity_and_a_line_a_run():
    runs = [logged("a"), logged("b", beta=0.1, records=[record(0), record(10, gold=9.0)])]
    figure = plots.overlay(runs)
    assert [ax.get_title("left") for ax in figure.axes] == [
        "KL(π ‖ π*)",
        "KL(π ‖ ref)",
        "E[gold reward]",
        "E[proxy reward]",
    ]
    assert line(figure.axes[2], 1) == [(0, 0), (10, 9)]
    assert all(texts(ax) == ["beta 0.5", "beta 0.1"] for ax in figure.axes)
    assert {ax.get_xlabel() for ax in figure.axes} == {"step"}
    assert figure.get_suptitle() == "2 runs of ppo on the small task: exact values"


@pytest.mark.parametrize(
    ("against", "xs"),
    [("kl", [0, 1, 2, 3]), ("episodes", [0, 80, 160, 240]), ("seconds", [0, 5, 10, 15])],
)
def test_the_axis_can_be_another(against, xs):
    figure = plots.overlay([logged()], against=against)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert ("KL(π ‖ ref)" in titles) == (against != "kl"), "a quantity is not drawn against itself"
    assert [x for x, _ in line(figure.axes[-1])] == xs


def test_a_run_without_an_optimum_is_left_out_of_its_panel_and_asked_for_is_an_error():
    bare = logged("b", beta=0.0, records=[record(0, kl_to_optimum=None)])
    figure = plots.overlay([logged("a"), bare])
    assert texts(figure.axes[0]) == ["beta 0.5"]
    assert "KL(π ‖ π*)" not in [ax.get_title("left") for ax in plots.overlay([bare]).axes]
    with pytest.raises(ValueError, match=r"kl_to_optimum.*beta is 0"):
        plots.overlay([bare], ["kl_to_optimum"])


def test_a_kl_that_is_rounding_leaves_the_log_axis_at_its_bottom():
    values = (1.0, 1e-3, 1e-6, -8e-17)
    rows = [record(10 * i, kl_to_optimum=value) for i, value in enumerate(values)]
    ax = plots.overlay([logged(records=rows)], ["kl_to_optimum"]).axes[0]
    assert ax.get_ylim() == pytest.approx((5e-7, 2))
    assert line(ax)[-1] == (30, -8e-17), "nothing is replaced"


def test_twelve_runs_look_unlike_and_their_labels_keep_apart():
    runs = [logged(str(i), seed=i, records=[record(0), record(10, gold=1 + i / 1e4)]) for i in range(12)]
    ax = plots.overlay(runs, ["gold"]).axes[0]
    looks = {(drawn.get_color(), drawn.get_linestyle()) for drawn in ax.lines}
    assert len(looks) == 12
    assert len({drawn.get_marker() for drawn in ax.lines[:4]}) == 4
    heights = [text.xyann[1] for text in ax.texts]
    size = ax.texts[0].get_fontsize() / (ax.get_window_extent().height * 72 / ax.figure.dpi)
    assert min(b - a for a, b in itertools.pairwise(heights)) > size
    assert heights == sorted(heights)
    assert {drawn.get_color() for drawn in ax.lines} <= {look["color"] for look in figures.ROLES.values()}


def test_labels_stay_where_they_are_if_there_is_room_and_move_little_if_not():
    assert plots._apart([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]
    assert plots._apart([0.5, 0.5, 0.0], 0.1) == pytest.approx([0.45, 0.55, 0.0])
    assert plots._apart([0.50, 0.52, 0.61], 0.1) == pytest.approx([0.44333, 0.54333, 0.64333], abs=1e-4)


def test_long_names_move_to_a_key():
    other = {"controller": {"class": "ZieglerBeta", "target_kl": 2.0, "horizon": 9.0}, "gamma": 0.9}
    figure = plots.overlay([logged("a"), logged("b", kl_estimator="k3", seed=4, **other)])
    assert texts(figure.axes[0]) == ["run 1", "run 2"]
    assert "run 2: " in figure.get_supxlabel()
    assert "kl_estimator k3" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "from 1 to 12"),
        (([logged()] * 13,), "runs are 13"),
        (([logged()], ["reward"]), "quantity is 'reward'; one of kl_to_optimum, kl"),
        (([logged()], None, "time"), "against is 'time'; one of step"),
    ],
)
def test_errors_name_the_argument_and_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.overlay(*arguments)


def test_a_saved_figure_is_on_white_and_the_same_bytes_each_time(tmp_path):
    for name in ("a.svg", "b.svg", "a.png"):
        plots.save(plots.draw(logged()), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "fill: #ffffff" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"out is .*c\.txt.*\.svg, \.png, \.pdf"):
        plots.save(plots.draw(logged()), tmp_path / "c.txt")


def test_a_name_is_text_and_not_mathematics():
    figure = plots.overlay([logged("a$\\frac$"), logged("b")], ["gold"])
    figure.draw_without_rendering()  # mathematics would not parse
    assert texts(figure.axes[0]) == ["a$\\frac$", "b"]
