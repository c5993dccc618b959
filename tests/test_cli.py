"""The command line: what it prints and how it ends."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
from typer.testing import CliRunner

import kltutor
from kltutor import claims, cli, flags, plots, session
from kltutor import train as loop
from kltutor.checkpoints import load, read_log
from kltutor.controllers import UnreachableTargetWarning
from kltutor.finite import NonFiniteError
from kltutor.run import Run


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def failing(monkeypatch):
    """Add a claim that does not hold, for one test."""

    def check():
        raise AssertionError("2 is not [3]")

    claims.all_claims()
    monkeypatch.setattr(claims, "_registry", dict(claims._registry))
    claims.claim("KL-199", section="1.1", says="Two is $3$.", verdict="holds", kind="exact")(check)


def test_verify_prints_the_claim_its_evidence_and_a_summary():
    result = run("verify", "--only", "KL-103")
    assert result.exit_code == 0
    for words in ("KL-103", "1.1", "KL(a ‖ c)", "exact", "holds", "0.51083", "1 of 1 claims hold"):
        assert words in " ".join(result.output.split()), words


def test_only_runs_the_named_claims_in_the_order_named():
    result = run("verify", "--only", "KL-208", "--only", "KL-103", "--json")
    assert [record["id"] for record in json.loads(result.output)] == ["KL-208", "KL-103"]


def test_json_is_one_list_and_nothing_else():
    result = run("verify", "--only", "KL-106", "--json")
    assert result.exit_code == 0
    (record,) = json.loads(result.output)
    assert record["passed"] is True
    assert record["verdict"] == "folklore is wrong"
    assert record["badge"] == "exact · folklore wrong"
    assert record["evidence"]
    assert record["folklore"]


def test_a_claim_that_fails_is_shown_and_ends_with_status_1(failing):
    result = run("verify", "--only", "KL-199", "--only", "KL-103")
    assert result.exit_code == 1
    assert "FAILS" in result.output
    assert "2 is not [3]" in result.output, "square brackets are text, not markup"
    assert "1 of 2 claims hold" in result.output
    result = run("verify", "--only", "KL-199", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)[0]["passed"] is False


def test_an_unknown_id_ends_with_status_2_and_says_so(failing):
    result = run("verify", "--only", "KL-103", "--only", "KL-999")
    assert result.exit_code == 2
    assert "KL-999" in result.stderr
    assert "1 claims" not in result.stdout


def test_version_and_help():
    assert run("--version").output.strip() == f"kltutor {kltutor.__version__}"
    assert all(name in run("--help").output for name in ("train", "plot", "verify"))
    assert run("nonsense").exit_code == 2


def test_main_is_the_entry_point(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kltutor", "--version"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("kltutor ")


SHORT = ("--task", "bandit", "--steps", "6", "--exact-every", "3")


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figure out where it is not what is tested: it takes most of the time."""
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_text("drawn"))


def records(folder):
    """Return the log of a run, less the one field that no seed fixes."""
    return [{k: v for k, v in each.items() if k != "seconds"} for each in read_log(folder / "log.jsonl")]


def interrupt_at(patch, step, times=1):
    """Press Ctrl-C in the middle of a step."""
    make = loop.Training.__next__

    def pressed(training):
        if training.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return make(training)

    patch.setattr(loop.Training, "__next__", pressed)


def refused(*arguments, status=2):
    """Run a command that must fail with one line on stderr, and return it."""
    result = run(*map(str, arguments))
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_every_field_of_a_run_is_an_option_and_what_is_not_given_is_not_passed(monkeypatch):
    names = {field.name for field in dataclasses.fields(Run)}
    assert sorted(flags.FIELDS) == sorted(names - {"algorithm"})
    told = []
    monkeypatch.setattr(session, "Run", lambda **given: told.append(given) or Run(**given))
    monkeypatch.setattr(session, "_watch", lambda training: [])
    run("train", "exact", "--task", "bandit", "--steps", "1")
    assert told == [{"algorithm": "exact", "task": "bandit", "steps": 1}]


@pytest.mark.usefixtures("undrawn")
def test_options_reach_the_field_of_their_name(tmp_path):
    given = {
        "task": "bandit",
        "reward": "proxy",
        "beta": 0.25,
        "kl_estimator": "k2",
        "kl_placement": "loss",
        "kl_level": "sequence",
        "kl_reduction": "sequence_sum",
        "kl_correction": "stopgrad",
        "kl_ratio": "sequence",
        "reduction": "token_mean",
        "batch": 12,
        "group": 3,
        "rate": 0.01,
        "seed": 3,
        "world_seed": 4,
        "dtype": "float32",
        "data_size": 50,
        "steps": 1,
        "max_gradient_norm": 2.0,
    }
    short = {name: name.removeprefix("kl_") for name in given if name != "kl_reduction"}
    options = [f"--{short.get(name, name).replace('_', '-')}={value}" for name, value in given.items()]
    rule = "--controller=ZieglerBeta,target_kl=2,horizon=60,unit=nats per token"
    result = run("train", "grpo", *options, rule, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    rule = {"class": "ZieglerBeta", "target_kl": 2.0, "horizon": 60.0, "unit": "nats per token"}
    assert plots.read(tmp_path).run == Run(algorithm="grpo", controller=rule, **given)


def test_a_run_prints_exact_beside_sampled_numbers_and_keeps_log_checkpoint_and_figure(tmp_path):
    result = run("train", "rloo", *SHORT, "--out", str(tmp_path / "a"))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    kept = ["checkpoint.safetensors", "log.jsonl", "run.png", "run.svg"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == kept
    log = read_log(tmp_path / "a" / "log.jsonl")
    assert len(log) == 7
    lines = [[cell.strip() for cell in row.split("│")] for row in result.stdout.split("\n")]
    rows = {cells[1]: cells[2:5] for cells in lines if len(cells) > 4}
    exact, sampled = log[-1]["exact"], log[-2]["sampled"]
    for title, name, unit in [
        ("KL(π ‖ ref)", "kl", "nats per sequence"),
        ("E[length]", "length", "tokens"),
        ("entropy", "entropy", "nats per sequence"),
    ]:
        assert rows[title] == [session.number(exact[name]), session.number(sampled[name]), unit]
    assert rows["E[gold reward]"][:2] == [session.number(exact["gold"]), session.number(sampled["reward"])]
    assert rows["KL(π ‖ π*)"] == [session.number(exact["kl_to_optimum"]), "", "nats per sequence"]
    for words in ("after step 6", "of step 5", "E[length]", "1536 completions"):
        assert words in " ".join(result.stdout.replace("│", " ").split()), words


def test_without_a_folder_nothing_is_kept_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", "exact", *SHORT)
    assert result.exit_code == 0
    assert "KL(π ‖ π*)" in result.stdout
    assert "No --out" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
def test_the_bar_shows_the_last_exact_record(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    result = run("train", "exact", *SHORT, "--out", str(tmp_path))
    last = read_log(tmp_path / "log.jsonl")[-1]["exact"]
    assert f"KL(π‖ref) {last['kl']:.4f}  KL(π‖π*) {session.number(last['kl_to_optimum'])}" in result.stderr
    assert "exact at step 6" in result.stderr


@pytest.mark.usefixtures("undrawn")
def test_ctrl_c_ends_after_the_step_and_resume_gives_the_run_that_was_never_stopped(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut off"
    run("train", "rloo", *SHORT, "--out", str(whole))
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        result = run("train", "rloo", *SHORT, "--out", str(cut))
    assert result.exit_code == 130
    assert "Stopped at step 5 of 6" in result.stderr
    assert f"kltutor train --out '{cut}' --resume" in result.stderr
    assert load(cut / "checkpoint.safetensors")[1]["step"] == 5
    assert signal.getsignal(signal.SIGINT) is before
    result = run("train", "rloo", "--out", str(cut), "--resume", "--steps", "6")
    assert result.exit_code == 0
    assert records(cut) == records(whole)
    ends = [load(folder / "checkpoint.safetensors")[0] for folder in (cut, whole)]
    assert ends[0].keys() == ends[1].keys()
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 4, times=2)
    result = run("train", "rloo", *SHORT, "--checkpoint-every", "3", "--out", str(tmp_path))
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert load(tmp_path / "checkpoint.safetensors")[1]["step"] == 3
    result = run("train", "rloo", *SHORT)
    assert result.exit_code == 130
    assert "Nothing is kept" in result.stderr


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_over_is_shown_again(tmp_path):
    first = run("train", "rloo", *SHORT, "--out", str(tmp_path))
    log = (tmp_path / "log.jsonl").read_bytes()
    again = run("train", "--out", str(tmp_path), "--resume")
    assert again.exit_code == 0
    assert again.stdout == first.stdout
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_a_value_that_is_not_finite_ends_with_status_1(monkeypatch, tmp_path):
    def fails(training):
        raise NonFiniteError(3, "loss", "lower rate or set max_gradient_norm")

    monkeypatch.setattr(loop.Training, "__next__", fails)
    message = refused("train", "exact", *SHORT, "--out", tmp_path, status=1)
    assert "step 3: loss is not finite" in message
    assert "--max-gradient-norm" in message


def test_a_target_out_of_reach_is_one_line(monkeypatch):
    make = loop.Training.__next__

    def warns(training):
        if training.step == 2:
            warnings.warn("beta has been at upper", UnreachableTargetWarning, stacklevel=1)
        return make(training)

    monkeypatch.setattr(loop.Training, "__next__", warns)
    result = run("train", "exact", *SHORT)
    assert result.exit_code == 0
    assert "Warning: beta has been at upper\n" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ["ALGO", "exact, reinforce"]),
        ("pppo", ["ALGO", "'ppo'"]),
        ("ppo --task words", ["--task", "'small'"]),
        ("ppo --task given", ["--task", "'small'"]),
        ("ppo --horizon 0", ["--horizon", "--help"]),
        ("ppo --steps 0", ["--steps is 0", "at least 1"]),
        ("ppo --steps few", ["--steps", "integer"]),
        ("ppo --beta -1", ["--beta is -1", "at least 0"]),
        ("dpo --clip-eps 0.2", ["--clip-eps is 0.2", "Leave it out"]),
        ("ppo --kl-estimator full", ["--kl-estimator is 'full'", "--kl-placement loss"]),
        ("ppo --placement none", ["--kl-placement is 'none'", "--beta 0"]),
        ("rloo --group 3", ["--batch is", "group"]),
        ("ppo --device warp", ["--device is 'warp'", "--device cpu"]),
        ("ppo --device cuda:99", ["--device is 'cuda:99'", "--device cpu"]),
        ("ppo --device gpu", ["--device is 'gpu'", "--device cpu"]),
        ("ppo --seed -1", ["--seed is -1", "from 0"]),
        ("ppo --kl-level sequence", ["--kl-level is 'sequence'", "Set --kl-placement loss"]),
        ("ppo --kl-placement loss --kl-ratio token", ["--kl-ratio is 'token'", "--kl-correction stopgrad"]),
        ("exact --policy gpt --optimiser natural", ["--optimiser is 'natural'", "--policy tabular"]),
        ("dpo --data rollouts", ["--data is 'rollouts'", "'fresh'"]),
        ("ppo --controller ZieglerBeta,target_kl=a,horizon=1", ["--controller: ", "'target_kl'", "float"]),
        ("ppo --controller ZieglerBeta,target_kl=1", ["--controller: ", "missing", "'horizon'"]),
        ("ppo --device meta", ["--device is 'meta'", "--device cpu"]),
        ("ppo --device mps", ["--device is 'mps'", "--dtype float32"]),
        ("ppo --controller Zieg", ["--controller has class 'Zieg'", "ZieglerBeta"]),
        ("ppo --controller ZieglerBeta,target_kl", ["--controller has 'target_kl'", "name=value"]),
        ("ppo --controller ZieglerBeta,target_kl=a,horizon=1", ["--controller", "ZieglerBeta"]),
        ("ppo --controller ZieglerBeta,target_kl=-1,horizon=1", ["--controller: target_kl is -1", "above 0"]),
        ("dpo --controller ZieglerBeta,target_kl=1,horizon=1", ["--controller"]),
        ("--resume", ["--resume", "--out"]),
        ("--resume --out nowhere", ["--out nowhere", "Leave out --resume"]),
        ("exact --task bandit --steps 1 --out file", ["file", "another folder"]),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_in_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    message = refused("train", *arguments.split())
    for word in words:
        assert word in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("undrawn")
def test_a_folder_with_a_run_takes_no_other_run_and_resume_no_other_options(tmp_path):
    run("train", "exact", *SHORT, "--out", str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "--resume" in refused("train", "exact", *SHORT, "--out", tmp_path)
    for given in (["--beta", "0.1"], ["--seed", "1"], ["--controller", "FixedBeta"], ["dpo"]):
        message = refused("train", *given, "--out", tmp_path, "--resume")
        assert ("ALGO is 'dpo'" if given == ["dpo"] else given[0]) in message
        assert "Leave it out" in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run("train", "exact", *SHORT, "--out", str(tmp_path), "--resume").exit_code == 0


@pytest.mark.parametrize("command", [["train", "--resume", "--out"], ["plot"]])
def test_a_damaged_checkpoint_and_one_of_other_options_are_refused(tmp_path, command):
    run("train", "exact", *SHORT, "--out", str(tmp_path))
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert "start the run again" in refused(*command, tmp_path)
    path.write_bytes(whole.replace(b"exact_every", b"exact_never"))
    message = refused(*command, tmp_path)
    assert "no run of this version" in message
    assert "exact_never" in message
    assert "start the run again in another folder" in message
    path.write_bytes(whole)
    if command[0] == "train":
        (tmp_path / "log.jsonl").write_text("{}\n")
        assert "belongs to the checkpoint" in refused(*command, tmp_path)


def test_plot_overlays_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, beta in (("a", "0.5"), ("b", "1")):
        run("train", "exact", *SHORT, "--beta", beta, "--out", name)
    shown = []
    overlay = plots.overlay
    monkeypatch.setattr(plots, "overlay", lambda *given: shown.append(given) or overlay(*given))
    result = run("plot", "a", "b", "--quantity", "gold", "--quantity", "kl", "--against", "episodes")
    assert result.exit_code == 0, result.output
    assert "runs.svg" in result.stdout
    assert (tmp_path / "runs.svg").stat().st_size > 1000
    ((runs, quantities, against),) = shown
    assert [logged.name for logged in runs] == ["a", "b"]
    assert (quantities, against) == (["gold", "kl"], "episodes")
    assert "no/one.svg" in refused("plot", "a", "--out", "no/one.svg")
    assert run("plot", "a", "--out", "one.png").exit_code == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("undrawn")
def test_plot_refuses_what_it_cannot_draw_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("train", "exact", *SHORT, "--out", "a")
    assert "--quantity is 'x'" in refused("plot", "a", "--quantity", "x")
    assert "--against is 'x'" in refused("plot", "a", "--against", "x")
    assert "--out is one.txt" in refused("plot", "a", "--out", "one.txt")
    assert "nowhere" in refused("plot", "nowhere")
    assert "DIR" in refused("plot")


def test_the_command_trains_in_a_pipe_without_display_or_notebook(tmp_path):
    quiet = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "FORCE_COLOR")}
    code = "import sys; sys.modules |= {'matplotlib_inline': None, 'IPython': None}; "
    code += "from kltutor.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "exact", *SHORT, "--out", "run"]
    result = subprocess.run(command, env=quiet, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert "nats per sequence" in result.stdout
    assert (tmp_path / "run" / "run.svg").exists()
