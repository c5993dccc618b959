"""Sweeps on Ray: the same table as here, also when a worker is killed in the middle of a unit."""

import contextlib
import csv
import functools
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kltutor import cli, engines, plots, sweep_plots, tables, units
from kltutor.grid import Grid
from kltutor.run import Run
from kltutor.sweep import Sweep

pytestmark = [
    pytest.mark.slow,
    # On CI a missing Ray is an error, from the fixture.
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None and os.environ.get("CI") != "true",
        reason="Ray is not installed: pip install 'kltutor[scale]'",
    ),
]
GRID = Grid(
    {"algorithm": "rloo", "task": "bandit", "exact_every": 50, "steps": 150},
    {"beta": [0.3, 1.0], "seed": [0, 1]},
)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two workers, started as `--address local` starts them."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
        patch.setattr(ray, "init", functools.partial(ray.init, num_cpus=2))
        with contextlib.ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # what a failed start leaves behind says so
                for attempt in range(3):  # Ray gives itself 30 s, which a busy machine may not have
                    try:
                        stack.enter_context(engines._cluster(engines.HERE))
                        break
                    except ValueError:
                        if attempt == 2:
                            raise
                    gc.collect()
            yield ray


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The sweep worked off in this process."""
    sweep = Sweep(tmp_path_factory.mktemp("here"), GRID, size=1)
    for unit, outcome in engines.in_process(sweep.units):
        sweep.keep(unit, outcome)
    return sweep


def busy():
    """Return the processes of workers that are at a unit; Ray names them so."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                title = (process / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if title.startswith(b"ray::") and b"_there" in title:
                found.append(int(process.name))
    return found


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def killed():
    """Kill a worker that has been at a unit for a tenth of a second, and hold its number."""
    found, over = [], threading.Event()

    def watch():
        while not found and not over.is_set():
            seen = busy()
            time.sleep(0.1)
            for each in set(seen) & set(busy()):
                os.kill(each, signal.SIGKILL)
                found.append(each)
                return

    killer = threading.Thread(target=watch)
    killer.start()
    yield found
    over.set()
    killer.join()


def test_with_one_of_two_workers_killed_the_tables_are_the_same_to_the_last_digit(
    here, cluster, killed, tmp_path
):
    address = cluster.get_runtime_context().gcs_address  # another process finds the cluster by it
    code = "from kltutor import plots, sweep_plots, cli\n"
    code += "sweep_plots.draw = plots.save = lambda *given: None\ncli.main()"
    options = [f"--{name.replace('_', '-')}={GRID.base[name]}" for name in ("task", "exact_every", "steps")]
    axes = [f"--grid={name}={','.join(map(str, values))}" for name, values in GRID.axes.items()]
    command = [sys.executable, "-W", "error", "-c", code, "sweep", "rloo", *options, *axes]
    command += ["--unit-size", "1", "--engine", "ray", "--address", address, "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert killed
    tables.write(tables.final(here), tmp_path / "here.csv")
    tables.write(tables.measurements(here), tmp_path / "measured here.csv")
    assert without_time(read(tmp_path / "table.csv")) == without_time(read(tmp_path / "here.csv"))
    assert without_time(read(tmp_path / "records.csv")) == without_time(read(tmp_path / "measured here.csv"))
    assert [row["status"] for row in tables.final(here)] == ["finished"] * 4


def test_without_a_retry_the_killed_unit_is_lost_and_no_other_and_then_made_again(
    here, killed, tmp_path, monkeypatch
):
    monkeypatch.setattr(engines, "RETRIES", 0)
    there, errors = Sweep(tmp_path, GRID, size=1), {}
    for unit, outcome in engines.on_ray(there.units):
        if isinstance(outcome, str):
            errors[unit.name] = outcome
        else:
            there.keep(unit, outcome)
    assert killed
    (message,) = errors.values()
    assert "its worker was lost 1 time " in message
    lost = there.left()
    assert [unit.name for unit in lost] == list(errors)
    assert [row["status"] for row in tables.final(there, errors)].count("failed") == 1
    for unit, outcome in engines.on_ray(lost):
        there.keep(unit, outcome)
    assert without_time(tables.final(there)) == without_time(tables.final(here))


def test_a_cluster_of_our_own_reports_no_usage(cluster):
    said = cluster.remote(lambda: os.environ.get("RAY_USAGE_STATS_ENABLED"))
    assert cluster.get(said.remote()) == "0"


def test_a_worker_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(engines, "versions", lambda: {"kltutor": "9.9", "torch": "2"})
    ((_, outcome),) = engines.on_ray(units.cut([Run(steps=1)], 1))
    assert "ValueError: a worker of the cluster has kltutor 0." in outcome
    assert "kltutor 9.9 and torch 2 is expected" in outcome


def test_an_error_on_a_worker_is_that_of_its_unit():
    made = units.cut([Run(task="bandit", steps=1), Run(task="given", steps=2)], 1)
    outcomes = dict(engines.on_ray(made))
    assert isinstance(outcomes[made[0]], dict)
    assert outcomes[made[1]].startswith("ValueError: task is 'given'")


def test_a_cluster_that_cannot_run_the_units_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *given: None)
    monkeypatch.setattr(sweep_plots, "draw", lambda *given: None)
    options = ["sweep", "rloo", "--device", "cuda", "--out", str(tmp_path), "--engine", "ray"]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 2
    assert "--address is 'auto', a cluster without a GPU" in result.stderr
