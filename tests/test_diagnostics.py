"""What a diagnosis promises: each mode from its own signature, nothing from noise, no guess without data."""

import io
import json
import math

import numpy as np
import pytest
import typer
from IPython.lib.pretty import pretty
from rich.console import Console
from typer.testing import CliRunner

from kltutor import diagnosis_session
from kltutor.diagnostics import COLUMNS, HEALTHY, MODES, Log, diagnose, plot, read_log
from kltutor.diagnostics.remedies import EXPLAINS, REMEDIES, SECTIONS
from kltutor.flags import OneLine

STEPS, BATCH, BETA, EVERY = 100, 256, 0.3, 5
BITS = math.log(2)


def made(seed=0, *, kl=None, reward=None, gold=None, length=None, entropy=None, sd=1.0, **rest):
    """A log of a run that settles, with the noise of means over BATCH completions; curves may be replaced."""
    rng = np.random.default_rng(seed)
    step = np.arange(STEPS, dtype=float)
    way = 1 - np.exp(-step / 15)

    def curve(given, usual):
        return usual if given is None else given(way, step)

    def noisy(mean, spread):
        return mean + spread * rng.standard_normal(STEPS) / math.sqrt(BATCH)

    true_kl = curve(kl, 1.5 * way)
    spread = np.sqrt(2 * np.abs(true_kl))
    columns = {
        "step": step,
        "beta": np.full(STEPS, BETA),
        "kl": noisy(true_kl, spread),
        "kl_sd": spread,
        "reward": noisy(curve(reward, 1.5 * way), sd),
        "reward_sd": np.full(STEPS, sd),
        "length": noisy(curve(length, 4 + 0.5 * way), 1.0),
        "entropy": noisy(curve(entropy, 4 - way), 1.0),
        "batch": np.full(STEPS, float(BATCH)),
    }
    columns["k3"] = columns["kl"] + np.abs(true_kl) * rng.standard_normal(STEPS) / math.sqrt(BATCH)
    columns["kl_token"] = columns["kl"] / columns["length"]
    columns["penalty"] = -columns["beta"] * columns["kl"]
    held = np.full(STEPS, np.nan)
    held[::EVERY] = (curve(gold, 1.4 * way) + 0.01 * rng.standard_normal(STEPS))[::EVERY]
    columns["gold"] = held
    columns |= {name: values(columns) for name, values in rest.items()}
    return Log.of({name: values for name, values in columns.items() if values is not None}, "a log")


def without(log, *names):
    return Log.of({name: log[name] for name in log.columns if name not in names}, "a log")


def late(way, step):
    return np.clip((step - 30) / 60, 0, 1)


def swinging(columns):
    return 0.3 * np.exp(1.5 * np.sin(columns["step"] / 5))


SIGNATURES = {
    "healthy": made,
    "collapse": lambda seed: made(seed, kl=lambda way, step: 0.002 * way, reward=lambda way, step: 0 * way),
    "runaway": lambda seed: made(
        seed,
        kl=lambda way, step: 0.09 * step,
        reward=lambda way, step: 0.05 * step,
        gold=lambda way, step: way - 1.5 * late(way, step),
        length=lambda way, step: 4 + 0.05 * step,
        entropy=lambda way, step: 4 - 0.035 * step,
        beta=lambda columns: np.full(STEPS, 0.01),
        penalty=lambda columns: -0.01 * columns["kl"],
    ),
    "over-optimisation": lambda seed: made(
        seed,
        gold=lambda way, step: way - 0.6 * late(way, step),
        reward=lambda way, step: way + late(way, step),
        kl=lambda way, step: way + late(way, step),
    ),
    "length-drift": lambda seed: made(
        seed,
        length=lambda way, step: 4 + 4 * step / STEPS,
        reward=lambda way, step: 2 * step / STEPS,
        gold=lambda way, step: 1 - np.exp(-step / 8),
    ),
    "wrong-reference": lambda seed: made(seed, kl=lambda way, step: 0.8 + 0.5 * way),
    "moving-reference": lambda seed: made(
        seed, kl=lambda way, step: 0.4 * way * np.exp(-step / 15), k3=lambda columns: columns["kl"]
    ),
    "controller-oscillation": lambda seed: made(
        seed,
        kl=lambda way, step: 1.2 + 0.8 * np.sin(step / 5 + 1) - 2 * np.exp(-step / 2),
        beta=swinging,
        penalty=lambda columns: -swinging(columns) * columns["kl"],
    ),
    "negative-kl": lambda seed: made(seed, kl=lambda way, step: -way),
    "unit-mix-up": lambda seed: made(seed, penalty=lambda columns: -2 * BETA * columns["kl"]),
}


@pytest.mark.parametrize("mode", SIGNATURES)
def test_each_signature_is_named_under_five_noises(mode):
    for seed in range(5):
        report = diagnose(SIGNATURES[mode](seed))
        assert report.mode == mode, (seed, report.to_dict())
        if mode != HEALTHY:
            found = report.findings[0]
            assert found.evidence
            assert found.what_to_try
            assert f"{found.measure:.3g}, where {found.threshold:.3g} decides" in found.confidence
            assert set(found.columns) <= COLUMNS.keys()


def test_noise_alone_is_told_healthy():
    """200 runs that settle, with Gaussian noise of the size of batch means; 3 % would be 6."""
    wrong = [seed for seed in range(200) if diagnose(made(seed)).mode != HEALTHY]
    assert len(wrong) <= 2, wrong


def test_a_flat_log_fires_nothing_but_that_nothing_moved():
    still = made(
        kl=lambda way, step: 0 * way, reward=lambda way, step: 0 * way, gold=lambda way, step: 0 * way
    )
    report = diagnose(still)
    assert [found.mode for found in report.findings] == ["collapse"]
    constant = {name: np.full(20, 0.5) for name in ("kl", "reward", "gold", "length")}
    report = diagnose(Log.of({"step": np.arange(20.0)} | constant, "a log"))
    assert [found.mode for found in report.findings] == [
        "wrong-reference"
    ]  # 0.5 nats at step 0, without noise


@pytest.mark.parametrize(
    ("penalty", "cause"),
    [
        (lambda c: -BETA * c["kl_token"], "mean over tokens for their sum"),
        (lambda c: -BETA * c["kl"] / BITS, "bits for nats"),
        (lambda c: -BETA * c["kl"] * BITS, "nats for bits"),
        (lambda c: -2 * BETA * c["kl"], "counted twice"),
        (lambda c: -BETA * c["kl"] / 2, "half of it charged"),
        (lambda c: 0 * c["kl"], "coefficient never used"),
        (lambda c: BETA * c["kl"], "wrong sign"),
        (lambda c: -3.7 * BETA * c["kl"], "a factor of 3.7"),
    ],
)
def test_a_wrong_penalty_is_traced_to_its_unit(penalty, cause):
    found = diagnose(made(penalty=penalty)).findings[0]
    assert (found.mode, found.cause) == ("unit-mix-up", cause)


@pytest.mark.parametrize(
    "penalty",
    [
        lambda c: -BETA * c["kl"] * 1.001,
        lambda c: -BETA * c["k3"],
        lambda c: -BETA * np.abs(c["kl"]) ** 1.5,
        lambda c: None,
    ],
    ids=["rounded", "k3", "another estimator", "none"],
)
def test_a_penalty_that_is_no_fixed_multiple_is_no_mix_up_of_units(penalty):
    log = made(penalty=penalty)
    report = diagnose(log)
    assert report.mode == HEALTHY
    said = [*report.remarks, *report.unseen.values()]
    assert any("penalty" in text for text in said) == (
        not log.has("penalty") or "k3" in str(said) or bool(said)
    )


def test_columns_of_two_levels_that_disagree_are_a_mix_up_of_units():
    per_token = made(kl=lambda way, step: way, kl_token=lambda c: c["kl"] / c["length"])
    wrong = Log.of(dict(per_token.columns) | {"kl": per_token["kl_token"]}, "a log")
    found = diagnose(wrong).findings[0]
    assert (found.mode, found.cause) == ("unit-mix-up", "kl is no sum over tokens")
    bits = made(kl_token=lambda c: c["kl"] / c["length"] * BITS)
    assert diagnose(bits).findings[0].cause == "bits for nats"


def test_a_negative_kl_within_its_noise_is_information_and_not_a_fault():
    near = made(
        kl=lambda way, step: 0.1 * way,
        reward=lambda way, step: 0.3 * way,
        kl_sd=lambda c: np.full(STEPS, 2.0),
    )
    noise = np.random.default_rng(1).standard_normal(STEPS) * 2 / math.sqrt(BATCH)
    log = Log.of(
        dict(near.columns) | {"kl": 0.05 + noise, "k3": 0.05 + 0 * noise} | {"kl_token": noise * np.nan},
        "a log",
    )
    report = diagnose(without(log, "penalty"))
    assert "negative-kl" not in [found.mode for found in report.findings]
    (remark,) = report.remarks
    assert f"below 0 at {(log['kl'] < 0).sum()} of {STEPS} steps" in remark


def test_a_negative_kl_is_traced_to_its_cause():
    swapped = made(kl=lambda way, step: -way, k3=lambda c: 1.4 * np.abs(c["kl"]))
    stuck = made(
        kl=lambda way, step: -way, k3=lambda c: 1.4 * np.abs(c["kl"]), reward=lambda way, step: 0 * way
    )
    alone = without(made(kl=lambda way, step: -way), "reward", "reward_sd", "k3", "gold")
    causes = [diagnose(log).findings[0].cause for log in (swapped, stuck, alone)]
    assert causes == ["swapped sign", "sampler mismatch", ""]
    assert diagnose(swapped).findings[0].what_to_try == REMEDIES["negative-kl", "swapped sign"]


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_k1_and_k3_of_unlike_means_show_another_sampler_though_both_are_positive(factor):
    found = diagnose(made(k3=lambda c: factor * c["kl"])).findings[0]
    assert (found.mode, found.cause) == ("negative-kl", "sampler mismatch")
    assert found.measure > 5


def test_a_moving_reference_is_told_by_how_it_moves():
    rise = {"reward": lambda way, step: 2 * way}
    shared = made(kl=lambda way, step: 0 * way, **rise)
    saw = made(kl=lambda way, step: 0.05 * (step % 20) + 0.05 * (step > 0), **rise)
    follows = SIGNATURES["moving-reference"](0)
    causes = [diagnose(log).findings[0].cause for log in (shared, saw, follows)]
    assert causes == ["shared weights", "replaced", "follows the policy"]


def test_the_least_kl_is_a_bound_and_near_the_gaussian_one_for_small_gains():
    """For a reward of any law, every tilt has at least the KL that its gain takes."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        probs, reward = rng.dirichlet(np.full(6, 0.5)), rng.standard_normal(6)
        tilted = probs * np.exp(rng.uniform(0, 6) * reward)
        tilted /= tilted.sum()
        mean = probs @ reward
        spread = math.sqrt(probs @ (reward - mean) ** 2)
        kept = tilted > 0
        kl = float((tilted[kept] * np.log(tilted[kept] / probs[kept])).sum())
        from kltutor.diagnostics.reference import _least_kl

        least = _least_kl(float(tilted @ reward - mean), spread, float(reward.max() - mean))
        assert least <= kl + 1e-9
        assert least <= float(tilted @ reward - mean) ** 2 / (2 * spread**2) + 1e-12
    assert _least_kl(0.01, 1.0, 3.0) == pytest.approx(0.01**2 / 2, rel=0.02)
    assert _least_kl(-1.0, 1.0, 3.0) == 0


def test_the_start_is_judged_only_where_the_log_shows_it():
    away = SIGNATURES["wrong-reference"](0)
    resumed = Log.of(dict(away.columns) | {"step": away["step"] + 500}, "a log")
    report = diagnose(resumed)
    assert report.mode == HEALTHY
    assert "begins at step 500" in report.unseen["wrong-reference"]
    counted = Log.of(dict(away.columns) | {"step": away["step"] + 1}, "a log")
    assert diagnose(counted).mode == "wrong-reference"
    # A trainer that counts from 1 and logs a step after its updates has a small KL there.
    first = made(
        kl=lambda way, step: np.minimum(0.02 * (step + 1) ** 2, 1.5), kl_sd=lambda c: 0.01 * c["kl_sd"]
    )
    first = Log.of(dict(first.columns) | {"step": first["step"] + 1}, "a log")
    assert diagnose(first).mode == HEALTHY


def test_a_controller_that_settles_is_left_alone():
    def settles(columns):
        step = columns["step"]
        return 0.3 * np.exp(1.5 * np.sin(step / 5) * np.exp(-step / 15))

    def kl(way, step):
        return 1.2 + 0.8 * np.sin(step / 5 + 1) * np.exp(-step / 15) - 2 * np.exp(-step / 2)

    calm = made(kl=kl, beta=settles, penalty=lambda c: -settles(c) * c["kl"])
    assert "controller-oscillation" not in [found.mode for found in diagnose(calm).findings]
    fixed = made(kl=lambda way, step: 1.2 + 0.8 * np.sin(step / 5 + 1) - 2 * np.exp(-step / 2))
    assert "controller-oscillation" not in [found.mode for found in diagnose(fixed).findings]


def test_growth_that_the_held_out_score_follows_is_no_drift():
    grows = {"length": lambda way, step: 4 + 4 * way}
    assert diagnose(made(**grows)).mode == HEALTHY
    assert diagnose(without(made(**grows), "gold")).mode == "length-drift"
    shrinks = {"length": lambda way, step: 4 - 2 * step / STEPS, "reward": lambda way, step: 2 * step / STEPS}
    assert diagnose(made(gold=lambda way, step: 1 - np.exp(-step / 8), **shrinks)).mode == "length-drift"


def test_a_policy_that_overshoots_and_comes_back_is_not_over_optimised():
    back = {
        "gold": lambda way, step: way - 0.4 * late(way, step),
        "reward": lambda way, step: 1.5 * way - 0.6 * late(way, step),
        "kl": lambda way, step: 1.5 * way - 0.6 * late(way, step),
    }
    assert diagnose(made(**back)).mode == HEALTHY


@pytest.mark.parametrize(
    ("mode", "dropped", "reason"),
    [
        ("over-optimisation", ["gold"], "no gold column"),
        ("unit-mix-up", ["penalty"], "no penalty"),
        ("controller-oscillation", ["beta"], "no beta"),
        ("moving-reference", ["reward_sd"], "reward_sd"),
        ("wrong-reference", ["kl", "k3", "kl_token"], "no KL"),
        ("negative-kl", ["kl", "kl_token"], "k3 is never negative"),
        ("runaway", ["entropy"], "entropy"),
        ("length-drift", ["length", "kl_token"], "no length"),
        ("collapse", ["reward"], "reward"),
    ],
)
def test_what_a_log_cannot_show_is_said(mode, dropped, reason):
    report = diagnose(without(made(), *dropped))
    assert reason in report.unseen[mode]
    assert mode not in [found.mode for found in report.findings]
    assert report.mode == HEALTHY
    assert mode not in diagnose(made()).unseen


def test_findings_come_causes_first_and_say_what_they_explain():
    log = made(
        penalty=lambda c: 0 * c["kl"],
        gold=lambda way, step: way - 0.6 * late(way, step),
        reward=lambda way, step: way + late(way, step),
        kl=lambda way, step: way + late(way, step),
    )
    first, second = diagnose(log).findings
    assert (first.mode, first.explained_by) == ("unit-mix-up", "")
    assert (second.mode, second.explained_by) == ("over-optimisation", "unit-mix-up")
    for cause, effects in EXPLAINS.items():
        assert all(MODES.index(cause) < MODES.index(effect) for effect in effects)
    assert SECTIONS.keys() == set(MODES) == {mode for mode, cause in REMEDIES if not cause}


def test_any_subset_of_columns_and_rows_is_diagnosed_without_an_error():
    rng = np.random.default_rng(0)
    logs = [SIGNATURES[mode](3) for mode in SIGNATURES]
    with np.errstate(all="raise", under="ignore"):
        for i in range(300):
            log = logs[i % len(logs)]
            rows = np.sort(rng.choice(STEPS, rng.integers(1, 12) if i % 3 else STEPS, replace=False))
            kept = [name for name in log.columns if name == "step" or rng.random() < 0.6]
            columns = {name: np.array(log[name][rows]) for name in kept}
            for name in kept[1:]:
                columns[name][rng.random(len(rows)) < 0.2] = np.nan
            if not any(np.isfinite(columns[name]).any() for name in kept if name != "step"):
                continue
            report = diagnose(Log.of(columns, "a log"))
            json.dumps(report.to_dict(), allow_nan=False)
            assert report.mode in (HEALTHY, *MODES)


@pytest.mark.parametrize("mode", SIGNATURES)
def test_a_report_says_the_same_in_every_form(mode):
    log = SIGNATURES[mode](0)
    report = diagnose(log)
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(report)
    text, page = console.export_text(), report._repr_html_()
    assert pretty(report).split() == text.split()
    assert told["mode"] == report.mode == mode
    for found, kept in zip(report.findings, told["findings"], strict=True):
        assert kept["mode"] == found.mode
        assert found.confidence in text
        for sentence in found.evidence:
            assert sentence in text
            assert sentence.replace("'", "&#x27;") in page
    figure = plot(log, report)
    title = figure.get_suptitle().lower()
    assert mode in title or (mode == HEALTHY and "nothing" in title)
    shaded = [ax for ax in figure.axes if ax.patches]
    assert bool(shaded) == bool(report.findings)


def test_a_figure_draws_what_the_log_has_and_refuses_an_empty_one():
    log = without(made(), "gold", "k3", "entropy")
    figure = plot(log, diagnose(log))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["KL(π ‖ ref)", "reward", "length"]
    assert figure.axes[0].get_ylabel() == "nats per sequence"
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), log["kl"])
    bare = Log.of({"step": np.arange(3.0), "clip_fraction": np.zeros(3)}, "a log")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot(bare, diagnose(bare))


@pytest.fixture
def command():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command(cls=OneLine)(diagnosis_session.diagnose)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def csv(tmp_path):
    def write(log, **renamed):
        path = tmp_path / "log.csv"
        names = [name for name in log.columns if name not in ("kl_token", "batch")]
        head = ",".join(renamed.get(name, name) for name in names)
        rows = [
            ",".join("" if math.isnan(log[name][i]) else repr(float(log[name][i])) for name in names)
            for i in range(STEPS)
        ]
        path.write_text("\n".join([head, *rows]) + "\n")
        return path

    return write


def test_the_command_answers_by_its_exit_status(command, csv, tmp_path):
    good = command(csv(made()), "--column", f"batch={BATCH}")
    assert (good.exit_code, "healthy" in good.stdout) == (0, True)
    path = csv(SIGNATURES["over-optimisation"](0), kl="KL", gold="judge")
    bad = command(path, "--column", "kl=KL", "--column", "gold=judge", "--column", f"batch={BATCH}", "--json")
    assert bad.exit_code == 1
    told = json.loads(bad.stdout)
    read = read_log(path, {"kl": "KL", "gold": "judge", "batch": BATCH})
    assert told == json.loads(json.dumps(diagnose(read).to_dict()))
    assert told["mode"] == "over-optimisation"
    figure = tmp_path / "seen.svg"
    drawn = command(path, "--column", "gold=judge", "--column", "kl=KL", "--plot", figure)
    assert drawn.exit_code == 1
    assert "seen.svg" in drawn.stdout.replace("\n", "")
    assert "<svg" in figure.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "trl"], "--preset is 'trl'; one of"),
        (["--column", "kl"], "--column is 'kl'; ours=theirs"),
        (["--column", "KL=kl"], "'KL' is unknown"),
        (["--column", "kl=KL"], "is to be 'KL'"),
        (["--plot", "seen.gif"], "seen.gif; a name that ends in"),
    ],
)
def test_the_command_refuses_in_one_line(command, csv, options, message):
    result = command(csv(made()), *options)
    assert result.exit_code == 2
    assert message.removeprefix("--") in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_command_names_a_file_that_is_not_there_or_empty(command, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    for name in ("none.csv", "empty.csv"):
        result = command(tmp_path / name)
        assert result.exit_code == 2
        assert name in result.stderr
