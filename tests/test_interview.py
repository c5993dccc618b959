"""Every number, formula, claim and label of the question bank, and every numeric question a second time."""

import ast
import dataclasses
import json
import math
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import known_wrong
import pytest
import yaml
from pydantic import ValidationError

from kltutor import claims, interview
from kltutor.interview import bank, render
from kltutor.interview.numbers import evaluate

BOOK = Path(__file__).parents[1] / "book"
ENTRIES = interview.entries()
BY_ID = {entry.id: entry for entry in ENTRIES}
CONFIG = yaml.safe_load((BOOK / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
SEEDS = range(12)
NUMERIC = [interview.numeric_question(kind, seed) for kind in interview.KINDS for seed in SEEDS]
IDS = [entry.id for entry in ENTRIES]


def texts(entry):
    quoted = tuple(wrong.says for wrong in entry.wrong)
    return (*entry.own_words, *quoted)


# What is there


def test_there_are_25_questions_at_three_levels_and_as_many_follow_ups():
    questions = interview.questions()
    assert [question.id for question in questions] == [f"Q{n:02}" for n in range(1, 26)]
    assert Counter(question.level for question in questions) == {1: 10, 2: 10, 3: 5}
    assert len(ENTRIES) - 25 >= 25
    assert {question.topic for question in questions} == set(interview.TOPICS)
    assert sum(len(entry.wrong) for entry in ENTRIES) >= 60
    assert len({entry.question for entry in ENTRIES}) == len(ENTRIES)
    assert len({entry.hint for entry in ENTRIES}) == len(ENTRIES)


def test_questions_are_chosen_by_level_and_topic():
    for level in interview.LEVELS:
        for topic in interview.TOPICS:
            found = interview.questions(level=level, topic=topic)
            assert all((question.level, question.topic) == (level, topic) for question in found)
    assert sum(len(interview.questions(topic=topic)) for topic in interview.TOPICS) == 25
    with pytest.raises(ValueError, match="level is 4"):
        interview.questions(level=4)
    with pytest.raises(ValueError, match="topic is 'cooking'"):
        interview.questions(topic="cooking")
    with pytest.raises(ValueError, match="id is 'Q99'"):
        interview.get("Q99")


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        interview.get("Q01").answer = "No."
    with pytest.raises(dataclasses.FrozenInstanceError):
        interview.numeric_question("kl", 0).answer = 1.0


# What an entry may be

GOOD = {
    "id": "Q01",
    "topic": "basics",
    "question": "Why?",
    "hint": "Think.",
    "answer": "word " * 69 + "word",
    "rubric": ["One.", "Two.", "Three."],
    "wrong": [{"says": "So.", "because": "Not so."}],
    "claims": ["KL-101"],
    "sections": ["ch-basics"],
    "follow_ups": [
        {
            "id": "Q01a",
            "question": "And then?",
            "hint": "Think on.",
            "answer": "word " * 49 + "word",
            "rubric": ["One.", "Two."],
            "claims": ["KL-101"],
            "sections": ["ch-basics"],
        }
    ],
}


def bad(**changes):
    entry = json.loads(json.dumps(GOOD))
    for name, value in changes.items():
        target, field = (entry["follow_ups"][0], name[2:]) if name.startswith("f_") else (entry, name)
        if value is None:
            del target[field]
        else:
            target[field] = value
    return yaml.safe_dump([entry])


def test_a_good_entry_is_read():
    (question,) = bank.read(bad(), 1)
    assert question.level == 1
    assert question.follow_ups[0].id == "Q01a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hint": None}, "Q01: hint: Field required"),
        ({"colour": "red"}, "Q01: colour: Extra inputs"),
        ({"topic": "cooking"}, "Q01: topic: Input should be 'basics'"),
        ({"id": "Q1"}, "Q1: id: "),
        ({"answer": "Too short."}, "Q01: .*answer has 2 words; 60 to 200"),
        ({"answer": "word " * 201}, "Q01: answer: is empty or has blanks"),
        ({"answer": "word " * 200 + "word"}, "Q01: .*answer has 201 words"),
        ({"rubric": ["One.", "Two."]}, "Q01: rubric: "),
        ({"rubric": ["One."] * 7}, "Q01: rubric: "),
        ({"wrong": []}, "Q01: wrong: "),
        ({"follow_ups": []}, "Q01: follow_ups: "),
        ({"claims": ["KL-1"]}, "Q01: claims: 0: "),
        ({"claims": ["KL-101", "KL-101"]}, "Q01: claims: has an entry twice"),
        ({"sections": []}, "Q01: sections: "),
        ({"hint": "A lone $ sign."}, "Q01: hint: has a dollar sign without"),
        ({"hint": "Braces ${x$ here."}, "Q01: hint: has braces that do not match"),
        ({"cited": {"0.5": "KL-102"}}, "Q01: cites KL-102, which its claims do not name"),
        ({"f_hint": ""}, "Q01a: hint: is empty"),
        ({"f_id": "Q02a"}, "Q01: follow-up Q02a stands where Q01a"),
        ({"f_answer": "word " * 130 + "word"}, "Q01a: .*answer has 131 words; 40 to 130"),
        ({"f_rubric": ["One."]}, "Q01a: rubric: "),
    ],
)
def test_errors_name_the_entry_and_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        bank.read(bad(**changes), 1)


def test_a_file_that_is_no_list_or_names_a_key_twice_is_refused():
    with pytest.raises(ValueError, match="level 2: a list of questions"):
        bank.read("id: Q01", 2)
    with pytest.raises(ValueError, match="names 'hint' twice"):
        bank.read("- {id: Q01, hint: a, hint: b}", 1)


# What entries refer to


@pytest.fixture(scope="module")
def labels():
    found = set()
    for path in BOOK.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                found |= set(re.findall(r"^\(([\w-]+)\)=", "".join(cell["source"]), re.MULTILINE))
    return found


def test_every_claim_and_every_section_exists(labels):
    known = {claim.id for claim in claims.all_claims()}
    for item in (*ENTRIES, *NUMERIC):
        name = getattr(item, "id", None) or item.kind
        assert set(item.claims) <= known, name
        assert set(item.sections) <= labels, f"{name}: {set(item.sections) - labels}"


# Numbers

LITERAL = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w]|\.\d)")


@cache
def shown(text):
    """Return the numbers in a text, with their signs, as they are written; indices and exponents are none."""
    found = []
    for place, part in enumerate(text.replace("{,}", "").split("$")):
        part = re.sub(r"(\d(?:\.\d+)?) *\\cdot *10\^\{?(-?\d+)\}?", r"\1e\2", part)
        part = re.sub(r"[_^](\{[^{}]*\}|\w)", " ", part)
        for match in LITERAL.finditer(part):
            before = part[: match.start()]
            minus = before.endswith(("-", "−"))
            taken = re.search(r"[\w)}\]]\s*$" if place % 2 else r"\S$", before[:-1].removesuffix("("))
            found.append("-" * bool(minus and not taken) + match[1])
    return tuple(found)


def agrees(written, value):
    """Return whether a number is the value, rounded to the digits that it shows."""
    mantissa, _, exponent = written.partition("e")
    digits = len(mantissa.partition(".")[2])
    return abs(value - float(written)) <= 0.5 * 10.0 ** (int(exponent or 0) - digits) * (1 + 1e-9)


@cache
def literals(expression):
    """Return the numbers in an expression, of those behind a lone minus sign the negative."""
    found = set()
    for node in ast.walk(ast.parse(expression, mode="eval")):
        sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
        node = node.operand if sign < 0 else node
        if isinstance(node, ast.Constant) and not isinstance(node.value, str):
            found.add(sign * float(node.value))
    return found


def small(number):
    """Return whether a number is a digit, which a text may use without saying where it comes from."""
    return number.lstrip("-").isdigit() and abs(int(number)) < 10


def unexplained(entry):
    """Return what is wrong with an entry's numbers: each must be computed, cited, or given to a check."""
    there = [number for text in entry.own_words for number in shown(text)]
    problems = []
    for number, expression in entry.checks:
        if not agrees(number, evaluate(expression)):
            problems.append(f"{number} is {evaluate(expression):.6g}")
    for number, id in entry.cited:
        if number not in shown(claims.get(id).says):
            problems.append(f"{number} is not in {id}")
    named = [number for number, _ in (*entry.checks, *entry.cited)]
    problems += [f"{number} is checked and not shown" for number in named if number not in there]
    given = {value for _, expression in entry.checks for value in literals(expression)}
    for number in there:
        if number not in named and float(number) not in given and not small(number):
            problems.append(f"{number} has no source")
    return problems


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_every_number_is_computed_or_cited(entry):
    assert unexplained(entry) == []


def mutants(text, number, known):
    """Yield the text with one number changed in its last digit, to one not `known`, and in its sign."""
    last = next(digit for digit in "1234567890" if number[:-1] + digit not in known)
    for other in (number[:-1] + last, number.removeprefix("-") if number[0] == "-" else f"-{number}"):
        mutant = re.sub(rf"(?<![\w.\-]){re.escape(number)}(?![\w]|\.\d)", other, text)
        if shown(mutant) != shown(text) and other not in known and r"\pm -" not in mutant:
            yield other, mutant


def test_a_changed_digit_or_sign_is_noticed():
    changed = 0
    for entry in ENTRIES:
        known = {number for number, _ in (*entry.checks, *entry.cited)}
        known |= {f"{value:g}" for _, expression in entry.checks for value in literals(expression)}
        for number in known - set(filter(small, known)):
            for other, answer in mutants(entry.answer, number, known):
                changed += 1
                mutant = entry.model_copy(update={"answer": answer})
                assert unexplained(mutant), f"{entry.id}: {number} as {other}"
            for wrong in entry.wrong:
                for other, because in mutants(wrong.because, number, known):
                    changed += 1
                    mutant = wrong.model_copy(update={"because": because})
                    refuted = tuple(mutant if w == wrong else w for w in entry.wrong)
                    assert unexplained(entry.model_copy(update={"wrong": refuted})), (
                        f"{entry.id}: {number} as {other}"
                    )
    assert changed > 300


# Formulas


def distributions(rng, size=4):
    p, q = ([rng.random() + 0.05 for _ in range(size)] for _ in range(2))
    return [x / sum(p) for x in p], [x / sum(q) for x in q]


def mean(p, values):
    return math.fsum(a * b for a, b in zip(p, values, strict=True))


class Case:
    """Two distributions, their quantities by sums, and a reward: what formulas of the bank speak of."""

    def __init__(self, seed):
        """Draw them."""
        rng = random.Random(seed)
        self.pol, self.ref = distributions(rng)
        self.delta = [math.log(a / b) for a, b in zip(self.pol, self.ref, strict=True)]
        self.w = [math.exp(-d) for d in self.delta]
        self.k1, self.k2 = self.delta, [d * d / 2 for d in self.delta]
        self.k3 = [w - 1 - math.log(w) for w in self.w]
        self.kl, self.forward = mean(self.pol, self.delta), -mean(self.ref, self.delta)
        self.jeffreys = self.kl + self.forward
        self.r = [rng.random() * 2 for _ in self.pol]
        self.beta, self.lam = 0.3 + rng.random(), 0.3 + rng.random()
        weights = [b * math.exp(r / self.beta) for b, r in zip(self.ref, self.r, strict=True)]
        self.z = math.fsum(weights)
        self.opt = [weight / self.z for weight in weights]
        self.x, self.y = rng.uniform(-2, 2), rng.uniform(0.1, 2)

    def var(self, values):
        """Return the variance under the policy."""
        return mean(self.pol, [v * v for v in values]) - mean(self.pol, values) ** 2

    def chi2(self, p, q):
        """Return χ²(p ‖ q)."""
        return math.fsum((a - b) ** 2 / b for a, b in zip(p, q, strict=True))

    def value(self, pol):
        """Return E[r] - beta·KL(pol ‖ ref)."""
        gap = [math.log(a / b) for a, b in zip(pol, self.ref, strict=True)]
        return mean(pol, self.r) - self.beta * mean(pol, gap)

    def gradient(self, weights):
        """Return the mean of weight times score in the logits."""
        return [
            math.fsum(
                p * v * ((i == j) - self.pol[j])
                for i, (p, v) in enumerate(zip(self.pol, weights, strict=True))
            )
            for j in range(len(self.pol))
        ]


def sigma(x):
    return 1 / (1 + math.exp(-x))


IDENTITIES = [  # entry, formula as printed, its two sides
    (
        "Q04",
        r"\Var k_3 = \Var k_1 + \chi^2(\refp \| \pol) - 2J",
        lambda c: (c.var(c.k3), c.var(c.k1) + c.chi2(c.ref, c.pol) - 2 * c.jeffreys),
    ),
    ("Q04", r"k_3 = w - 1 - \log w", lambda c: (mean(c.pol, c.k3), c.kl)),
    (
        "Q07",
        r"\E_{\pol}[r] - \beta \KL{\pol}{\refp} = \beta \log Z - \beta \KL{\pol}{\pi^*}",
        lambda c: (
            c.value(c.pol),
            c.beta * math.log(c.z)
            - c.beta * mean(c.pol, [math.log(a / b) for a, b in zip(c.pol, c.opt, strict=True)]),
        ),
    ),
    ("Q07", r"\E_{\pol}[w \log w]", lambda c: (mean(c.pol, [w * math.log(w) for w in c.w]), c.forward)),
    (
        "Q11",
        r"\E_{\pol}[\pol/\refp] = 1 + \chi^2(\pol \| \refp)",
        lambda c: (mean(c.pol, [1 / w for w in c.w]), 1 + c.chi2(c.pol, c.ref)),
    ),
    (
        "Q04",
        r"\chi^2(\pol \| \refp) - \KL{\pol}{\refp}",
        lambda c: (mean(c.pol, [1 / w - 1 - math.log(1 / w) for w in c.w]), c.chi2(c.pol, c.ref) - c.kl),
    ),
    ("Q10a", r"1 - e^{-\delta}", lambda c: ((c.y - (math.exp(-c.y) - 1 + c.y), 1 - math.exp(-c.y)))),
    (
        "Q12",
        r"\lambda^* = J/\chi^2(\refp \| \pol)",
        lambda c: (
            -(mean(c.pol, [k * (w - 1) for k, w in zip(c.k1, c.w, strict=True)])) / c.var(c.w),
            c.jeffreys / c.chi2(c.ref, c.pol),
        ),
    ),
    (
        "Q12a",
        r"w \log w - (w - 1)",
        lambda c: (mean(c.pol, [w * math.log(w) - (w - 1) for w in c.w]), c.forward),
    ),
    (
        "Q13",
        r"r = \beta \log \frac{\pi^*}{\refp} + \beta \log Z",
        lambda c: (c.r[0], c.beta * math.log(c.opt[0] / c.ref[0]) + c.beta * math.log(c.z)),
    ),
    ("Q13", r"\beta \log Z - \beta \KL{\pi}{\pi^*}", lambda c: (c.value(c.opt), c.beta * math.log(c.z))),
    (
        "Q15",
        r"\sigma' = \sigma(h)\sigma(-h)",
        lambda c: ((sigma(c.x + 1e-6) - sigma(c.x - 1e-6)) / 2e-6, sigma(c.x) * sigma(-c.x)),
    ),
    (
        "Q15",
        r"\nabla L = -\beta\, \sigma(-h)\,\left(\nabla \log \pol(y_w) - \nabla \log \pol(y_l)\right)",
        lambda c: (
            (math.log1p(math.exp(-c.beta * (c.x + 1e-6))) - math.log1p(math.exp(-c.beta * (c.x - 1e-6))))
            / 2e-6,
            -c.beta * sigma(-c.beta * c.x),
        ),
    ),
    ("Q16", r"\E_{\pol}[e^{-\delta}] = 1", lambda c: (mean(c.pol, [math.exp(-d) for d in c.delta]), 1)),
    (
        "Q16",
        r"\E[k_2] - \mathrm{KL} = \E[\delta^3]/3! - \E[\delta^4]/4! + \dots",
        lambda c: (
            mean(c.pol, c.k2) - c.kl,
            math.fsum(
                (-1) ** (n + 1) * mean(c.pol, [d**n for d in c.delta]) / math.factorial(n)
                for n in range(3, 60)
            ),
        ),
    ),
    (
        "Q16",
        r"\E_{\pol}[r - 1] = \chi^2(\pol \| \refp)",
        lambda c: (mean(c.pol, [1 / w - 1 for w in c.w]), c.chi2(c.pol, c.ref)),
    ),
    (
        "Q21",
        r"\nabla k_3 = (1 - w) \nabla \log \pol",
        lambda c: (c.gradient([1 - w for w in c.w])[1], c.pol[1] - c.ref[1]),
    ),
    (
        "Q21",
        r"\E_{\pol}[\delta \nabla \log \pol] = \nabla \KL{\pol}{\refp}",
        lambda c: (c.gradient(c.delta)[1], c.pol[1] * (c.delta[1] - c.kl)),
    ),
    (
        "Q21a",
        r"\rho\,(k_3 + \frac{d k_3}{d \delta}) = \rho \delta",
        lambda c: (math.exp(-c.x) - 1 + c.x + 1 - math.exp(-c.x), c.x),
    ),
    (
        "Q22b",
        r"J(\pi^*) - J(\pi) = \beta \KL{\pi}{\pi^*}",
        lambda c: (
            c.value(c.opt) - c.value(c.pol),
            c.beta * mean(c.pol, [math.log(a / b) for a, b in zip(c.pol, c.opt, strict=True)]),
        ),
    ),
    (
        "Q11b",
        r"\Var k_3 = \Var k_1 + \chi^2(\refp \| \pol) - 2J",
        lambda c: (mean(c.pol, [k * w for k, w in zip(c.k1, c.w, strict=True)]), -c.forward),
    ),
    (
        "Q14a",
        r"(p - \frac{1}{2})/\tau",
        lambda c: (c.y / 3 * 1 / (2 * c.beta) - (1 - c.y / 3) / (2 * c.beta), (c.y / 3 - 0.5) / c.beta),
    ),
    ("Q23", r"d = \alpha/(2\beta)", lambda c: (c.lam - 2 * c.beta * (c.lam / (2 * c.beta)), 0)),
    (
        "Q23",
        r"d = e^{\alpha/\beta - 1}",
        lambda c: (c.lam - c.beta * math.log(math.exp(c.lam / c.beta - 1)) - c.beta, 0),
    ),
    (
        "Q23",
        r"\alpha^2/(4\beta)",
        lambda c: ((d := c.lam / (2 * c.beta)) * (c.lam - c.beta * d), c.lam**2 / (4 * c.beta)),
    ),
]


@pytest.mark.parametrize(
    ("id", "formula", "sides"), IDENTITIES, ids=[f"{i}-{f[:24]}" for i, f, _ in IDENTITIES]
)
def test_formulas_hold_at_random_distributions(id, formula, sides):
    assert any(formula in text for text in BY_ID[id].own_words), f"{id} does not print {formula}"
    for seed in range(5):
        left, right = sides(Case(seed))
        assert left == pytest.approx(right, rel=1e-6, abs=1e-8)


def test_macros_are_those_of_the_book():
    book = CONFIG["mathjax3_config"]["tex"]["macros"]
    assert {
        name: tuple(value) if isinstance(value, list) else (value, 0) for name, value in book.items()
    } == render.MACROS


RENDER = """(async () => { await MathJax.startup.promise; return formulas.map(tex => {
    try { const mml = MathJax.tex2mml(tex); return mml.includes('<merror') ? 'merror' : ''; }
    catch (error) { return String(error.message ?? error); } }); })()"""


def rendered(chromium, formulas, macros, tmp_path):
    """Return what the book's own MathJax says against each formula, '' where it can set it."""
    import sphinx

    script = Path(sphinx.__file__).parents[1] / "sphinx-mathjax-offline/static/mathjax/tex-mml-chtml.js"
    settings = {
        "tex": {"macros": macros, "packages": {"[-]": ["noundefined", "noerrors"]}},
        "startup": {"typeset": False},
    }
    page_file = tmp_path / "formulas.html"
    page_file.write_text(
        f"<!doctype html><meta charset=utf-8><script>MathJax = {json.dumps(settings)}; "
        f"formulas = {json.dumps(sorted(formulas))};</script><script src='{script.as_uri()}'></script>",
        encoding="utf-8",
    )
    page = chromium.new_page()
    page.goto(page_file.as_uri())
    complaints = page.evaluate(RENDER)
    page.close()
    return {tex: said for tex, said in zip(sorted(formulas), complaints, strict=True) if said}


def test_mathjax_can_set_every_formula_with_and_without_the_macros(chromium, tmp_path):
    numeric = [t for q in NUMERIC[::3] for t in (q.prompt, q.solution, *(trap.says for trap in q.traps))]
    every = {
        tex
        for text in [t for entry in ENTRIES for t in texts(entry)] + numeric
        for tex in render.formulas(text)
    }
    assert len(every) > 500
    broken = {r"\frac{a}{", r"\unknown", r"\KL{p}"}
    macros = CONFIG["mathjax3_config"]["tex"]["macros"]
    assert set(rendered(chromium, every | broken, macros, tmp_path)) == broken
    assert rendered(chromium, {render.expand(tex) for tex in every}, {}, tmp_path) == {}


def test_the_terminal_form_has_no_latex_left_and_the_html_form_no_dollar():
    numeric = [t for q in NUMERIC[::4] for t in (q.prompt, q.solution, *(trap.says for trap in q.traps))]
    for text in [t for entry in ENTRIES for t in texts(entry)] + numeric:
        assert not re.search(
            r"[\\${}`]|\b(left|right|frac|mathrm|text|quad)\b ?\(|\barrow|log [²^]", render.terminal(text)
        ), text
        page = render.mathjax(text)
        assert "$" not in page
        assert page.count(r"\(") + page.count(r"\[") == len(render.formulas(text))
        assert not re.search(r"\\(KL|E|pol|refp|Var|Cov)(?![A-Za-z])", page)


@pytest.mark.parametrize("tex", [r"\KL{p}", r"\KL p q", r"\KL{p}{q"])
def test_a_macro_without_its_arguments_is_an_error(tex):
    with pytest.raises(ValueError, match="an argument in braces"):
        render.expand(tex)


# What no text may say


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_nothing_known_to_be_wrong_is_said(entry):
    for text in entry.own_words:
        assert known_wrong.says(text) == [], text


def test_numeric_questions_say_nothing_known_to_be_wrong():
    for question in NUMERIC[::4]:
        for text in (question.prompt, question.solution, *(trap.says for trap in question.traps)):
            assert known_wrong.says(text) == [], text


def test_the_prose_is_plain():
    for entry in ENTRIES:
        for text in texts(entry):
            assert "—" not in text
            assert not re.search(
                r"\b(simply put|obviously|clearly|basically|it is worth|delve|crucial)", text, re.IGNORECASE
            )
            assert not re.search(r"\b(regulariz|optimiz|behavior|favor\b|neighbor)", text), text
            assert text.rstrip()[-1] in ".?!:$", text


# Numeric questions, a second time


def log_ratio_margin(i):
    return i["beta"] * ((i["chosen"] - i["ref_chosen"]) - (i["rejected"] - i["ref_rejected"]))


def entropy_kl(p, q):
    cross = -math.fsum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return cross + math.fsum(a * math.log(a) for a in p)


def boltzmann(i):
    top = max(i["rewards"])
    weights = [b * math.exp((r - top) / i["beta"]) for b, r in zip(i["ref"], i["rewards"], strict=True)]
    return [weight / sum(weights) for weight in weights], top / i["beta"] + math.log(sum(weights))


def simpson(f, low=-12.0, high=12.0, steps=4000):
    """Return the integral of f times the standard normal density."""
    h = (high - low) / steps
    points = [low + i * h for i in range(steps + 1)]
    weights = [1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1)]
    return math.fsum(
        w * f(x) * math.exp(-x * x / 2) / math.sqrt(2 * math.pi) * h / 3
        for w, x in zip(weights, points, strict=True)
    )


def k3_variance_over_k1(i):
    mu = i["mu"]

    def k3(y):
        delta = (mu * mu - 2 * mu * y) / 2  # log N(y; 0, 1) - log N(y; mu, 1)
        return math.exp(-delta) - 1 + delta

    return (simpson(lambda y: k3(y) ** 2) - simpson(k3) ** 2) / mu**2


def largest_of(i):
    """KL of best-of-n for a uniform reward: its density is n x^(n - 1)."""
    n, steps = i["n"], 20000
    grid = [(j + 0.5) / steps for j in range(steps)]
    return math.fsum(n * x ** (n - 1) * math.log(n * x ** (n - 1)) for x in grid) / steps


def two_answer_rest(i):
    """Rational tilt of two answers with rewards 0 and 1: the root of a quadratic in λ."""
    beta, (low, high) = i["beta"], i["ref"]
    b, c = -(1 + beta), beta * low
    level = (-b + math.sqrt(b * b - 4 * c)) / 2
    assert beta * low / level + beta * high / (level - 1) == pytest.approx(1)
    return beta * low / level


def population_z(i):
    scores, n = i["scores"], len(i["scores"])
    pairs = sum((a - b) ** 2 for a in scores for b in scores) / (2 * n * n)  # the variance, without the mean
    return (n * scores[0] - sum(scores)) / n / math.sqrt(pairs)


def ziegler(i):
    error = i["measured"] / i["target"] - 1
    if abs(error) > i["clip"]:
        error = math.copysign(i["clip"], error)
    return i["beta"] * (i["horizon"] + error * i["n"]) / i["horizon"]


def surrogate(i):
    ratio, advantage, eps = i["ratio"], i["advantage"], i["eps"]
    held = (advantage > 0 and ratio > 1 + eps) or (advantage < 0 and ratio < 1 - eps)
    return advantage * ((1 + math.copysign(eps, advantage)) if held else ratio)


def coin_kl(i):
    won, start = 1 - (1 - i["start"]) ** i["n"], i["start"]
    return entropy_kl([won, 1 - won], [start, 1 - start])


def top_two(i):
    kept = i["policy"][:2]
    cut = [p / sum(kept) for p in kept]
    return math.fsum(c * (q / c - 1 - math.log(q / c)) for c, q in zip(cut, i["ref"][:2], strict=True))


def half_of_the_peak(i):
    spent = max((j / 1000) ** 2 for j in range(40_000) if i["alpha"] >= 2 * i["beta"] * j / 1000)
    return math.sqrt(spent / 2)


ORACLES = {
    "kl": lambda i: entropy_kl(i["policy"], i["ref"]),
    "forward-kl": lambda i: entropy_kl(i["ref"], i["policy"]),
    "k2-mean": lambda i: simpson(lambda y: ((i["mu"] ** 2 - 2 * i["mu"] * y) / 2) ** 2 / 2),
    "variance-ratio": k3_variance_over_k1,
    "k3-token": lambda i: math.exp(i["ref_logp"] - i["logp"]) - 1 - (i["ref_logp"] - i["logp"]),
    "negative-share": lambda i: 50 * (1 + math.erf(-i["mu"] / 2 / math.sqrt(2))),
    "top-k": top_two,
    "best-answer": lambda i: boltzmann(i)[0][2],
    "value": lambda i: (
        mean(boltzmann(i)[0], i["rewards"]) - i["beta"] * entropy_kl(boltzmann(i)[0], i["ref"])
    ),
    "kl-spent": lambda i: entropy_kl(boltzmann(i)[0], i["ref"]),
    "beta-for-reward": lambda i: 1 / math.log(i["goal"] * (1 - i["start"]) / (i["start"] * (1 - i["goal"]))),
    "k3-rest": two_answer_rest,
    "gaussian-price": lambda i: (i["sd"] ** 2 / (2 * i["budget"])) ** 0.5,
    "best-of-n": largest_of,
    "best-of-n-ties": coin_kl,
    "half-budget": half_of_the_peak,
    "implicit-margin": log_ratio_margin,
    "dpo-weight": lambda i: i["beta"] / (1 + math.exp(log_ratio_margin(i))),
    "dpo-loss": lambda i: math.log1p(math.exp(-log_ratio_margin(i))),
    "ipo-margin": lambda i: i["share"] / (2 * i["tau"]) - (1 - i["share"]) / (2 * i["tau"]),
    "group-advantage": population_z,
    "group-beta": lambda i: i["beta"] * math.sqrt(i["rate"] - i["rate"] ** 2),
    "ziegler-step": ziegler,
    "sequence-kl": lambda i: sum(sum(row) for row in i["rows"]) / 2,
    "masked-mean": lambda i: sum(sum(row) for row in i["rows"]) / sum(len(row) for row in i["rows"]),
    "row-means": lambda i: sum(sum(row) / len(row) for row in i["rows"]) / 2,
    "ppo-clip": surrogate,
    "last-reward": lambda i: i["score"] + i["beta"] * (i["ref_logp"] - i["logp"]),
    "prefix-ratio": lambda i: math.exp(sum(i["logp"][:2]) - sum(i["old_logp"][:2])),
}


@pytest.mark.parametrize("kind", interview.KINDS)
def test_numeric_answers_are_recomputed(kind):
    for seed in SEEDS:
        question = interview.numeric_question(kind, seed)
        again = ORACLES[kind](dict(question.inputs))
        assert again == pytest.approx(question.answer, rel=1e-3 if kind == "half-budget" else 1e-6), seed
        assert question.right(again)
        assert question.right(float(f"{question.answer:.3g}")), "three significant digits must do"


def flat(value):
    return [x for part in value for x in flat(part)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("kind", interview.KINDS)
def test_prompts_show_their_numbers_and_solutions_their_answer(kind):
    for seed in SEEDS:
        question = interview.numeric_question(kind, seed)
        assert question == interview.numeric_question(kind, seed)
        prompt = shown(question.prompt.replace("top-", "top ").replace("Best-of-", "n "))
        for value in flat(tuple(part for _, part in question.inputs)):
            assert f"{value:g}" in prompt, (value, question.prompt)
        assert any(agrees(number, question.answer) for number in shown(question.solution)), question.solution
        assert (question.level in interview.LEVELS, question.topic in interview.TOPICS) == (True, True)


@pytest.mark.parametrize("kind", interview.KINDS)
def test_a_misconception_is_not_accepted_and_is_named(kind):
    for seed in SEEDS:
        question = interview.numeric_question(kind, seed)
        assert question.traps
        for trap in question.traps:
            assert not question.right(trap.value)
            assert question.misreading(float(f"{trap.value:.4g}")) == trap.says
        assert question.misreading(question.answer) is None
        assert not question.right(math.nan)
        assert question.misreading(math.nan) is None
        assert not question.right(1.02 * question.answer)


def test_forty_questions_are_forty_and_come_from_all_kinds():
    questions = interview.numeric_questions(seed=7, size=58)
    assert questions == interview.numeric_questions(seed=7, size=58)
    assert questions != interview.numeric_questions(seed=8, size=58)
    assert set(Counter(question.kind for question in questions).values()) == {2}
    assert len({question.prompt for question in questions}) >= 40
    assert len(interview.KINDS) >= 12
    everything = {question.prompt for question in NUMERIC}
    assert len(everything) > 0.75 * len(NUMERIC)
    with pytest.raises(ValueError, match="no kind of question has level 3 and topic 'basics'"):
        interview.numeric_questions(0, 1, level=3, topic="basics")
    with pytest.raises(ValueError, match="size is 0"):
        interview.numeric_questions(0, 0)
    with pytest.raises(ValueError, match="kind is 'cooking'"):
        interview.numeric_question("cooking", 0)


@pytest.mark.parametrize("expression", ["kl(", "open('x')", "[1, 2]", "1 == 1", "__import__('os')"])
def test_an_expression_outside_the_list_of_names_is_refused(expression):
    with pytest.raises(ValueError, match=r"cannot be computed|a number is expected"):
        evaluate(expression)
