"""Every derivation closes, its broken twin does not, and its last line is the number the package computes."""

import re

import pytest
import sympy as sp
import torch

import kltutor
from kltutor import derivations
from kltutor.derivations import Derivation, DerivationError

POLICY = torch.tensor([0.50, 0.30, 0.20], dtype=torch.float64)
REF = torch.tensor([0.05, 0.15, 0.80], dtype=torch.float64)  # so unlike it that no bug can hide

# What each broken assumption leaves over.
TWINS = [
    ("log_tangent", {"slope": 2}, "1"),
    ("gibbs_inequality", {"normalised": False}, "pi_1 + pi_2 + pi_3 - 1"),
    ("chain_rule", {"normalised": False}, "(pi_u|a + pi_v|a - 1)*log(pi_a)"),
    ("fisher_hessians", {"at_reference": False}, "delta_1**2"),
    ("pinsker_bernoulli", {"constant": 3}, "(6*y**2 - 6*y + 1)"),
    ("k3_is_nonnegative", {"flipped": True}, "2"),
    ("k3_is_unbiased", {"covers": False}, "-m"),
    ("only_coef_one_is_nonnegative", {"coef": 2}, "1"),
    ("only_coef_one_is_nonnegative", {"coef": sp.Rational(1, 2)}, "-1/2"),
    ("variance_of_k3", {"swapped": True}, "(pi_1 - ref_1)**2/ref_1"),
    ("covariance_with_control_variate", {"covers": False}, "m*(delta_1*pi_1"),
    ("gaussian_moments", {"shift": -1}, "exp(2*mu*y) - 1"),
    ("taylor_orders", {"bias_order": 2}, "-epsilon**2*kappa_2/2 + O(epsilon**3)"),
    ("taylor_orders", {"bias_order": 4}, "epsilon**3*kappa_3/6"),
]
NAMES = sorted({name for name, _, _ in TWINS})

x, y = sp.symbols("x y", real=True)
a, b = sp.symbols("a b", positive=True)


@pytest.fixture(scope="module")
def built():
    return {name: getattr(derivations, name)() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_derivation_closes(built, name):
    derivation = built[name]
    assert isinstance(derivation, Derivation)
    assert len(derivation.steps) >= 2


def test_every_public_derivation_has_a_broken_twin():
    public = {name for name in derivations.__all__ if name.islower()}
    assert public == set(NAMES)


@pytest.mark.parametrize(("name", "broken", "left_over"), TWINS)
def test_a_broken_assumption_is_rejected_and_its_residual_shown(name, broken, left_over):
    with pytest.raises(DerivationError) as caught:
        getattr(derivations, name)(**broken)
    message = str(caught.value)
    assert left_over in message.split("Residual: ")[1]
    assert message.endswith(str(caught.value.residual))


def test_a_false_equality_is_rejected_with_the_difference():
    with pytest.raises(DerivationError, match=r"step 2: not equal.*\nResidual: -x\*\*2"):
        Derivation("false").start((x + 1) ** 2, "square").equal(2 * x**2 + 2 * x + 1, "wrong")


def test_an_equality_that_holds_only_to_leading_digits_is_rejected():
    almost = sp.Rational(314159265358979323846, 10**20)
    with pytest.raises(DerivationError, match="not equal"):
        Derivation("false").start(sp.pi, "a number").equal(almost, "21 digits of it")


@pytest.mark.parametrize(
    ("bound", "start", "claim", "options"),
    [
        ("at_least", x**2, 1, {}),
        ("at_most", x**2, 0, {}),
        ("at_least", sp.exp(x), 1 + x + x**2 / 2, {"minimum": (x, 0)}),  # fails for x < 0
        ("at_least", x**3, 0, {"minimum": (x, 0)}),  # flat at 0, yet no minimum
        ("at_least", -(x**2), 0, {"minimum": (x, 0)}),  # a maximum
        ("at_least", x**2, 1, {"minimum": (x, 0)}),  # a minimum below 0
        ("at_least", (x**2 - 1) ** 2 - 1, 0, {"minimum": (x, 0)}),  # a local maximum of 0
        ("at_least", sp.floor(x) ** 2, 0, {"minimum": (x, 0)}),  # nothing to differentiate
        ("at_least", sp.log(a), a - 1, {"minimum": (a, 1)}),  # reversed
        ("at_least", x * (1 - x), 0, {"on": {x: (0, 2)}}),
        ("at_least", x**2 + sp.O(x**3), x**2, {}),  # a remainder may have either sign
    ],
)
def test_a_false_or_unsupported_inequality_is_rejected(bound, start, claim, options):
    with pytest.raises(DerivationError, match="Residual: "):
        getattr(Derivation("false").start(start, "start"), bound)(claim, "wrong", **options)


def test_an_interval_decides_what_is_non_negative():
    derivation = Derivation("true").start(x * (1 - x), "start")
    assert derivation.at_least(0, "both factors", on={x: (0, 1)}).relation == r"\ge"
    with pytest.raises(DerivationError):
        Derivation("false").start(x * (1 - x), "start").at_least(0, "one factor", on={x: (0, 2)})


@pytest.mark.parametrize(
    ("start", "claim"),
    [(sp.log(x * y), sp.log(x) + sp.log(y)), (sp.sqrt(x**2), x), (sp.log(sp.exp(a * x) * y), y)],
)
def test_a_step_that_needs_an_unproved_assumption_is_rejected(start, claim):
    with pytest.raises(DerivationError, match="not equal"):
        Derivation("needs a sign").start(start, "real symbols").equal(claim, "positive symbols only")


def test_the_same_step_closes_once_the_assumption_is_made():
    Derivation("signs").start(sp.log(a * b), "positive").equal(
        sp.log(a) + sp.log(b), "so the logarithm splits"
    )
    product = Derivation("given").start(x * y, "start").equal(x, "one factor is 1", given={y: 1})
    assert product.steps[-1].given == {y: 1}
    assert "Given $y = 1$." in product._repr_markdown_()


def test_an_assumption_that_is_not_needed_is_not_listed():
    derivation = Derivation("idle").start(2 * x, "start").equal(x + x, "add", given={y: 1})
    assert "Given" not in derivation._repr_markdown_()


def test_an_assumption_that_contradicts_its_symbol_is_rejected():
    with pytest.raises(DerivationError, match="a = -1 contradicts"):
        Derivation("false").start(a, "positive").equal(-1, "negative", given={a: -1})
    with pytest.raises(DerivationError, match="assumes more"):
        Derivation("false", where={a: x})  # positive stands for a real number of any sign
    with pytest.raises(DerivationError, match="another value"):
        Derivation("false", where={x: y}).start(x, "start").equal(1, "two meanings", given={x: 1})


def test_a_remainder_cannot_be_dropped_or_shrunk():
    cosine = Derivation("order").start(1 - x**2 / 2 + sp.O(x**4), "start")
    with pytest.raises(DerivationError, match="not equal"):
        cosine.equal(1 - x**2 / 2, "drop it")
    with pytest.raises(DerivationError, match="not equal"):
        cosine.equal(1 - x**2 / 2 + sp.O(x**6), "shrink it")
    cosine.equal(1 + sp.O(x**2), "coarsen it")


def test_a_chain_cannot_turn_round():
    with pytest.raises(DerivationError, match="one side only"):
        Derivation("turn").start(x**2 + 1, "start").at_least(1, "down").at_most(x**2 + 1, "up again")


def test_a_lemma_is_used_only_where_it_was_proved():
    lemma = derivations.log_tangent()
    (z,) = lemma.steps[0].expr.free_symbols
    start = Derivation("uses it").start(b * (a - 1) - b * sp.log(a), "start")
    with pytest.raises(DerivationError, match="weights >= 0"):
        start.at_least(0, "negative weight", lemma=lemma, terms=[(-b, {z: a})])
    with pytest.raises(DerivationError, match="assumes more"):
        start.at_least(0, "outside its range", lemma=lemma, terms=[(b, {z: x})])
    with pytest.raises(DerivationError, match="does not follow"):
        start.at_least(0, "at another point", lemma=lemma, terms=[(b, {z: 2 * a})])
    with pytest.raises(DerivationError, match="no equality"):
        start.equal(0, "a bound is no equality", lemma=lemma, terms=[(b, {z: a})])
    with pytest.raises(DerivationError, match="holds under assumptions"):
        start.at_least(0, "conditional", lemma=derivations.pinsker_bernoulli(), terms=[(1, {})])
    start.at_least(0, "as proved", lemma=lemma, terms=[(b, {z: a})])


def test_a_proved_equality_can_be_a_step():
    halves = Derivation("lemma").start(sp.log(a**2), "start").equal(2 * sp.log(a), "a power")
    user = Derivation("user").start(3 * sp.log(b**2) + x, "start")
    user.equal(6 * sp.log(b) + x, "by the lemma", lemma=halves, terms=[(3, {a: b})])
    assert user.relation == "="


@pytest.mark.parametrize("name", NAMES)
def test_markdown_is_balanced_numbered_and_the_same_each_time(built, name):
    text = built[name]._repr_markdown_()
    assert text == getattr(derivations, name)()._repr_markdown_()
    assert text.count("{") == text.count("}")
    assert text.count(r"\left") == text.count(r"\right")
    assert text.count("$$") == 2
    assert text.replace("$$", "").count("$") % 2 == 0
    block = text.split("$$")[1]
    assert "$" not in block
    assert block.count(r"\begin{") == block.count(r"\end{")
    numbers = [str(i) for i in range(1, len(built[name].steps) + 1)]
    assert re.findall(r"&&\((\d+)\)", block) == numbers
    assert re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE) == numbers


def test_repr_is_short():
    assert repr(derivations.k3_is_nonnegative()) == "Derivation('k3 is never negative', 3 steps)"


def test_alike_terms_print_as_a_sum_only_when_every_outcome_has_one():
    p = sp.symbols("p_1:4", positive=True)
    partial = Derivation("two of three", outcomes=3).start(p[0] + p[1], "start")
    whole = Derivation("all three", outcomes=3).start(sum(p), "start")
    assert r"\sum_i" not in partial._repr_markdown_()
    assert r"\sum_i p_{i}" in whole._repr_markdown_()


def number(derivation, name, values):
    """Evaluate the last line of a named chain at numbers for its symbols, by their names."""
    (expr,) = (expr for key, expr in derivation.results.items() if key == name)
    return float(sp.N(expr.subs({s: values[s.name] for s in expr.free_symbols}), 30))


def outcome_values(**more):
    values = dict(more)
    for i in range(3):
        p, q = sp.Float(POLICY[i].item(), 30), sp.Float(REF[i].item(), 30)
        values |= {f"pi_{i + 1}": p, f"ref_{i + 1}": q, f"delta_{i + 1}": sp.log(p / q)}
    return values


def test_gaussian_moments_are_those_of_the_package(built):
    for mu in (0.5, 1.3):
        for name, moments in kltutor.gaussian_moments(mu).items():
            estimator = f"k_{name[1]}"
            values = {"mu": sp.Float(mu, 30)}
            mean = number(built["gaussian_moments"], rf"\mathbb{{E}}_\pi[{estimator}]", values)
            variance = number(built["gaussian_moments"], rf"\mathrm{{Var}}[{estimator}]", values)
            assert mean == pytest.approx(moments.mean.item(), rel=1e-12)
            assert variance == pytest.approx(moments.variance.item(), rel=1e-12)


def test_variance_of_k3_is_that_of_the_package(built):
    exact = kltutor.estimator_moments(POLICY.log(), REF.log())["k3"].variance.item()
    derived = number(built["variance_of_k3"], r"\mathrm{Var}[k_3]", outcome_values())
    assert derived == pytest.approx(exact, rel=1e-12)


def test_k3_mean_is_the_kl_of_the_package(built):
    derived = number(built["k3_is_unbiased"], r"\mathbb{E}_\pi[k_3]", outcome_values())
    assert derived == pytest.approx(kltutor.kl(POLICY.log(), REF.log()).item(), rel=1e-12)


def test_least_variance_of_the_control_variate_is_that_of_the_package(built):
    chi2 = kltutor.chi2(REF.log(), POLICY.log()).item()
    values = outcome_values(chi2=sp.Float(chi2, 30))
    derivation = built["covariance_with_control_variate"]
    covariance = number(derivation, r"\mathrm{Cov}(k_1, w - 1)", values)
    assert covariance == pytest.approx(-kltutor.jeffreys(POLICY.log(), REF.log()).item(), rel=1e-12)

    coef = kltutor.optimal_coef(POLICY.log(), REF.log()).item()
    estimate = kltutor.control_variate(POLICY.log(), REF.log(), coef=coef)
    variance = POLICY @ estimate.square() - (POLICY @ estimate).square()
    least = number(derivation, r"\mathrm{Var}[k_1 + \lambda (w - 1)]", values)
    assert least == pytest.approx(variance.item(), rel=1e-10)


def test_chain_rule_gives_the_kl_of_the_joint_distribution(built):
    policy_then = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    ref_then = torch.tensor([[0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    first, ref_first = POLICY[1:] / POLICY[1:].sum(), REF[1:] / REF[1:].sum()
    values = {}
    for i, token in enumerate("ab"):
        values |= {f"pi_{token}": first[i].item(), f"ref_{token}": ref_first[i].item()}
        for j, after in enumerate("uv"):
            values[f"pi_{after}|{token}"] = policy_then[i, j].item()
            values[f"ref_{after}|{token}"] = ref_then[i, j].item()
    joint, ref_joint = (first[:, None] * policy_then).flatten(), (ref_first[:, None] * ref_then).flatten()
    derived = number(built["chain_rule"], derivations.basics.KL, values)
    assert derived == pytest.approx(kltutor.kl(joint.log(), ref_joint.log()).item(), rel=1e-12)


def test_fisher_matrix_is_the_hessian_that_autograd_finds(built):
    matrix = (
        built["fisher_hessians"]
        .steps[-1]
        .expr.subs({sp.Symbol(f"pi_{i + 1}", positive=True): POLICY[i].item() for i in range(3)})
    )
    fisher = torch.tensor(matrix.tolist(), dtype=torch.float64)
    ref_logp = POLICY.log()

    def k2_mean(logits):
        logp = logits.log_softmax(-1)
        return (logp.exp() * kltutor.k2(logp, ref_logp)).sum()

    for value in (
        lambda logits: kltutor.kl(logits.log_softmax(-1), ref_logp),
        lambda logits: kltutor.kl(ref_logp, logits.log_softmax(-1)),
        k2_mean,
    ):
        hessian = torch.autograd.functional.hessian(value, POLICY.log())
        torch.testing.assert_close(hessian, fisher)


def test_bias_of_k2_shrinks_like_the_leading_cumulant(built):
    f = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    centred = f - REF @ f
    kappa2, kappa3 = REF @ centred**2, REF @ centred**3
    kappa4 = REF @ centred**4 - 3 * kappa2**2
    eps = 1e-2
    logp = (REF.log() + eps * f).log_softmax(-1)
    bias = kltutor.estimator_moments(logp, REF.log())["k2"].bias
    (name,) = (key for key in built["taylor_orders"].results if "k_2" in key)
    chain = [step.expr for step in built["taylor_orders"].chain]
    assert str(chain[-1]) == "epsilon**3*kappa_3/6 + O(epsilon**4)", name
    values = {"epsilon": eps, "kappa_2": kappa2.item(), "kappa_3": kappa3.item(), "kappa_4": kappa4.item()}
    fourth = chain[-2].removeO()
    derived = float(fourth.subs({s: values[s.name] for s in fourth.free_symbols}))
    assert bias.item() == pytest.approx(derived, rel=10 * eps**2)


def test_pinsker_fails_where_the_larger_constant_is_rejected():
    p = torch.tensor([0.5, 0.5], dtype=torch.float64)
    q = torch.tensor([0.55, 0.45], dtype=torch.float64)
    squared = kltutor.tv(p.log(), q.log()) ** 2
    assert 2 * squared <= kltutor.kl(p.log(), q.log()) < 3 * squared
