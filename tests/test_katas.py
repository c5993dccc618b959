"""Katas: right answers pass, every known mistake is named, and nothing a file does harms the grader."""

import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.lib import pretty
from typer.testing import CliRunner

from kltutor import cli
from kltutor.katas import Grade, all_katas, get, judging
from kltutor.katas.calls import call
from kltutor.katas.files import load

BOOK = Path(__file__).parents[1] / "book"
KATAS = all_katas()
NAMES = [kata.name for kata in KATAS]


# Right answers once more, written from the tasks alone: loops, no function of the package.
def log_sum_exp(x):
    top = x.max().detach()
    return top + (x - top).exp().sum().log()


def token_logps(logits, tokens):
    return torch.stack(
        [
            torch.stack([row[t][ids[t + 1]] - log_sum_exp(row[t]) for t in range(len(ids) - 1)])
            for row, ids in zip(logits, tokens, strict=True)
        ]
    )


def chosen(row, keep):
    return torch.stack([value for value, counts in zip(row, keep, strict=True) if counts])


def masked_mean(values, mask):
    return torch.stack([chosen(row, keep).mean() for row, keep in zip(values, mask, strict=True)])


def last_action(mask):
    return torch.tensor([max(i for i, counts in enumerate(row) if counts) for row in mask.tolist()])


def one_kl(p, q):
    terms = [a.exp() * (a - b) for a, b in zip(p, q, strict=True) if a > -math.inf]
    return torch.stack(terms).sum()


def categorical_kls(logp, ref_logp):
    rows = [(one_kl(p, q), one_kl(q, p)) for p, q in zip(logp, ref_logp, strict=True)]
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


def k3(logp, ref_logp):
    r = torch.exp(ref_logp) / torch.exp(logp)
    return (r - 1) - torch.log(r)


def full_vocab_kl(logits, ref_logits):
    rows = []
    for row, ref_row in zip(logits, ref_logits, strict=True):
        rows.append(
            torch.stack(
                [one_kl(x - log_sum_exp(x), y - log_sum_exp(y)) for x, y in zip(row, ref_row, strict=True)]
            )
        )
    return torch.stack(rows)


def kl_in_reward(scores, logp, ref_logp, mask, beta):
    found = np.zeros(mask.shape)
    for b, row in enumerate(mask.tolist()):
        where = [t for t, counts in enumerate(row) if counts]
        for t in where:
            found[b, t] = -beta * (logp[b, t].item() - ref_logp[b, t].item())
        found[b, where[-1]] += scores[b].item()
    return torch.from_numpy(found)


def rho_k3(logp, old_logp, ref_logp, mask):
    rows = []
    for p, o, q, keep in zip(logp, old_logp, ref_logp, mask, strict=True):
        rho, row = torch.tensor(1.0, dtype=torch.float64), []
        for t, counts in enumerate(keep):
            if counts:
                rho = rho * (p[t].exp() / o[t].exp())
                row.append(rho * k3(p[t], q[t]))
            else:
                row.append(torch.tensor(0.0, dtype=torch.float64))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def ziegler_update(beta, measured_kl, target_kl, n, horizon, clip):
    error = float(np.clip(measured_kl / target_kl - 1, -clip, clip))
    return beta + beta * error * n / horizon


def optimal_policy(ref_logp, reward, beta):
    log_z = torch.stack([log_sum_exp(q + r / beta) for q, r in zip(ref_logp, reward, strict=True)])
    return ref_logp + reward / beta - log_z.unsqueeze(1), log_z


def implicit_reward(logp, ref_logp, mask, beta):
    pairs = zip(logp, ref_logp, mask, strict=True)
    return torch.stack([beta * (chosen(p, keep).sum() - chosen(q, keep).sum()) for p, q, keep in pairs])


def group_advantages(scores, group):
    found = []
    for score, name in zip(scores.tolist(), group.tolist(), strict=True):
        mine = [s for s, g in zip(scores.tolist(), group.tolist(), strict=True) if g == name]
        mean = math.fsum(mine) / len(mine)
        sd = math.sqrt(math.fsum((s - mean) ** 2 for s in mine) / len(mine))
        found.append(0.0 if min(mine) == max(mine) else (score - mean) / sd)
    return torch.tensor(found, dtype=torch.float64)


def dpo_loss(chosen_seq_logp, rejected_seq_logp, ref_chosen_seq_logp, ref_rejected_seq_logp, beta):
    chosen_reward = beta * (chosen_seq_logp - ref_chosen_seq_logp)
    h = chosen_reward - beta * (rejected_seq_logp - ref_rejected_seq_logp)
    return torch.logaddexp(torch.zeros_like(h), -h)


def gae(rewards, values, mask, gamma, gae_lambda):
    found = np.zeros(mask.shape)
    for b, row in enumerate(mask.tolist()):
        where = [t for t, counts in enumerate(row) if counts]
        v = [values[b, t].item() for t in where] + [0.0]
        delta = [rewards[b, t].item() + gamma * v[i + 1] - v[i] for i, t in enumerate(where)]
        for i, t in enumerate(where):  # the sum itself, not the recursion
            found[b, t] = sum((gamma * gae_lambda) ** j * d for j, d in enumerate(delta[i:]))
    return torch.from_numpy(found)


def ppo_clip_loss(logp, old_logp, advantages, mask, clip_eps):
    terms = []
    for b, t in mask.nonzero().tolist():
        ratio, a = logp[b, t].exp() / old_logp[b, t].exp(), advantages[b, t]
        dead = (ratio > 1 + clip_eps and a > 0) or (ratio < 1 - clip_eps and a < 0)
        bound = 1 + clip_eps if a > 0 else 1 - clip_eps
        terms.append(bound * a if dead else ratio * a)
    return -torch.stack(terms).mean()


def best_of_n_kl(ref_logp, reward, n):
    found = []
    for q, r in zip(ref_logp.exp().tolist(), reward.tolist(), strict=True):
        total = 0.0
        for level in set(r):  # within a level P/ref is the same for all
            low = math.fsum(p for p, s in zip(q, r, strict=True) if s < level)
            mass = math.fsum(p for p, s in zip(q, r, strict=True) if s == level)
            chance = (low + mass) ** n - low**n
            total += chance * math.log(chance / mass) if chance > 0 else 0.0
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_and_an_answer_written_independently_are_right(name):
    kata = get(name)
    assert kata.grade(kata.reference).right
    grade = kata.grade(globals()[name])
    assert grade.right, grade.message
    assert grade.misconception is None
    assert grade.message.startswith("Right")


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_is_named_as_itself(name):
    kata = get(name)
    assert len(kata.misconceptions) >= 7
    for wrong in kata.misconceptions:
        grade = kata.grade(wrong.code)
        assert not grade.right, wrong.name
        assert grade.misconception == wrong.name
        assert grade.message == kata.sentence(wrong)
        assert not re.search(r"\{(got|right)\}|\b(nan|inf) (in place|where)", grade.message), grade.message
        assert grade.message.endswith((".", ".)"))
    sentences = [kata.sentence(wrong) for wrong in kata.misconceptions]
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("name", NAMES)
def test_known_mistakes_run(name):
    kata = get(name)
    for wrong in kata.misconceptions:
        outcomes = [call(wrong.code, case, kata.differentiable) for case in kata.cases]
        assert not any(outcome.error for outcome in outcomes), (wrong.name, [o.fault for o in outcomes])


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_a_sentence_are_measured(name):
    kata = get(name)
    case = kata.cases[0]
    for wrong in kata.misconceptions:
        if "{got}" not in wrong.says:
            continue
        got, right = (
            kata.number(*call(code, case, ()).values).item() for code in (wrong.code, kata.reference)
        )
        assert f"{got:.3g}" in kata.sentence(wrong)
        if "{right}" in wrong.says and wrong.name != "k1":
            assert f"{got:.3g}" != f"{right:.3g}", wrong.name


def test_the_sentences_on_k3_quote_exact_sums():
    policy, ref = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    kl = (policy * np.log(policy / ref)).sum()
    chi2 = (policy**2 / ref).sum() - 1
    said = get("k3").grade(lambda logp, ref_logp: torch.expm1(logp - ref_logp) - (logp - ref_logp)).message
    assert said == (
        f"r is inverted: this estimates χ²(π‖ref) - KL(π‖ref), {chi2 - kl:.3f} where KL(π‖ref) is {kl:.3f} "
        "nats."
    )


def test_there_are_enough_katas_of_every_level_and_cases_pass_the_arguments_in_order():
    assert len(KATAS) >= 12
    assert {kata.level for kata in KATAS} == {1, 2, 3}
    assert [kata.level for kata in KATAS] == sorted(kata.level for kata in KATAS)
    for kata in KATAS:
        for case in kata.cases:
            assert list(case.inputs) == list(kata.parameters), (kata.name, case.label)


def test_sections_are_headings_of_the_book():
    for kata in KATAS:
        number, title = kata.section.split(maxsplit=1)
        chapter, place = map(int, number.split("."))
        (page,) = BOOK.glob(f"{chapter:02}_*.ipynb")
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").splitlines()
        headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
        assert headings[place - 1] == title, kata.name


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_file_states_the_task_and_is_not_written_yet(name, tmp_path):
    kata = get(name)
    text = kata.starter()
    assert all(len(line) <= 110 for line in text.splitlines())
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    fn = load(tmp_path / f"{name}.py", name)
    assert inspect.getdoc(fn) == kata.task
    assert list(inspect.signature(fn).parameters) == list(kata.parameters)
    assert kata.grade(fn) == Grade(False, None, f"{name} is not written yet.")
    assert "kltutor" not in text.split('"""', 2)[2]  # the answer is not given away


def test_a_wrong_answer_that_nobody_knows_gets_the_smallest_counterexample():
    grade = get("masked_mean").grade(lambda values, mask: values.masked_fill(~mask, 0).sum(-1) / 2)
    assert grade.misconception is None
    assert grade.message.splitlines() == [
        "Wrong (two rows with padding and a gap): its value[1] is -2.1; -1.4 is expected.",
        "  values = [[-0.9, -0.5, -1.2, -0.3], [-1.5, -0.4, -0.7, -2]]",
        "  mask = [[False, True, True, False], [True, False, True, True]]",
        "  got [-0.85, -2.1]",
        "  expected [-0.85, -1.4]",
    ]


def test_the_auditor_names_a_kl_estimator_that_is_no_known_mistake():
    grade = get("k3").grade(lambda logp, ref_logp: torch.exp(logp - ref_logp))
    assert grade.misconception is None
    says = "kltutor.check finds that on samples of the policy its mean is 1 + χ²(π‖ref) per token, and its "
    assert grade.message.startswith(says)
    assert "is expected" in grade.message


def test_the_auditor_is_asked_about_the_samples_that_a_kata_is_about():
    def of_the_old(logp, old_logp, ref_logp, mask):  # fresh samples, on which ρ is 1, would hide the slip
        p, o, q = (x.masked_fill(~mask, 0) for x in (logp, old_logp, ref_logp))
        return (p - o).cumsum(-1).exp() * (torch.expm1(q - o) + o - q)

    grade = get("rho_k3").grade(of_the_old)
    assert grade.misconception is None
    assert grade.message.startswith(
        "Wrong (every outcome of one action): its value[0, 0] is 0.338; 0.9423 is"
    )

    message = get("rho_k3").grade(lambda *x: 2 * rho_k3(*x)).message
    says = "kltutor.check finds that on samples of the old policy its mean is 2·KL(π‖ref), and its gradient "
    assert message.startswith(says + "2·∇KL(π‖ref). Wrong")


def test_the_auditor_is_not_quoted_where_it_finds_nothing_wrong():
    grade = get("k3").grade(lambda p, q: torch.expm1(q - p) + (p - q).detach())
    assert grade.message.startswith("Wrong (every outcome of one action): the values are right, but the grad")


def test_a_small_number_added_and_a_smaller_type_are_suspected():
    grade = get("k3").grade(lambda p, q: (q - p).float().expm1().double() + p - q)
    assert "is expected, so close that it may be float32, or an epsilon." in grade.message
    grade = get("k3").grade(lambda p, q: torch.expm1(q - p) + 1.01 * (p - q))
    assert "so close" not in grade.message


def test_a_clamp_at_20_nats_is_seen():
    """So is a number fixed where an argument stands; both are met in libraries, and cost nothing nearby."""
    grade = get("k3").grade(lambda p, q: torch.expm1((q - p).clamp(-20, 20)) + p - q)
    assert "while log-ratios stay within [-20, ∞]" in grade.message

    def fixed(beta, measured_kl, target_kl, n, horizon, clip):
        return ziegler_update(beta, measured_kl, target_kl, n, horizon, 0.2)

    assert get("ziegler_update").grade(fixed).misconception == "clip-of-0.2"
    assert not get("ziegler_update").grade(lambda *x: max(ziegler_update(*x), 1e-3)).right


def test_a_notebook_shows_a_grade_as_text_that_wraps():
    inverted = get("k3").grade(lambda p, q: torch.expm1(p - q) - (p - q))
    assert inverted._repr_html_() == (
        f'<div class="kl-grade"><p><strong>Not yet.</strong> {inverted.message}</p></div>'
    )
    unknown = get("masked_mean").grade(lambda values, mask: values.masked_fill(~mask, 0).sum(-1) / 2)
    said, block = unknown._repr_html_().split("<pre>")
    assert said.endswith("-1.4 is expected.</p>")
    assert block.splitlines()[0] == "values = [[-0.9, -0.5, -1.2, -0.3], [-1.5, -0.4, -0.7, -2]]"
    right = get("last_action").grade(last_action)
    assert right._repr_html_().startswith('<div class="kl-grade"><p><strong>Right:</strong> values agree in')
    assert "a &lt; b" in Grade(False, None, "a < b")._repr_html_()
    for grade, shown in ((unknown, "Not yet. Wrong (two rows"), (right, "Right: values agree in")):
        assert pretty.pretty(grade).startswith(shown)
        assert pretty.pretty(grade).endswith(grade.message)


def test_a_mistake_is_named_even_where_a_trap_was_missed_too():
    def upside_down(logp, old_logp, ref_logp, mask):  # and nan at masked positions spoils it
        d = logp - ref_logp
        return ((logp - old_logp) * mask).cumsum(-1).exp() * (torch.expm1(d) - d) * mask

    assert get("rho_k3").grade(upside_down).misconception == "k3-inverted"


def test_a_slip_of_its_own_in_a_trap_does_not_get_the_name_of_another():
    grade = get("dpo_loss").grade(lambda *inputs: dpo_loss(*inputs).clamp(max=1000))
    assert grade.misconception is None
    assert grade.message.startswith("Wrong (h of -2000): its value[0] is 1000; 2000 is expected.")


def test_a_right_value_with_a_wrong_gradient_is_wrong():
    def half_detached(logp, ref_logp):
        d = (logp - ref_logp) / 2
        return torch.expm1(-2 * d) + d + d.detach()

    grade = get("k3").grade(half_detached)
    assert not grade.right
    assert "the values are right, but the gradient in logp[0] is" in grade.message


def raises(logp, ref_logp):
    return torch.zeros(3)[7]


def leaves(logp, ref_logp):
    raise SystemExit(0)


def writes(logp, ref_logp):
    ref_logp.add_(1)
    return logp.exp()


def overflows(logp, ref_logp):
    return overflows(logp, ref_logp)


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (raises, f"line {inspect.getsourcelines(raises)[1] + 1} raised IndexError: index 7 is out of bounds"),
        (leaves, f"line {inspect.getsourcelines(leaves)[1] + 1} raised SystemExit: 0."),
        (overflows, f"line {inspect.getsourcelines(overflows)[1] + 1} raised RecursionError"),
        (writes, "it writes into its argument ref_logp; copy it first."),
        (lambda logp, ref_logp: None, "it returned NoneType; numbers are expected."),
        (lambda logp, ref_logp: "0.5", "it returned str; numbers are expected."),
        (lambda logp, ref_logp: True, "it returned bool; numbers are expected."),
        (lambda logp, ref_logp: (logp, logp), "it returned a tuple of 2 values; one value is expected."),
        (lambda logp, ref_logp: logp[:2], "its value has shape (2,); (3,) is expected."),
        (lambda logp, ref_logp: logp.float(), "its value is torch.float32; torch.float64 is expected."),
        (lambda logp, ref_logp: logp.long(), "its value is torch.int64; torch.float64 is expected."),
        (lambda logp, ref_logp: logp * torch.nan, "its value[0] is nan; 0.5385 is expected."),
        (lambda logp, ref_logp: 0.5, "its value has shape (); (3,) is expected."),
        (lambda logp: logp, "It cannot be called as k3(logp, ref_logp): too many positional arguments."),
    ],
)
def test_what_cannot_be_graded_is_said_in_a_line(fn, says):
    grade = get("k3").grade(fn)
    assert not grade.right
    assert grade.misconception is None
    assert says in grade.message.splitlines()[0]


def test_a_number_or_an_array_of_numpy_will_do_where_no_gradient_is_asked_for():
    assert get("ziegler_update").grade(lambda *x: np.float64(ziegler_update(*x))).right
    assert get("ziegler_update").grade(lambda *x: torch.tensor(ziegler_update(*x), dtype=torch.float64)).right
    assert get("gae").grade(lambda *x: gae(*x).numpy()).right
    assert get("last_action").grade(lambda mask: last_action(mask).int()).right
    assert not get("last_action").grade(lambda mask: last_action(mask).double()).right
    assert get("k3").grade(lambda p, q: k3(p.detach(), q).numpy()).misconception == "detached"


def test_a_function_cannot_change_what_the_next_one_is_graded_on():
    def fills(values, mask):
        mask.fill_(True)
        return values.mean(-1)

    assert "it writes into its argument mask" in get("masked_mean").grade(fills).message
    assert get("masked_mean").grade(masked_mean).right


def test_unknown_names_say_which_there_are():
    with pytest.raises(ValueError, match=r"no kata is called 'k4'; expected one of best_of_n_kl, .*k3.*"):
        get("k4")


# What follows runs the commands; a check starts a process, so few of them do.
RIGHT = """
import torch

print("hello")


def k3(logp, ref_logp):
    d = logp - ref_logp
    return torch.expm1(-d) + d
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli.app, ["kata", *arguments])


def test_start_writes_a_file_and_never_overwrites_it(folder):
    result = run("start", "gae", "--out", "mine/katas")
    assert result.exit_code == 0
    path = folder / "mine" / "katas" / "gae.py"
    assert path.read_text(encoding="utf-8") == get("gae").starter()
    assert "kltutor kata check mine/katas/gae.py" in result.stdout
    assert run("start", "k3.py").exit_code == 0
    assert (folder / "k3.py").is_file()
    path.write_text("mine\n")
    result = run("start", "gae", "--out", "mine/katas")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: mine/katas/gae.py is there already and is left as it is; delete or move it first.\n"
    )
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("start", "k4"), "Error: no kata is called 'k4'; expected one of best_of_n_kl"),
        (("check", "k4"), "Error: no kata is called 'k4'; expected one of"),
        (("check", "gae"), "Error: gae.py is not there; `kltutor kata start gae` writes it."),
        (("check", "mine.py"), "Error: mine.py has the name of no kata; the file of a kata has its name"),
        (("start", "k4.py"), "Error: no kata is called 'k4'; expected one of best_of_n_kl"),
        (("check", "sub/gae.py"), "Error: sub/gae.py is not there"),
        (("check", "gae", "--dir", "sub"), "Error: sub/gae.py is not there"),
        (("check",), "Error: Missing argument 'FILE|NAME'. See `"),
        (("list", "--level", "1"), "Error: No such option: --level"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_with_status_2(folder, arguments, says):
    (folder / "mine.py").write_text(RIGHT)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1


def judged(monkeypatch, *found):
    """Make `judge` say what it is told, so that a test of the command needs no process."""
    monkeypatch.setattr(judging, "judge", lambda files: [judging.Judgement(*each) for each in found])


def test_check_tells_the_judgement_and_ends_with_its_status(folder, monkeypatch):
    (folder / "k3.py").write_text(RIGHT)
    judged(monkeypatch, ("k3", "right", None, "Right: all agree."))
    assert (run("check", "k3").exit_code, run("check", "k3").stdout) == (0, "Right: all agree.\n")
    judged(monkeypatch, ("k3", "not yet", "ratio-inverted", "r is inverted."))
    result = run("check", "k3.py")
    assert result.exit_code == 1
    assert result.stdout == f"r is inverted.\nRead section {get('k3').section}.\n"
    result = run("check", "k3.py", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "kata": "k3",
        "right": False,
        "misconception": "ratio-inverted",
        "message": "r is inverted.",
    }
    judged(monkeypatch, ("k3", "unusable", None, "k3.py has no function k3."))
    result = run("check", "k3.py", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: k3.py has no function k3.\n"


def test_list_starts_no_process_where_nothing_is_begun(folder, monkeypatch):
    monkeypatch.setattr(judging.subprocess, "run", None)
    result = run("list")
    assert result.exit_code == 0
    for kata in KATAS:
        assert kata.name in result.stdout
    assert f"0 of {len(KATAS)} done." in result.stdout


def test_files_are_judged_whatever_they_do(folder):
    """One hangs, one ends Python, one prints, one imports its neighbour: each has its own judgement."""
    texts = {
        "k3": RIGHT,
        "rho_k3": "from k3 import k3\nimport sys\nsys.exit('no')\n",
        "last_action": "import a_module_that_is_missing\n",
        "dpo_loss": "def dpo_loss(a, b:\n    pass\n",
        "implicit_reward": "reward = 3\n",
        "token_logps": "def token_logps(logits, tokens):\n    return logits[tokens.item()]\n",
        "gae": "def gae(rewards, values, mask, gamma, gae_lambda):\n    while True:\n        pass\n",
        "masked_mean": "import os\n\n\ndef masked_mean(values, mask):\n    os._exit(3)\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    found = judging.judge([(name, Path(f"{name}.py")) for name in texts], seconds=4.0)
    told = {each.kata: (each.status, each.message) for each in found}
    assert list(told) == list(texts)
    assert told["gae"][0] == "not yet"
    assert re.fullmatch(r"gae\.py was still running after 4 s, in line [23]\.", told["gae"][1])
    assert told["masked_mean"] == ("not yet", "masked_mean.py ended Python, with exit status 3.")
    assert told["k3"][0] == "right"
    assert told["rho_k3"] == (
        "unusable",
        "rho_k3.py could not be imported: line 3 raised SystemExit: no.",
    )
    assert told["last_action"] == (
        "unusable",
        "last_action.py could not be imported: line 1 raised ModuleNotFoundError: No module named "
        "'a_module_that_is_missing'.",
    )
    assert told["dpo_loss"][0] == "unusable"
    assert told["dpo_loss"][1].startswith("dpo_loss.py could not be imported: line 1 raised SyntaxError: ")
    assert told["implicit_reward"] == ("unusable", "implicit_reward.py has no function implicit_reward.")
    assert told["token_logps"][0] == "not yet"
    assert "line 2 raised RuntimeError: " in told["token_logps"][1]
    assert not (folder / "__pycache__").exists()


def test_list_tells_what_is_done_from_start_to_end(folder):
    (folder / "k3.py").write_text(RIGHT)
    (folder / "gae.py").write_text(get("gae").starter())
    result = run("list")
    assert f"1 of {len(KATAS)} done." in result.stdout
    assert "hello" not in result.stdout
    assert re.search(r"\bk3 .*\bdone\b", result.stdout)
    assert re.search(r"\bgae .*\bnot yet\b", result.stdout)
    assert re.search(r"\brho_k3 .* - ", result.stdout)
