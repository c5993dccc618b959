"""Sweeps: which runs a grid has, that a kill costs one unit at most, and that the table says all of it."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kltutor import cli, grid, plots, stacked, sweep_plots, tables, units
from kltutor.finite import NonFiniteError
from kltutor.grid import Grid, read_axis, read_toml
from kltutor.optimum import frontier
from kltutor.run import Run
from kltutor.sweep import Sweep
from kltutor.train import make_world, train

SMALL = {"algorithm": "rloo", "task": "bandit", "steps": 6, "exact_every": 3}
SHORT = ("rloo", "--task", "bandit", "--steps", "6", "--exact-every", "3")
FOUR = (*SHORT, "--grid", "beta=0.3,1", "--grid", "seed=0:2")


def run(*arguments):
    return CliRunner().invoke(cli.app, ["sweep", *map(str, arguments)])


def rows(folder, name="table.csv"):
    """Return the rows of a table, less the column that no option fixes."""
    with open(folder / name, newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)
        ]


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def drawn():
    """Let the figure be drawn."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Leave the figure out where it is not what is tested: it takes most of the time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "save", lambda figure, path: path.write_text("drawn"))
        monkeypatch.setattr(sweep_plots, "draw", lambda *given: None)


def test_a_grid_is_the_nested_loop_over_its_axes():
    made = Grid(SMALL, {"beta": [0.1, 1], "kl_estimator": ["k1", "k2"], "seed": [5, 0]})
    loop = [
        Run(**SMALL, beta=beta, kl_estimator=estimator, seed=seed)
        for beta in (0.1, 1.0)
        for estimator in ("k1", "k2")
        for seed in (5, 0)
    ]
    assert list(made.runs) == loop
    assert type(made.runs[-1].beta) is float, "so that 1 and 1.0 are one value"
    assert made.compared == ["beta", "kl_estimator"]
    assert made.label(made.runs[-1]) == "beta 1, kl_estimator k2, seed 0"
    assert Grid(SMALL, {}).runs == (Run(**SMALL),)


@pytest.mark.parametrize(
    ("base", "axes", "message"),
    [
        ({"bata": 1}, {}, "grid has 'bata'.*fields: task, algorithm"),
        ({}, {"bata": [1]}, "grid has 'bata'"),
        ({"beta": 1.0}, {"beta": [1.0]}, "beta is an axis .* and fixed"),
        ({}, {"beta": []}, "beta is an axis without values"),
        ({}, {"beta": [1, 1.0]}, "beta takes 1.0 twice"),
        ({}, {"beta": ["1"]}, "beta is '1'; a number is expected"),
        ({}, {"seed": [0.5]}, "seed is 0.5; a whole number is expected"),
        ({}, {"seed": [True]}, "seed is True"),
        ({}, {"kl_estimator": ["k4"]}, "kl_estimator is 'k4'; one of k1, k2, k3, full"),
        ({"task": "given"}, {}, "task is 'given'; one of bandit, small, phrases"),
        ({}, {"max_gradient_norm": ["x"]}, "max_gradient_norm is 'x'; a number or none"),
        ({"controller": "ZieglerBeta"}, {}, "a table with its class"),
        ({}, {"checkpoint_every": [1, 2]}, "checkpoint_every has no use in a sweep"),
        ({}, {"beta": [0.1, -1]}, r"beta is -1.0; .* run with beta -1\."),
        ({"algorithm": "dpo"}, {"clip_eps": [0.1, 0.2]}, "clip_eps is 0.1.*no use.* run with clip_eps 0.1"),
        (
            {},
            {"kl_ratio": [None], "controller": [None, {"class": "FixedBeta"}], "seed": [0, 0]},
            "seed takes 0",
        ),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused_and_the_field_is_named(base, axes, message):
    with pytest.raises(ValueError, match=message):
        Grid(base, axes)


def test_values_are_read_from_text_as_their_field_holds_them():
    assert read_axis("beta=0.1, 1") == ("beta", [0.1, 1.0])
    assert read_axis("seed=0:3,7") == ("seed", [0, 1, 2, 7])
    assert read_axis("kl-estimator=k1,full") == ("kl_estimator", ["k1", "full"])
    assert read_axis("max_gradient_norm=none,1") == ("max_gradient_norm", [None, 1.0])
    assert read_axis("kl_placement=none") == ("kl_placement", ["none"]), "a choice of that name stays"
    assert [type(value) for value in read_axis("beta=1,2")[1]] == [float, float]


def test_a_toml_file_says_the_same_as_the_command_line(tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text('[base]\nalgorithm = "rloo"\nsteps = 6\n[grid]\nbeta = [0.3, 1]\nseed = [0, 1]\n')
    axes = dict(map(read_axis, ("beta=0.3,1", "seed=0:2")))
    assert read_toml(file) == Grid({"algorithm": "rloo", "steps": 6}, axes)
    assert read_toml(file).runs == Grid({"algorithm": "rloo", "steps": 6}, axes).runs
    file.write_text(
        '[grid]\ncontroller = [{class = "FixedBeta"}, {class = "ZieglerBeta", target_kl = 1, horizon = 9}]'
    )
    assert [each.controller["class"] for each in read_toml(file).runs] == ["FixedBeta", "ZieglerBeta"]
    for text, message in [
        ("beta = ", "is not TOML"),
        ("beta = 1", "has beta; only the tables"),
        ("grid = 1", "are tables"),
        ("[grid]\nbeta = 1", r"beta in \[grid\] .* a list is expected"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_toml(file)


def test_units_hold_every_run_once_and_only_runs_that_train_together():
    runs = Grid({"task": "bandit"}, {"algorithm": ["rloo", "dpo"], "steps": [5, 6], "seed": range(5)}).runs
    for size in (1, 2, 3, 100):
        made = units.cut(runs, size)
        assert sorted(place for unit in made for place in unit.places) == list(range(20))
        for unit in made:
            assert unit.runs == tuple(runs[place] for place in unit.places)
            assert len(unit.runs) <= size
            assert len({(each.algorithm, each.steps) for each in unit.runs}) == 1
            assert list(unit.places) == sorted(unit.places)
        assert len(made) == 4 * -(-5 // min(size, 5)), "no unit is smaller than it need be"
    assert units.cut(runs, 3) == units.cut(runs, 3)
    with pytest.raises(ValueError, match="unit_size is 0"):
        units.cut(runs, 0)


def test_a_unit_is_named_by_everything_its_runs_are():
    base = units.cut([Run(**SMALL), Run(**SMALL, seed=1)], 2)[0]
    others = [{"beta": 0.6}, {"seed": 2}, {"rate": 0.06}, {"exact_every": 2}, {"world_seed": 1}]
    names = [units.cut([Run(**SMALL | other), Run(**SMALL | {"seed": 3})], 2)[0].name for other in others]
    turned = units.cut(base.runs[::-1], 2)[0].name
    assert len({base.name, turned, *names}) == 2 + len(others)
    assert base.name == units.cut(base.runs, 2)[0].name


def test_work_finds_what_training_each_run_alone_finds_whatever_the_threads_were(monkeypatch):
    runs = Grid(SMALL, {"beta": [0.3, 1.0], "seed": [0, 1]}).runs
    before, seen, step = torch.get_num_threads(), set(), units.Stack.__next__
    monkeypatch.setattr(units.Stack, "__next__", lambda own: seen.add(torch.get_num_threads()) or step(own))
    found = units.work(runs)
    torch.set_num_threads(2)
    try:
        again, threads = units.work(runs), torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (seen, threads) == ({1}, 2), "one thread at work, and what was set is set again"
    for one, two, each in zip(found["runs"], again["runs"], runs, strict=True):
        alone = [record for record in train(each) if record.exact is not None]
        assert [record["step"] for record in one["records"]] == [0, 3, 6]
        for mine, his, third in zip(one["records"], two["records"], alone, strict=True):
            assert mine | {"seconds": 0} == his | {"seconds": 0}
            for name, value in dataclasses.asdict(third.exact).items():
                assert mine["exact"][name] == pytest.approx(value, rel=1e-9, abs=1e-10)
        assert Run.from_json(one["run"]) == each


def test_the_table_has_a_row_a_run_with_its_options_and_where_it_ended(tmp_path):
    result = run(*FOUR, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    kept = ["records.csv", "sweep.json", "sweep.png", "sweep.svg", "table.csv", "units"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == kept
    table, records = rows(tmp_path / "a"), rows(tmp_path / "a", "records.csv")
    options = [(row["run"], row["algorithm"], row["beta"], row["seed"]) for row in table]
    assert options == [(str(i), "rloo", ("0.3", "1.0")[i // 2], str(i % 2)) for i in range(4)]
    for i, row in enumerate(table):
        last = list(train(Run(**SMALL, beta=(0.3, 1.0)[i // 2], seed=i % 2)))[-1]
        assert (row["status"], row["step"], row["reason"]) == ("finished", "6", "")
        for name, value in dataclasses.asdict(last.exact).items():
            assert float(row[name]) == pytest.approx(value, rel=1e-9, abs=1e-10)
        own = [each for each in records if each["run"] == str(i)]
        assert [each["step"] for each in own] == ["0", "3", "6"]
        assert own[-1]["gold"] == row["gold"]
        assert own[0]["sampled_reward"]
        assert own[-1]["sampled_reward"] == ""
    mean = np.mean([float(row["gold"]) for row in table[:2]])
    assert f"{mean:.4f}" in result.stdout
    assert "4 of 4 runs finished" in result.stdout
    assert run(*FOUR, "--unit-size", 1, "--out", tmp_path / "b").exit_code == 0
    for one, two in zip(table, rows(tmp_path / "b"), strict=True):
        assert float(one["kl"]) == pytest.approx(float(two["kl"]), abs=1e-10)


def test_rows_come_in_the_order_of_the_grid_whatever_the_units_are(tmp_path):
    result = run(
        "--task=bandit", "--steps=2", "--grid=seed=0:2", "--grid=algorithm=rloo,exact", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    table, records = rows(tmp_path), rows(tmp_path, "records.csv")
    assert [(row["seed"], row["algorithm"]) for row in table] == [
        ("0", "rloo"),
        ("0", "exact"),
        ("1", "rloo"),
        ("1", "exact"),
    ]
    assert [row["run"] for row in table] == ["0", "1", "2", "3"]
    assert [row["run"] for row in records] == ["0", "0", "1", "1", "2", "2", "3", "3"]
    for row in table:
        last = list(train(Run(task="bandit", steps=2, algorithm=row["algorithm"], seed=int(row["seed"]))))[-1]
        assert float(row["kl"]) == pytest.approx(last.exact.kl, rel=1e-9)


def killed(folder, patch):
    """Start a sweep in a process of its own that kills itself at a point, and return what is finished."""
    code = f"import os, signal\nfrom kltutor import checkpoints, stacked\n{patch}\n"
    code += "def die(): os.kill(os.getpid(), signal.SIGKILL)\nfrom kltutor.cli import main\nmain()"
    command = [sys.executable, "-c", code, "sweep", *FOUR, "--unit-size", "1", "--out", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    return {path.name: path.stat().st_mtime_ns for path in (folder / "units").iterdir()}


INSIDE = """
step = stacked.Stack.__next__
def dying(stack):
    if stack.runs[0].seed == 1 and stack.step == 4:
        die()
    return step(stack)
stacked.Stack.__next__ = dying
"""
WRITING = """
replace, count = os.replace, []
def dying(*paths):
    count.append(paths)
    if len(count) == 4:  # the manifest, two units, and the third when all of it is in its scratch file
        die()
    return replace(*paths)
os.replace = dying
"""


@pytest.mark.parametrize(("patch", "finished", "scratch"), [(INSIDE, 1, 0), (WRITING, 2, 1)])
def test_a_killed_sweep_goes_on_with_the_same_table_and_finished_units_are_not_made_again(
    patch, finished, scratch, tmp_path
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*FOUR, "--unit-size", 1, "--out", whole).exit_code == 0
    before = killed(cut, patch)
    assert sorted(name.endswith(".part") for name in before) == [False] * finished + [True] * scratch
    result = run(*FOUR, "--unit-size", 1, "--out", cut)
    assert result.exit_code == 0, result.output
    assert f"{finished} of 4 units are finished already" in result.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (cut / "units").iterdir()}
    assert len(after) == 4
    for name, time in before.items():
        if not name.endswith(".part"):
            assert after[name] == time
    for name in ("table.csv", "records.csv"):
        assert rows(cut, name) == rows(whole, name)
    again = run(*FOUR, "--unit-size", 1, "--out", cut)
    assert again.exit_code == 0
    assert "4 of 4 units are finished already" in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (cut / "units").iterdir()} == after


def test_ctrl_c_keeps_finished_units_and_says_that_the_same_command_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        step = units.Stack.__next__

        def pressed(stack):
            if stack.runs[0].seed == 1 and stack.step == 2:
                signal.raise_signal(signal.SIGINT)
            return step(stack)

        patch.setattr(units.Stack, "__next__", pressed)
        result = run(*FOUR, "--unit-size", 1, "--out", tmp_path)
    assert result.exit_code == 130
    assert "The same command goes on" in result.stderr
    assert len(list((tmp_path / "units").iterdir())) == 1
    assert not (tmp_path / "table.csv").exists()
    assert run(*FOUR, "--unit-size", 1, "--out", tmp_path).exit_code == 0


def test_a_run_that_leaves_the_numbers_has_its_row_with_step_and_reason(tmp_path):
    # The second epoch meets what the policy hardly says any more.
    far = {"algorithm": "grpo", "epochs": 2, "batch": 64}
    result = run(
        "grpo", *SHORT[1:], "--epochs", 2, "--batch", 64, "--grid", "rate=0.05,1e4", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    good, bad = rows(tmp_path)
    with pytest.raises(NonFiniteError) as alone:
        list(train(Run(**SMALL | far, rate=1e4)))
    assert (good["status"], good["step"]) == ("finished", "6")
    assert (bad["status"], bad["step"]) == ("stopped", str(alone.value.step))
    assert bad["reason"] == str(alone.value)
    assert bad["kl"] == bad["gold"] == "", "it has not ended there"
    assert f"Run 1 (rate 10000) was stopped at step {alone.value.step}" in result.stderr
    assert "1 of 2 runs finished" in result.stdout


def test_an_error_in_a_unit_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        make = units.Stack.__init__

        def fails(stack, runs):
            if runs[0].beta == 0.3:
                raise RuntimeError("out of memory\nand more")
            make(stack, runs)

        patch.setattr(units.Stack, "__init__", fails)
        result = run(*FOUR, "--unit-size", 2, "--out", tmp_path)
    assert result.exit_code == 1
    assert "Error: runs 0, 1: RuntimeError: out of memory." in result.stderr
    table = rows(tmp_path)
    assert [row["status"] for row in table] == ["failed", "failed", "finished", "finished"]
    assert table[0]["reason"] == "RuntimeError: out of memory"
    (path,) = (tmp_path / "units").iterdir()
    time = path.stat().st_mtime_ns
    assert run(*FOUR, "--unit-size", 2, "--out", tmp_path).exit_code == 0
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 4
    assert path.stat().st_mtime_ns == time


def test_warnings_are_told_with_their_runs(tmp_path, monkeypatch):
    step = units.Stack.__next__

    def warns(stack):
        if stack.step == 2:
            units.warnings.warn("beta is at upper", units.UnreachableTargetWarning, stacklevel=1)
        return step(stack)

    monkeypatch.setattr(units.Stack, "__next__", warns)
    result = run(*FOUR, "--unit-size", 2, "--out", tmp_path)
    assert result.exit_code == 0
    assert "Warning: runs 0, 1: beta is at upper\n" in result.stderr


def test_a_folder_takes_one_sweep_and_a_changed_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    assert run(*FOUR, "--out", folder).exit_code == 0
    assert "holds another sweep, of 4 runs over beta, seed; this one is of 1" in refused(
        *SHORT, "--out", folder
    )
    other = (*SHORT, "--grid", "beta=0.3,2", "--grid", "seed=0:2")
    assert "with other values" in refused(*other, "--out", folder)
    assert "--unit-size is 3, but the sweep" in refused(*FOUR, "--unit-size", 3, "--out", folder)
    with monkeypatch.context() as patch:
        patch.setattr("kltutor.__version__", "9.9")
        assert "was begun with kltutor 0.1.0; this is 9.9" in refused(*FOUR, "--out", folder)
    made = Sweep(folder, Grid(SMALL, {"beta": [0.3, 1.0], "seed": [0, 1]}))
    with made.alone():
        assert "worked on by another process" in refused(*FOUR, "--out", folder)
    (path,) = (folder / "units").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole.replace(b'seed\\": 1', b'seed\\": 2'), b"[]"):
        path.write_bytes(damaged)
        assert "Delete it, and its runs are made again" in refused(*FOUR, "--out", folder)
    path.unlink()
    assert run(*FOUR, "--out", folder).exit_code == 0
    assert json.loads(path.read_bytes())["runs"] == [
        each | {"records": again["records"]}
        for each, again in zip(json.loads(whole)["runs"], json.loads(path.read_bytes())["runs"], strict=True)
    ]
    (folder / "sweep.json").write_text("{}")
    assert "not the manifest" in refused(*FOUR, "--out", folder)
    (folder / "sweep.json").unlink()
    assert "not empty and holds no sweep" in refused(*FOUR, "--out", folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ["algorithm is missing", "ALGO"]),
        ("pppo", ["ALGO", "'ppo'"]),
        ("ppo --task words", ["--task", "'small'"]),
        ("ppo --horizon 0", ["--horizon", "--help"]),
        ("ppo --grid horizon=0", ["grid has 'horizon'"]),
        ("ppo --beta -1", ["--beta is -1", "at least 0"]),
        ("ppo --grid beta=0.1,-1", ["--beta is -1", "run with beta -1"]),
        ("ppo --grid task=words", ["--task is 'words'", "small"]),
        ("ppo --device warp", ["--device is 'warp'"]),
        ("ppo --device cuda:99", ["--device is 'cuda:99'", "--device cpu"]),
        ("ppo --grid device=cpu,cuda:99", ["--device is 'cuda:99'", "--device cpu"]),
        ("ppo --grid beta", ["--grid has 'beta'", "NAME=VALUES"]),
        ("ppo --grid beta=", ["--beta is an axis without values"]),
        ("ppo --grid beta=few", ["--beta has 'few'", "a number"]),
        ("ppo --grid seed=3:1", ["--seed has '3:1'", "0:5"]),
        ("ppo --grid seed=1 --grid seed=2", ["--grid has seed twice"]),
        ("ppo --grid algorithm=ppo,grpo", ["algorithm is an axis", "fixed"]),
        ("ppo --grid controller=FixedBeta", ["TOML"]),
        ("ppo --file nowhere.toml", ["--file says all"]),
        ("--file nowhere.toml", ["nowhere.toml", "No such file"]),
        ("ppo --address local", ["--address is 'local'", "--engine ray"]),
        ("ppo --engine dask", ["--engine", "'ray'"]),
        ("ppo --unit-size 0", ["--unit-size is 0"]),
        ("ppo --checkpoint-every 5", ["--checkpoint-every"]),
        ("ppo --format xlsx", ["--format", "'parquet'"]),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_in_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments.split(), "--out", "out")
    for word in words:
        assert word in message
    assert not list(tmp_path.rglob("table.csv"))
    assert "--out" in refused("ppo")


@pytest.mark.parametrize(
    ("module", "options"), [("ray", ["--engine", "ray"]), ("pyarrow", ["--format", "parquet"])]
)
def test_what_the_extra_brings_is_asked_for_by_name_only_when_it_is_needed(
    module, options, tmp_path, monkeypatch
):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'kltutor[scale]'" in refused(*SHORT, *options, "--out", tmp_path / "a")
    assert run(*SHORT, "--out", tmp_path / "b").exit_code == 0


def test_a_column_holds_numbers_or_text_or_nothing(tmp_path):
    rules = [None, {"class": "ZieglerBeta", "target_kl": 0.2, "horizon": 500}]
    made = Sweep(tmp_path, Grid(SMALL, {"controller": rules, "beta": [0.5, 1]}), size=2)
    for unit in made.units[1:]:
        made.keep(unit, units.work(unit.runs))
    table = tables.final(made, {made.units[0].name: "OSError: gone"})
    assert {row["status"] for row in table} == {"finished", "failed"}
    tables.write(table, tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["run"] for row in read] == ["0", "1", "2", "3"]
    assert read[-1]["controller"] == json.dumps(rules[1])
    moved = [row["beta_in_force"] != row["beta"] for row in table if row["status"] == "finished"]
    assert any(moved), "a controller moves beta, and the table says where to"


@pytest.mark.usefixtures("drawn")
def test_the_figure_shows_every_run_under_the_curve_of_the_best(tmp_path):
    made = Grid(SMALL | {"steps": 30}, {"beta": [0.2, 1.0], "kl_estimator": ["k1", "k2"], "seed": [0, 1]})
    sweep = Sweep(tmp_path / "a", made)
    for unit in sweep.units:
        sweep.keep(unit, units.work(unit.runs))
    table = tables.final(sweep)
    figure = sweep_plots.draw(made, table)
    left, right = figure.axes
    curve, *dots = left.lines
    assert [len(line.get_xdata()) for line in dots] == [4, 4], "a colour an estimator"
    drawn = sorted((x, y) for line in dots for x, y in zip(*line.get_data(), strict=True))
    assert drawn == sorted((row["kl"], row["gold"]) for row in table)
    world = make_world(made.runs[0])
    best = frontier(world.ref_seq_logp, world.task.reward, torch.logspace(-2, 2, 999, dtype=torch.float64))
    weights = torch.tensor(world.task.prompt_probs, dtype=torch.float64)
    kl, reward = (weights @ each.flip(-1) for each in (best.kl, best.reward))
    gaps = [float(np.interp(row["kl"], kl, reward)) - row["gold"] for row in table]
    assert min(gaps) > -1e-4, "no policy is above the frontier"
    said = float(left.get_title(loc="left").split()[1])
    assert max(gaps) == pytest.approx(said, rel=0.11)
    x, y = curve.get_data()
    assert np.interp(max(row["kl"] for row in table), x, y) == pytest.approx(
        np.interp(max(row["kl"] for row in table), kl, reward), abs=1e-2
    )
    assert sum(len(line.get_xdata()) for line in right.lines) == 8
    medians = {
        beta: np.median([r["kl_to_optimum"] for r in table if r["beta"] == beta]) for beta in (0.2, 1.0)
    }
    assert right.get_title(loc="left").endswith(f"beta {min(medians, key=medians.get):g}")
    plots.save(figure, tmp_path / "one.svg")
    plots.save(sweep_plots.draw(made, table), tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize(
    ("base", "axes"),
    [
        ({}, {}),
        ({}, {"seed": [0, 1]}),
        ({"beta": 0.0}, {"kl_placement": ["reward", "loss"]}),
        ({}, {"world_seed": [0, 1], "reward": ["gold", "proxy"]}),
        (
            {},
            {
                "reward": ["gold", "proxy"],
                "controller": [None, {"class": "AnnealedBeta", "end": 1.0, "episodes": 900}],
            },
        ),
        (
            {},
            {
                "beta": [0.1, 0.2, 0.3, 0.4, 0.5, 1, 2, 3, 4, 5],
                "algorithm": ["rloo", "exact", "dpo", "sft", "ppo"],
            },
        ),
    ],
)
@pytest.mark.usefixtures("drawn")
def test_any_grid_is_drawn_without_a_warning(base, axes):
    made = Grid({"algorithm": "rloo"} | base if "algorithm" not in axes else base, axes)
    table = [
        {name: getattr(each, name) for name in tables.varied(made.runs)}
        | {"run": i, "status": "finished", "kl": 0.1 + i / 10, "gold": i / 20}
        | {"kl_to_optimum": 0.01 + i / 5 if each.beta else None}
        for i, each in enumerate(made.runs)
    ]
    for row in table:
        row |= {"controller": json.dumps(row["controller"])} if row.get("controller") else {}
    figure = sweep_plots.draw(made, table)
    figure.draw_without_rendering()
    assert len(figure.axes) == (2 if table[0]["kl_to_optimum"] else 1)
    with pytest.raises(ValueError, match="no run of this sweep has finished"):
        sweep_plots.draw(made, [row | {"status": "stopped"} for row in table])


def test_nothing_is_above_its_gap_when_it_is_written_with_two_digits():
    for gap in (0.0981, 0.2, 3.01e-5, 0.0999, 12.1):
        assert gap <= float(sweep_plots._up(gap)) <= 1.11 * gap
    assert sweep_plots._up(1e-15) == "0"


def test_the_fields_that_make_a_world_are_those_that_runs_of_one_stack_share():
    assert set(grid.WORLD) <= set(stacked.SHARED)
