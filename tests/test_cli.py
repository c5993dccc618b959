"""The command line: what it prints and how it ends."""

import json

import pytest
from typer.testing import CliRunner

import kltutor
from kltutor import claims, cli


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
    assert "verify" in run("--help").output
    assert run("nonsense").exit_code == 2


def test_main_is_the_entry_point(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kltutor", "--version"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("kltutor ")
