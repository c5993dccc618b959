"""`kltutor check`: what it prints, how it ends, and its one line where a function cannot be used."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from kltutor import cli
from kltutor.audit import check
from kltutor.libraries import terms

MODULE = """
import torch

print("imported", flush=True)


def k3(logp, ref_logp):
    print("called")
    return torch.exp(ref_logp - logp) - 1 - (ref_logp - logp)


def wrong_shape(logp, ref_logp):
    return (logp - ref_logp).sum()


def raises(logp, ref_logp):
    raise KeyError("beta is\\nmissing")


def not_a_number(logp, ref_logp):
    return (logp - ref_logp) * float("nan")


def a_list(logp, ref_logp):
    return [1.0]


def of_the_sequence(logp, ref_logp, mask):
    return ((logp - ref_logp) * mask).sum(-1)


class Losses:
    @staticmethod
    def k1(logp, ref_logp):
        return logp - ref_logp


constant = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with a module of functions, and forget it afterwards."""
    (tmp_path / "house_losses.py").write_text(MODULE)
    (tmp_path / "house_broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("house_losses", "house_broken"):
        sys.modules.pop(name, None)


def run(*arguments):
    return CliRunner().invoke(cli.app, ["check", *arguments])


def test_it_prints_the_table_and_the_words():
    result = run("kltutor.estimators:k3")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for words in ("k3(logp, ref_logp)", "Gradient as a loss", "∇KL(ref‖π) per token", "e^(-d) + d - 1"):
        assert words in text
    assert check(__import__("kltutor").k3).words in text


def test_json_is_the_verdict_and_nothing_else_whatever_the_function_prints():
    result = run("house_losses:k3", "--json", "--expect", "reverse-kl")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["value"] == "KL(π‖ref)"
    assert record["gradient"] == "∇KL(ref‖π) per token"
    assert "imported" in result.stderr
    assert "called" in result.stderr


@pytest.mark.parametrize(
    ("expectations", "status", "says"),
    [
        ((), 0, ""),
        (("--expect", "reverse-kl"), 0, ""),
        (("--expect-gradient", "forward"), 0, ""),
        (("--expect", "reverse-kl", "--expect-gradient", "forward"), 0, ""),
        (
            ("--expect-gradient", "reverse"),
            1,
            "gradient: reverse is expected, ∇KL(π‖ref), but it is ∇KL(ref‖π)",
        ),
        (("--expect", "reverse-kl", "--expect-gradient", "reverse"), 1, "gradient: reverse"),
        (("--expect", "forward-kl"), 1, "value: forward-kl is expected, KL(ref‖π), but it is KL(π‖ref)."),
    ],
)
def test_the_status_tells_whether_it_is_as_expected(expectations, status, says):
    result = run("house_losses:k3", "--json", *expectations)
    assert result.exit_code == status
    assert says in result.stderr
    assert ("Not as expected" in result.stderr) == bool(status)


def test_inputs_and_returns_say_how_to_call_it():
    inputs = "logp, ref_logp, old_logp, mask"
    result = run("kltutor.libraries.terms:k3_clamped", "--inputs", inputs, "--json")
    expected = check(terms.k3_clamped, inputs=tuple(inputs.split(", "))).to_dict()
    assert json.loads(result.stdout) == expected
    result = run(
        "house_losses:of_the_sequence",
        "--inputs=logp,ref_logp,mask",
        "--returns=sequence",
        "--expect=reverse-kl",
        "--expect-gradient=none",
    )
    assert result.exit_code == 0
    assert run("house_losses:Losses.k1", "--expect", "reverse-kl").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("house_losses:wrong_shape",), "wrong_shape, called with logp (12, 3)"),
        (
            ("house_losses:raises",),
            "raises, called with logp (12, 3), ref_logp (12, 3) (completions, near), raised",
        ),
        (("house_losses:not_a_number",), "not_a_number returned nan"),
        (("house_losses:a_list",), "returned list; a token value of shape (12, 3) is expected"),
        (("house_losses:missing",), "house_losses has no missing."),
        (("house_losses:constant",), "constant of house_losses is int; a function is expected."),
        (("house_losses",), "'house_losses' is not of the form package.module:function."),
        ((":k3",), "':k3' is not of the form"),
        (("house_missing:k3",), "house_missing could not be imported: ModuleNotFoundError"),
        (
            ("house_broken:k3",),
            "house_broken could not be imported: ModuleNotFoundError: No module named 'a_mod",
        ),
        (
            ("house_losses:k3", "--inputs", "logp,reference"),
            "inputs are ('logp', 'reference'); names of positional",
        ),
        (("house_losses:k3", "--returns", "rows"), "'rows' is not one of"),
        (("house_losses:k3", "--expect", "kl"), "'kl' is not one of"),
        (("house_losses:k3", "--expect-gradient", "kl"), "'kl' is not one of"),
        ((), "Missing argument 'MODULE:FUNCTION'"),
    ],
)
def test_what_cannot_be_used_ends_with_status_2_and_one_line(arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line not in ("imported", "called")]
    assert line.startswith("Error: ")
    assert says in line
    assert result.stdout == ""


def test_a_module_in_the_current_directory_is_found_from_the_shell(tmp_path):
    program = "import sys; from kltutor.cli import main; sys.argv[0] = 'kltutor'; main()"
    command = [
        sys.executable,
        "-P",
        "-c",
        program,
        "check",
        "house_losses:k3",
        "--expect-gradient",
        "reverse",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert "KL(π‖ref)" in result.stdout
    assert "Not as expected" in result.stderr
