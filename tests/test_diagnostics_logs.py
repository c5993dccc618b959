"""What a log is read from: names, units and signs of each source, and everything that is refused."""

import json
import math

import numpy as np
import pytest

from kltutor.diagnostics import COLUMNS, PRESETS, Log, read_log
from kltutor.run import Run
from kltutor.train import train

ROWS = [{"step": 0, "kl": 0.0, "reward": 1.0}, {"step": 2, "kl": 0.25, "reward": 1.5}]


def written(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "text",
    [
        "step,kl,reward\n0,0.0,1.0\n2,0.25,1.5\n",
        "# commit 1234\nstep,reward,kl,other\n0,1.0,0.0,x\n2,1.5,0.25,y\n",
        lines(ROWS),
        "\n" + lines(ROWS) + '{"step": 3, "kl',  # a kill cut the last line short
        json.dumps(ROWS),
        json.dumps({"log_history": [*ROWS, {"step": 2, "train_runtime": 8.5}]}),
        lines([{"step": row["step"], "data": {"kl": row["kl"], "reward": row["reward"]}} for row in ROWS]),
        lines([*ROWS[:1], {"step": 2, "kl": 0.25}, {"step": 2, "reward": 1.5}]),
        '"Step","a - kl","a - kl__MIN","a - reward"\n"0","0.0","0.0","1.0"\n"2","0.25","0","1.5"\n',
    ],
    ids=["csv", "csv+", "lines", "cut", "list", "history", "verl's file", "split rows", "W&B"],
)
def test_every_format_gives_the_same_columns(tmp_path, text):
    log = read_log(written(tmp_path, text))
    assert {name: values.tolist() for name, values in log.columns.items()} == {
        "step": [0, 2],
        "kl": [0, 0.25],
        "reward": [1, 1.5],
    }
    assert log["step"].dtype == np.float64
    assert not log["kl"].flags.writeable


def test_a_value_that_a_row_lacks_is_nan_and_is_no_other_rows(tmp_path):
    log = read_log(written(tmp_path, "step,kl,gold\n0,0.5,\n1,,2.0\n2,1.5,nan\n"))
    assert [math.isnan(value) for value in log["kl"]] == [False, True, False]
    assert [math.isnan(value) for value in log["gold"]] == [True, False, True]
    assert log.of_rows("gold")[0].tolist() == [1]
    assert log.has("kl")
    assert log.has("gold")
    assert not log.has("kl", "gold")


def test_our_own_log_is_read_without_its_exact_quantities(tmp_path):
    run = Run(algorithm="rloo", task="small", steps=3, exact_every=2, batch=8, group=4)
    records = list(train(run, folder=tmp_path / "run"))
    logs = [
        Log.from_records(records),
        read_log(tmp_path / "run"),
        read_log(tmp_path / "run" / "log.jsonl", preset="kltutor"),
    ]
    for log in logs:
        assert log["step"].tolist() == [0, 1, 2, 3]
        assert log["batch"].tolist()[:3] == [8, 8, 8]
        for name in set(COLUMNS) & set(records[1].sampled):
            assert log[name][1] == records[1].sampled[name], name
        assert log["kl"][2] != records[2].exact.kl
        assert log["length"][2] != records[2].exact.length
        assert math.isnan(log["kl"][3])  # the last record draws nothing
        gold = [record.exact.gold if record.exact else math.nan for record in records]
        np.testing.assert_array_equal(log["gold"], gold)
        assert log["beta"].tolist() == [run.beta] * 4


LEAST = {  # of each preset: the file's names, and what they become with a length of 10 tokens
    "trl-grpo": (
        {"step": 1, "kl": 0.2, "completions/mean_length": 10, "reward": 3, "reward_std": 9, "entropy": 0.5},
        {"k3_token": 0.2, "k3": 2.0, "length": 10, "reward": 3, "entropy_token": 0.5, "entropy": 5.0},
    ),
    "trl-rloo": (
        {"step": 1, "kl": -0.2, "completions/mean_length": 10, "clip_ratio/region_mean": 0.25},
        {"kl_token": -0.2, "kl": -2.0, "length": 10, "clip_fraction": 0.25},
    ),
    "trl-ppo": (
        {
            "global_step": 1,
            "episode": 64,
            "objective/kl": 2.0,
            "objective/non_score_reward": -0.1,
            "objective/scores": 3,
            "objective/rlhf_reward": 2.9,
            "objective/entropy": 77,
            "policy/approxkl_avg": 0.01,
            "policy/clipfrac_avg": 0.25,
        },
        {"episodes": 64, "kl": 2.0, "penalty": -0.1, "reward": 3, "kl_step": 0.01, "clip_fraction": 0.25},
    ),
    "verl": (
        {
            "step": 1,
            "actor/ppo_kl": 0.01,
            "actor/reward_kl_penalty": 0.2,
            "actor/reward_kl_penalty_coeff": 0.05,
            "actor/kl_loss": 0.3,
            "actor/entropy": 0.5,
            "actor/pg_clipfrac": 0.25,
            "critic/score/mean": 3,
            "critic/rewards/mean": 2.9,
            "response_length/mean": 10,
        },
        {
            "kl_step": 0.01,
            "kl_token": 0.2,
            "kl": 2.0,
            "beta": 0.05,
            "k3_token": 0.3,
            "k3": 3.0,
            "entropy_token": 0.5,
            "entropy": 5.0,
            "clip_fraction": 0.25,
            "reward": 3,
            "penalty": -0.1,
            "length": 10,
        },
    ),
    "openrlhf": (
        {
            "train/global_step": 1,
            "train/logprobs_diff": -0.2,
            "train/kl": 10.0,
            "train/ppo_kl": 0.01,
            "train/ppo_clip_ratio": 0.25,
            "train/entropy_loss": 0.5,
            "train/reward": 8,
            "train/rollout/reward_mean": 3,
            "train/rollout/reward_std": 1.5,
            "train/rollout/response_length_mean": 10,
            "train/rollout/num_samples": 128,
        },
        {
            "kl_token": -0.2,
            "kl": -2.0,
            "kl_step": 0.01,
            "clip_fraction": 0.25,
            "entropy_token": 0.5,
            "entropy": 5.0,
            "reward": 3,
            "reward_sd": 1.5,
            "length": 10,
            "batch": 128,
        },
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_each_number_its_name_unit_and_sign(tmp_path, preset):
    row, expected = LEAST[preset]
    log = read_log(written(tmp_path, lines([row]), "log.jsonl"), preset=preset)
    found = {name: float(values[0]) for name, values in log.columns.items()}
    assert found == pytest.approx(expected | {"step": 1})
    for remark in PRESETS[preset].remarks:
        assert any(remark[1:] in note for note in log.notes)
    used = {name for names in PRESETS[preset].names.values() for name in names}
    assert set(PRESETS[preset].names) | set(PRESETS[preset].differences) <= COLUMNS.keys()
    assert {"objective/entropy", "objective/rlhf_reward", "reward_std", "reward_fn"}.isdisjoint(used)


@pytest.mark.parametrize("preset", PRESETS)
def test_names_are_recognised_only_if_one_preset_has_them(tmp_path, preset):
    path = written(tmp_path, lines([LEAST[preset][0]]), "log.jsonl")
    if preset == "trl-grpo":
        with pytest.raises(ValueError, match="trl-grpo or trl-rloo"):
            read_log(path)
        assert read_log(path, {"k3_token": "kl"})["k3_token"].tolist() == [0.2]
    else:
        log = read_log(path)
        assert f"The names are those of {preset}" in log.notes[0]
        assert log.columns.keys() == read_log(path, preset=preset).columns.keys()


def test_two_presets_in_one_file_are_not_guessed_between(tmp_path):
    row = {"step": 1, "kl": 2.0} | LEAST["verl"][0] | LEAST["trl-ppo"][0]
    assert read_log(written(tmp_path, lines([row]))).columns.keys() == {"step", "kl"}


def test_mapped_names_go_before_a_preset_and_constants_fill_what_a_log_lacks(tmp_path):
    row = LEAST["trl-rloo"][0] | {"rewards/judge/mean": 7.0}
    columns = {"gold": "rewards/judge/mean", "beta": 0.05, "batch": 64, "length": "clip_ratio/region_mean"}
    log = read_log(written(tmp_path, lines([row, row | {"step": 2}])), columns, preset="trl-rloo")
    assert log["gold"].tolist() == [7.0, 7.0]
    assert log["beta"].tolist() == [0.05, 0.05]
    assert log["batch"].tolist() == [64, 64]
    assert log["length"].tolist() == [0.25, 0.25]
    assert log["kl"].tolist() == pytest.approx([-0.05, -0.05])
    assert not log.logged("kl")
    assert log.derived["kl"] == "kl_token · length"


def test_the_batch_follows_from_the_episodes():
    log = Log.of({"step": np.array([0.0, 1, 3, 4]), "episodes": np.array([16.0, 32, 64, 64])}, "a log")
    np.testing.assert_array_equal(log["batch"], [16, 16, 16, math.nan])


def test_infinite_values_count_as_missing_and_are_told(tmp_path):
    log = read_log(written(tmp_path, "step,kl,reward\n0,0.5,1\n1,inf,1\n"))
    assert math.isnan(log["kl"][1])
    assert log.notes == ("kl is infinite at step 1; such values count as missing.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "holds no rows"),
        ("step,kl\n", "holds no rows"),
        ("no table at all", "neither JSON nor CSV"),
        ('{"step": 0, "kl": 1}\n{"step": 1, "kl"\n{"step": 2, "kl": 1}\n', "line 2, is no JSON"),
        ('{"step": 0, "kl": 1}\n{"step": 1, "kl"\n', "line 2, is no JSON"),
        ('{"step": 0, "kl": 1}\n7\n', "line 2, is no JSON object"),
        ("[1, 2]", "no list of objects"),
        ("step,kl\n0,1,2\n", "row 2, has 3 cells, but the header 2"),
        ("step,kl\n0,1\n1,low\n", "column 'kl' of .* holds 'low'; a number is expected"),
        ("epoch,kl\n0,1\n", "no column step: epoch, kl"),
        ("step,loss\n0,1\n", "no row with a number in the columns step"),
        ("step,kl\n0,nan\n1,\n", "no row with a number in the columns step, kl"),
        ("step,kl\n0,1\n2,1\n1,1\n", "step 1 comes after step 2"),
        ("step,kl\n0,1\n1,1\n1,2\n", "step 1 comes twice .* kl 1 and 2.*resumed"),
        ("step,kl\n0,1\n,1\n", "step of row 1 is nan"),
        ("Step,a - kl,b - kl\n0,1,2\n", "'kl' twice. Export one run alone"),
    ],
)
def test_what_is_no_log_is_refused_by_name(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_log(path)
    assert str(path) in str(caught.value) or "step of row" in message


def test_other_errors_name_what_came_and_what_was_expected(tmp_path):
    path = written(tmp_path, "step,kl\n0,1\n1,1\n")
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        read_log(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        read_log(tmp_path)
    with pytest.raises(ValueError, match="preset is 'trl'; one of kltutor, trl-grpo"):
        read_log(path, preset="trl")
    with pytest.raises(ValueError, match="column 'kl_divergence' is unknown; one of step, beta"):
        read_log(path, {"kl_divergence": "kl"})
    with pytest.raises(ValueError, match=r"column kl is to be 'KL', which .*log.csv lacks: step, kl"):
        read_log(path, {"kl": "KL"})
    (tmp_path / "raw.bin").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"raw\.bin is no text"):
        read_log(tmp_path / "raw.bin")
    with pytest.raises(ValueError, match=r"row 0, is no record .* it lacks episodes, beta, sampled"):
        read_log(path, preset="kltutor")
    with pytest.raises(ValueError, match="records holds no records"):
        Log.from_records([])
    own = written(
        tmp_path, lines([{"step": 0, "episodes": 4, "beta": 0.1, "sampled": {"kl": 0.0}}]), "log.jsonl"
    )
    with pytest.raises(ValueError, match="columns are mapped, but"):
        read_log(own, {"kl": "KL"})
    steps = np.arange(3.0)
    with pytest.raises(ValueError, match="'kl2' is no column of a log"):
        Log.of({"step": steps, "kl2": steps}, "a log")
    with pytest.raises(ValueError, match="kl has 2 rows and step 3"):
        Log.of({"step": steps, "kl": steps[:2]}, "a log")
    with pytest.raises(ValueError, match="no column with a number beside"):
        Log.of({"step": steps, "kl": steps * math.nan}, "a log")
    with pytest.raises(KeyError, match="'KL' is no column"):
        Log.of({"step": steps, "kl": steps}, "a log")["KL"]
