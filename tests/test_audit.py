"""The auditor: every function by its name, the numbers against sums of their own, and what it refuses."""

import inspect
import io
import itertools
import json
import math
import subprocess
import sys
import time

import jaxtyping
import pytest
import torch

import kltutor
from kltutor import atlas, bugs, exact, full_vocab_kl, k1, k2, k3, kl_in_reward, kl_loss
from kltutor.audit import GRADIENTS, VALUES, catalogue, check
from kltutor.audit.worlds import kl, worlds
from kltutor.libraries import terms

LOG2 = math.log(2)
MASKED = ("logp", "ref_logp", "mask")
OLD = ("logp", "ref_logp", "old_logp")
ALL = ("logp", "ref_logp", "old_logp", "mask")
WHOLE = ("seq_logp", "ref_seq_logp")
LOGITS = ("logits", "ref_logits")
REVERSE, FORWARD = "KL(π‖ref)", "KL(ref‖π)"
INVERTED = "χ²(π‖ref) - KL(π‖ref)"
SQUARE, SIZE = "½E[log²(π/ref)]", "E|log(π/ref)|"
TOKEN, OLDER = " per token", " per token, prefixes of old"
UNCORRECTED = "KL(old‖ref) - KL(old‖π)"


def three(d):
    return torch.expm1(-d) + d


def clamp(f, low, high):
    return lambda a, b: f((a - b).clamp(low, high))


def loss(estimator, **options):
    """`kl_loss` with old_logp where a correction wants it."""
    if "correction" in options:
        return lambda a, b, old, mask: kl_loss(a, b, mask, estimator, old_logp=old, **options)
    return lambda a, b, old, mask: kl_loss(a, b, mask, estimator, **options)


# function, inputs, returns: value, gradient, and on stale samples value and gradient
KNOWN = {
    "k1": (k1, None, None, REVERSE, "0", UNCORRECTED, "-∇KL(old‖π)"),
    "k2": (k2, None, None, SQUARE + TOKEN, "∇KL(π‖ref) per token", None, "∇E_old[k2] per token"),
    "k3": (k3, None, None, REVERSE, "∇KL(ref‖π) per token", "E_old[k3] per token", "∇E_old[k3] per token"),
    "-k1": (lambda a, b: b - a, None, None, "-KL(π‖ref)", "0", f"-({UNCORRECTED})", "∇KL(old‖π)"),
    "-k2": (lambda a, b: -k2(a, b), None, None, f"-{SQUARE}{TOKEN}", "-∇KL(π‖ref) per token", None, None),
    "-k3": (lambda a, b: -k3(a, b), None, None, "-KL(π‖ref)", "-∇KL(ref‖π) per token", None, None),
    "k3 swapped": (
        lambda a, b: three(b - a),
        None,
        None,
        INVERTED + TOKEN,
        "∇½χ²(π‖ref) per token",
        "E_old[inverted k3] per token",
        "∇E_old[inverted k3] per token",
    ),
    "-k3 swapped": (
        lambda a, b: -three(b - a),
        None,
        None,
        f"-({INVERTED}) per token",
        "-∇½χ²(π‖ref) per token",
        None,
        None,
    ),
    "|k1|": (lambda a, b: (a - b).abs(), None, None, SIZE + TOKEN, "∇2·TV(π, ref) per token", None, None),
    "k1 of the completion": (k1, WHOLE, "sequence", REVERSE, "0", UNCORRECTED, "-∇KL(old‖π)"),
    "k2 of the completion": (k2, WHOLE, "sequence", SQUARE, "∇KL(π‖ref)", None, "∇E_old[k2]"),
    "k3 of the completion": (k3, WHOLE, "sequence", REVERSE, "∇KL(ref‖π)", "E_old[k3]", "∇E_old[k3]"),
    "k3 of the completion swapped": (
        lambda a, b: three(b - a),
        WHOLE,
        "sequence",
        INVERTED,
        "∇½χ²(π‖ref)",
        None,
        None,
    ),
    "|k1| of the completion": (
        lambda a, b: (a - b).abs(),
        WHOLE,
        "sequence",
        SIZE,
        "∇2·TV(π, ref)",
        None,
        None,
    ),
    "full": (
        full_vocab_kl,
        LOGITS,
        "token",
        REVERSE,
        "∇KL(π‖ref) per token",
        REVERSE + OLDER,
        "∇KL(π‖ref) per token, prefixes of old",
    ),
    "full swapped": (
        lambda a, b: full_vocab_kl(b, a),
        LOGITS,
        "token",
        FORWARD + TOKEN,
        "∇KL(ref‖π) per token",
        FORWARD + OLDER,
        None,
    ),
    "loss k1": (loss("k1"), ALL, "scalar", REVERSE, "0", UNCORRECTED, "-∇KL(old‖π)"),
    "loss k3 of the sequence": (
        loss("k3", level="sequence"),
        ALL,
        "scalar",
        REVERSE,
        "∇KL(ref‖π)",
        "E_old[k3]",
        "∇E_old[k3]",
    ),
    "prefix ρ·k3": (
        loss("k3", correction="differentiable"),
        ALL,
        "scalar",
        REVERSE,
        "∇KL(π‖ref)",
        REVERSE,
        "∇KL(π‖ref)",
    ),
    "prefix ρ·k3, ρ held": (
        loss("k3", correction="stopgrad"),
        ALL,
        "scalar",
        REVERSE,
        "∇KL(ref‖π) per token",
        REVERSE,
        "∇KL(ref‖π) per token",
    ),
    "token ρ·k3": (
        loss("k3", correction="differentiable", ratio="token"),
        ALL,
        "scalar",
        REVERSE,
        "∇KL(π‖ref) per token",
        REVERSE + OLDER,
        "∇KL(π‖ref) per token, prefixes of old",
    ),
    "token ρ·k3, ρ held": (
        loss("k3", correction="stopgrad", ratio="token"),
        ALL,
        "scalar",
        REVERSE,
        "∇KL(ref‖π) per token",
        REVERSE + OLDER,
        "∇KL(ref‖π) per token, prefixes of old",
    ),
    "sequence ρ·k1": (
        loss("k1", level="sequence", correction="differentiable"),
        ALL,
        "scalar",
        REVERSE,
        "∇KL(π‖ref)",
        REVERSE,
        "∇KL(π‖ref)",
    ),
    "sequence ρ·k1, ρ held": (
        loss("k1", level="sequence", correction="stopgrad"),
        ALL,
        "scalar",
        REVERSE,
        "0",
        REVERSE,
        "0",
    ),
    "sequence ρ·k2": (
        loss("k2", level="sequence", correction="differentiable"),
        ALL,
        "scalar",
        SQUARE,
        "∇½E[log²(π/ref)]",
        SQUARE,
        "∇½E[log²(π/ref)]",
    ),
    "sequence ρ·k2, ρ held": (
        loss("k2", level="sequence", correction="stopgrad"),
        ALL,
        "scalar",
        SQUARE,
        "∇KL(π‖ref)",
        SQUARE,
        "∇KL(π‖ref)",
    ),
    "k1 within 3": (
        clamp(lambda d: d, -3, 3),
        None,
        None,
        "KL(π‖ref) while log-ratios stay within [-3, 3]",
        "0 while log-ratios stay within [-3, 3]",
        None,
        None,
    ),
    "k1 within 0.2": (
        clamp(lambda d: d, -0.2, 0.2),
        None,
        None,
        "KL(π‖ref) while log-ratios stay within [-0.2, 0.2]",
        "0 while log-ratios stay within [-0.2, 0.2]",
        None,
        None,
    ),
    "k2 above -5": (
        clamp(lambda d: d * d / 2, -5, None),
        None,
        None,
        f"{SQUARE}{TOKEN} while log-ratios stay within [-5, ∞]",
        "∇KL(π‖ref) per token while log-ratios stay within [-5, ∞]",
        None,
        None,
    ),
    "k3 within 20": (
        clamp(three, -20, 20),
        None,
        None,
        "KL(π‖ref) while log-ratios stay within [-20, 20]",
        "∇KL(ref‖π) per token while log-ratios stay within [-20, 20]",
        None,
        None,
    ),
    "k3 swapped, below 4": (
        clamp(lambda d: three(-d), None, 4),
        None,
        None,
        f"{INVERTED}{TOKEN} while log-ratios stay within [-∞, 4]",
        "∇½χ²(π‖ref) per token while log-ratios stay within [-∞, 4]",
        None,
        None,
    ),
    "k1 above 0": (
        lambda a, b: (a - b).clamp(min=0),
        None,
        None,
        "E[max(log(π/ref), 0)] per token",
        "∇TV(π, ref) per token",
        None,
        None,
    ),
    "k1 in bits": (lambda a, b: (a - b) / LOG2, None, None, "KL(π‖ref) in bits", "0", None, None),
    "k2 without the half": (
        lambda a, b: (a - b).square(),
        None,
        None,
        "E[log²(π/ref)] per token",
        "2·∇KL(π‖ref) per token",
        None,
        None,
    ),
    "2 k3": (lambda a, b: 2 * k3(a, b), None, None, "2·KL(π‖ref)", "2·∇KL(ref‖π) per token", None, None),
    "½ k3": (lambda a, b: k3(a, b) / 2, None, None, "½·KL(π‖ref)", "0.5·∇KL(ref‖π) per token", None, None),
    "mean of k1": (
        lambda a, b: (a - b).mean(-1),
        None,
        "sequence",
        "k1, mean over tokens",
        "∇E[1/length]",
        "k1, mean over tokens",
        "-∇KL(old‖π), mean over tokens",
    ),
    "mean of k3": (
        loss("k3", reduction="sequence_mean"),
        ALL,
        "scalar",
        "k3, mean over tokens",
        "∇KL(ref‖π) per token, mean over tokens",
        "k3, mean over tokens",
        "∇E_old[k3] per token, mean over tokens",
    ),
    "mean of full": (
        lambda a, b, mask: (full_vocab_kl(a, b) * mask).sum(-1) / mask.sum(-1),
        (*LOGITS, "mask"),
        "sequence",
        "full-vocabulary KL(π‖ref), mean over tokens",
        "∇full-vocabulary KL(π‖ref), mean over tokens",
        None,
        None,
    ),
    "padded mean of k2": (
        lambda a, b, mask: (k2(a, b) * mask).mean(),
        MASKED,
        "scalar",
        f"{SQUARE} per token, divided by the padded length",
        "∇KL(π‖ref) per token, divided by the padded length",
        None,
        None,
    ),
    "k1, detached": (
        lambda a, b: (a - b).detach(),
        None,
        None,
        REVERSE,
        "no gradient (detached)",
        UNCORRECTED,
        "no gradient (detached)",
    ),
    "k1 in numpy": (
        lambda a, b: a.numpy() - b.numpy(),
        None,
        None,
        REVERSE,
        "no gradient (detached)",
        None,
        None,
    ),
    "k1 in the reward": (
        lambda a, b, mask: kl_in_reward(torch.zeros(len(a)).double(), a, b, mask, 1.0),
        MASKED,
        "token",
        "-KL(π‖ref)",
        "no gradient (detached)",
        None,
        None,
    ),
    "k1 times the score": (
        lambda a, b: (a - a.detach()).exp().prod(-1) * (a - b).sum(-1).detach(),
        None,
        "sequence",
        REVERSE,
        "∇KL(π‖ref)",
        UNCORRECTED,
        "∇E_old[k2]",
    ),
    "k3 times the score": (
        lambda a, b: (a - a.detach()).exp().prod(-1) * three((a - b).sum(-1)).detach(),
        None,
        "sequence",
        REVERSE,
        "∇(KL(π‖ref) - KL(ref‖π))",
        None,
        None,
    ),
    "ratio policy/ref": (
        lambda a, b: (a - b).exp(),
        WHOLE,
        "sequence",
        "1 + χ²(π‖ref)",
        "∇½χ²(π‖ref)",
        None,
        None,
    ),
    "missing reference": (lambda a: a, ("logp",), "token", "-H(π)", "0", None, None),
    "of the old policy": (
        lambda a, b, old: old - a,
        OLD,
        "token",
        "KL(old‖π)",
        "0",
        "KL(old‖π)",
        "∇KL(old‖π)",
    ),
    "of the old policy swapped": (
        lambda a, old: a - old,
        ("logp", "old_logp"),
        "token",
        "-KL(old‖π)",
        "0",
        "-KL(old‖π)",
        "-∇KL(old‖π)",
    ),
    "half square of old": (
        lambda a, old: (a - old).square() / 2,
        ("logp", "old_logp"),
        "token",
        "½E_old[log²(π/old)] per token",
        "0",
        "½E_old[log²(π/old)] per token",
        "∇½E_old[log²(π/old)] per token",
    ),
    "k3 of old swapped": (
        lambda a, old: three(a - old),
        ("logp", "old_logp"),
        "token",
        "χ²(old‖π) - KL(old‖π) per token",
        "0",
        None,
        None,
    ),
    "k3 of old": (
        lambda a, old: three(old - a),
        ("logp", "old_logp"),
        "token",
        "KL(old‖π)",
        "0",
        None,
        "∇KL(old‖π)",
    ),
    "nothing": (lambda a, b: 0 * a, None, None, "0", "0", "0", "0"),
    "softmax of one token": (
        lambda a, b: (a[..., None].log_softmax(-1) - b[..., None].log_softmax(-1))[..., 0],
        None,
        None,
        "0",
        "0",
        "0",
        "0",
    ),
}


def audit(fn, inputs=None, returns=None):
    return check(fn, inputs=inputs or ("logp", "ref_logp"), returns=returns or "token")


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_function_has_its_names(name):
    fn, inputs, returns, *expected = KNOWN[name]
    verdict = audit(fn, inputs, returns)
    got = (verdict.value, verdict.gradient, verdict.stale_value, verdict.stale_gradient)
    for have, want in zip(got, expected, strict=True):
        assert want is None or have == want


LOW, HIGH = "[-2.611, 11]", "[-4.472, 4.472]"
WITHIN = " while log-ratios stay within "
TERMS = {  # value and gradient on fresh samples; gradient one update later
    terms.k1: (REVERSE, "0", "-∇KL(old‖π)"),
    terms.absolute: (SIZE + TOKEN, "∇2·TV(π, ref) per token", "∇E_old|log(π/ref)| per token"),
    terms.k2: (SQUARE + TOKEN, "∇KL(π‖ref) per token", "∇E_old[k2] per token"),
    terms.k3: (REVERSE, "∇KL(ref‖π) per token", "∇E_old[k3] per token"),
    terms.k1_capped: (f"{REVERSE}{WITHIN}[-10, 10]", f"0{WITHIN}[-10, 10]", f"-∇KL(old‖π){WITHIN}[-10, 10]"),
    terms.k2_capped: (
        f"{SQUARE}{TOKEN}{WITHIN}{HIGH}",
        f"∇KL(π‖ref) per token{WITHIN}{HIGH}",
        f"∇E_old[k2] per token{WITHIN}{HIGH}",
    ),
    **dict.fromkeys(
        (terms.k3_capped, terms.k3_clamped, terms.k3_floored),
        (
            f"{REVERSE}{WITHIN}{LOW}",
            f"∇KL(ref‖π) per token{WITHIN}{LOW}",
            f"∇E_old[k3] per token{WITHIN}{LOW}",
        ),
    ),
    terms.k3_wide: (
        f"{REVERSE}{WITHIN}[-40, 40]",
        f"∇KL(ref‖π) per token{WITHIN}[-40, 40]",
        f"∇E_old[k3] per token{WITHIN}[-40, 40]",
    ),
    terms.k3_times_ratio: (REVERSE, "∇KL(π‖ref) per token", "∇KL(π‖ref) per token, prefixes of old"),
    terms.k3_times_mean_ratio: (REVERSE, "none", "none"),
    **dict.fromkeys(
        (terms.k3_times_ratio_capped, terms.k3_with_sampler_ratio),
        (
            f"{REVERSE}{WITHIN}{LOW}",
            f"∇KL(π‖ref) per token{WITHIN}{LOW}",
            f"∇KL(π‖ref) per token, prefixes of old{WITHIN}{LOW}",
        ),
    ),
    terms.k1_times_ratio: (
        f"{REVERSE}{WITHIN}[-40, 40]",
        f"∇KL(π‖ref) per token{WITHIN}[-40, 40]",
        f"∇KL(π‖ref) per token, prefixes of old{WITHIN}[-40, 40]",
    ),
    terms.k3_with_score: (
        f"{REVERSE}{WITHIN}{LOW}",
        f"∇KL(π‖ref) per token{WITHIN}{LOW}",
        f"∇E_old[k2] per token{WITHIN}{LOW}",
    ),
    terms.k3_pulled_by_k2: (f"{REVERSE}{WITHIN}{LOW}", "∇KL(π‖ref) per token", "∇E_old[k2] per token"),
    terms.k3_pulled_by_weighted_k2: (
        f"{REVERSE}{WITHIN}{LOW}",
        "∇KL(π‖ref) per token",
        "∇KL(π‖ref) per token, prefixes of old",
    ),
    terms.old_k1: ("KL(old‖π)", "0", "∇KL(old‖π)"),
    terms.old_k2: ("½E_old[log²(π/old)] per token", "0", "∇½E_old[log²(π/old)] per token"),
    terms.old_k3: ("KL(old‖π)", "0", "∇KL(old‖π)"),
    terms.old_k1_reversed: ("-KL(old‖π)", "0", "-∇KL(old‖π)"),
}
EVERY = {f for f in vars(terms).values() if inspect.isfunction(f) and f.__module__ == terms.__name__}


def test_the_table_leaves_no_term_of_the_libraries_out():
    assert set(TERMS) == EVERY


@pytest.mark.parametrize("term", TERMS, ids=lambda f: f.__name__)
def test_every_term_of_the_libraries_has_its_names(term):
    verdict = check(term, inputs=ALL)
    value, gradient, later = TERMS[term]
    assert verdict.value == value
    if gradient == "none":
        assert verdict.gradient.startswith("none of the known, ")
        assert verdict.stale_gradient.startswith("none of the known, ")
    else:
        assert (verdict.gradient, verdict.stale_gradient) == (gradient, later)


ABOVE = f"{WITHIN}[-10, ∞]"
ZOO = {  # value and gradient of the broken code, fresh
    "BUG-02": ("-KL(π‖ref)", "0"),
    "BUG-06": ("k1, mean over tokens", "∇E[1/length]"),
    "BUG-08": (REVERSE + ABOVE, f"∇KL(ref‖π) per token{ABOVE}"),
    "BUG-09": ("E[max(log(π/ref), 0)]", "∇TV(π, ref)"),
    "BUG-10": (REVERSE + ABOVE, f"∇KL(ref‖π) per token{ABOVE}"),
    "BUG-11": (INVERTED + TOKEN, "∇½χ²(π‖ref) per token"),
    "BUG-12": ("none of the known", "none of the known"),
    "BUG-13": (REVERSE, "∇KL(ref‖π) per token"),  # and loses digits
    "BUG-14": (REVERSE, "∇KL(ref‖π)"),  # and scatters
    "BUG-16": (FORWARD + TOKEN, "∇KL(ref‖π) per token"),
    "BUG-19": (REVERSE, "0"),
    "BUG-20": (SQUARE, "no gradient (detached)"),
    "BUG-21": (SQUARE + TOKEN, "∇KL(π‖ref) per token"),
}


def test_the_table_leaves_no_bug_out_that_is_a_kl_function():
    assert set(ZOO) == {bug.id for bug in bugs.all_bugs() if bug.inputs}


@pytest.mark.parametrize("id", ZOO)
def test_every_bug_that_is_a_kl_function_has_its_names(id):
    bug = bugs.get(id)
    verdict, cured = (check(code, inputs=bug.inputs, returns=bug.returns) for code in (bug.broken, bug.cured))
    value, gradient = ZOO[id]
    assert verdict.value == value
    assert verdict.gradient.split(", ")[0] == gradient.split(", ")[0]
    assert cured.to_dict() | {"name": ""} != verdict.to_dict() | {"name": ""}
    if id == "BUG-13":
        assert verdict.profile.lost["float32"] == 1e-3
        assert cured.profile.lost["float32"] == 0
    elif id == "BUG-14":
        far, its = verdict.readings[-1], cured.readings[-1]
        assert far.sd > 1.5 * its.sd
    else:
        wanted = "forward" if "∇KL(ref" in cured.gradient else "none" if cured.gradient == "0" else "reverse"
        cured_value = "half-log2" if "log²" in cured.value else "reverse-kl"
        assert cured.expects(value=cured_value, gradient=wanted)
        assert (verdict.value, verdict.gradient) != (cured.value, cured.gradient)


INVENTED = {
    "nine tenths of k1": (lambda a, b: 0.9 * k1(a, b), lambda d: 0.9 * d),
    "k3 and a little square": (
        lambda a, b: k3(a, b) + 0.01 * k1(a, b) ** 2,
        lambda d: three(d) + 0.01 * d * d,
    ),
    "a cosine": (lambda a, b: 1 - torch.cos(a - b), lambda d: 1 - torch.cos(d)),
    "a little off": (lambda a, b: k3(a, b) * (1 + 1e-6), lambda d: three(d) * (1 + 1e-6)),
    "a constant too many": (lambda a, b: k3(a, b) + 1e-6, lambda d: three(d) + 1e-6),
}


@pytest.mark.parametrize("name", INVENTED)
def test_an_invented_function_is_none_of_the_known_and_has_honest_numbers(name):
    fn, g = INVENTED[name]
    verdict = check(fn)
    assert verdict.value == "none of the known"
    assert verdict.value_reach is None
    for reading, world in zip(verdict.readings, worlds(), strict=True):
        ours, theirs = (exact.token_logps(p, world.task).detach() for p in (world.policy, world.ref))
        terms_of = g(ours - theirs).masked_fill(~world.task.mask, 0).sum(-1)
        mean = exact.expectation(terms_of, ours.sum(-1), world.task).item()
        assert reading.mean == pytest.approx(mean, rel=1e-10)
    assert not any(verdict.expects(value=value) for value in VALUES)
    share = verdict.readings[3].mean / verdict.readings[3].kl
    assert f"{share:.4g}" in verdict.words


def test_the_name_of_a_function_makes_no_difference():
    def k3(logp, ref_logp):
        return logp - ref_logp

    found, plain = check(k3), check(k1)
    assert found.name == "k3"
    assert found.value == "KL(π‖ref)"
    assert found.gradient == "0"
    same = {"name": "", "words": "", "counterexample": None}
    assert found.to_dict() | same == plain.to_dict() | same


# --- the worlds and what is known in them ---------------------------------------------------------


def test_worlds_are_unlike_and_of_several_lengths_and_reach_from_near_to_far():
    names = [world.name for world in worlds()]
    assert names == [
        f"{kind}, {far}" for far in ("near", "moderate", "far") for kind in ("one action", "completions")
    ]
    largest = {"near": (0, 0.1), "moderate": (1.3, 2.35), "far": (12, 27)}
    for world in worlds():
        ours, theirs, drew = (
            exact.token_logps(p, world.task)[0] for p in (world.policy, world.ref, world.old)
        )
        for sign in (1, -1):
            top = (sign * (ours - theirs)).max().item()
            low, high = largest[world.distance]
            assert low < top < high, world.name
        assert (ours - drew).abs().max() > 0.01
        if world.kind == "completions":
            shares = (
                exact.seq_logp(world.policy, world.task)[0].exp()
                @ torch.nn.functional.one_hot(world.task.mask.sum(-1)).double()
            )
            assert (shares[1:] > 0.05).sum() >= 2  # lengths that happen
        assert kl(world) == pytest.approx(exact.kl(world.policy, world.ref, world.task).item(), rel=1e-12)
    assert len({world.task.horizon for world in worlds()}) == 3


@pytest.mark.parametrize("world", worlds(), ids=lambda w: w.name)
def test_what_a_function_is_called_with_is_what_the_models_say(world):
    for samples, drew in (("fresh", world.policy), ("stale", world.old)):
        rows = world.rows(samples)
        for prefix, policy in (("", world.policy), ("ref_", world.ref), ("old_", drew)):
            tokens = exact.token_logps(policy, world.task)[0]
            torch.testing.assert_close(rows.inputs[f"{prefix}logp"], tokens)
            torch.testing.assert_close(rows.inputs[f"{prefix}seq_logp"], tokens.sum(-1))
            logits = rows.inputs[f"{prefix}logits"]
            spoken = kltutor.token_logps(logits, rows.inputs["tokens"]).masked_fill(~rows.mask, 0)
            torch.testing.assert_close(spoken, tokens)
            assert rows.inputs[f"{prefix}logp"].requires_grad == (prefix == "")
        torch.testing.assert_close(rows.weights, exact.seq_logp(drew, world.task)[0].exp())
        assert rows.weights.sum().item() == pytest.approx(1, abs=1e-12)


def numbers(world):
    """log-probabilities of single tokens and probabilities of completions, as plain numbers."""
    ours, theirs, drew = (
        [
            [x for x, on in zip(row, mask, strict=True) if on]
            for row, mask in zip(p, world.task.mask.tolist(), strict=True)
        ]
        for p in (exact.token_logps(p, world.task)[0].tolist() for p in (world.policy, world.ref, world.old))
    )
    return ours, theirs, drew


@pytest.mark.parametrize("world", worlds()[2:4], ids=lambda w: w.name)
def test_known_quantities_are_what_their_names_say(world):
    ours, theirs, drew = numbers(world)

    def mean(sampler, term):
        return math.fsum(
            math.exp(sum(s)) * term(sum(a), sum(b), sum(c))
            for s, a, b, c in zip(sampler, ours, theirs, drew, strict=True)
        )

    def kl_of(p, q):
        return math.fsum(math.exp(sum(x)) * (sum(x) - sum(y)) for x, y in zip(p, q, strict=True))

    def chi2(p, q):
        return math.fsum(math.exp(2 * sum(x) - sum(y)) for x, y in zip(p, q, strict=True)) - 1

    pairs = [(math.exp(sum(x)), math.exp(sum(y))) for x, y in zip(ours, theirs, strict=True)]
    fresh, stale = (catalogue.quantities(world, samples) for samples in ("fresh", "stale"))
    expected = {
        "KL(π‖ref)": kl_of(ours, theirs),
        "KL(π‖ref) per token": kl_of(ours, theirs),
        "KL(ref‖π)": kl_of(theirs, ours),
        "χ²(π‖ref)": chi2(ours, theirs),
        "χ²(ref‖π)": chi2(theirs, ours),
        INVERTED: chi2(ours, theirs) - kl_of(ours, theirs),
        "1 + χ²(π‖ref)": 1 + chi2(ours, theirs),
        "E[ref/π]": 1.0,
        "KL(π‖ref) + KL(ref‖π)": kl_of(ours, theirs) + kl_of(theirs, ours),
        SQUARE: mean(ours, lambda a, b, c: (a - b) ** 2 / 2),
        SIZE: mean(ours, lambda a, b, c: abs(a - b)),
        "E[max(log(π/ref), 0)]": mean(ours, lambda a, b, c: max(a - b, 0)),
        "TV(π, ref)": sum(abs(p - q) for p, q in pairs) / 2,
        "H²(π, ref)": 1 - sum(math.sqrt(p * q) for p, q in pairs),
        "H(π)": mean(ours, lambda a, b, c: -a),
        "H(π, ref)": mean(ours, lambda a, b, c: -b),
        "k1, mean over tokens": math.fsum(
            math.exp(sum(a)) * (sum(a) - sum(b)) / len(a) for a, b in zip(ours, theirs, strict=True)
        ),
        "k2, mean over tokens": math.fsum(
            math.exp(sum(a)) * sum((x - y) ** 2 / 2 for x, y in zip(a, b, strict=True)) / len(a)
            for a, b in zip(ours, theirs, strict=True)
        ),
        "KL(π‖ref) per token, divided by the padded length": kl_of(ours, theirs) / world.task.horizon,
    }
    for name, value in expected.items():
        assert fresh[name] == pytest.approx(value, rel=1e-11), name
    expected = {
        "KL(π‖ref)": kl_of(ours, theirs),
        "KL(old‖π)": kl_of(drew, ours),
        "KL(π‖old)": kl_of(ours, drew),
        UNCORRECTED: kl_of(drew, theirs) - kl_of(drew, ours),
        "χ²(old‖π) - KL(old‖π)": chi2(drew, ours) - kl_of(drew, ours),
        "½E_old[log²(π/old)]": mean(drew, lambda a, b, c: (a - c) ** 2 / 2),
        "E_old[k3]": mean(drew, lambda a, b, c: math.exp(b - a) - 1 + a - b),
        "E_old|log(π/ref)|": mean(drew, lambda a, b, c: abs(a - b)),
    }
    for name, value in expected.items():
        assert stale[name] == pytest.approx(value, rel=1e-11), name


def per_token(world, term, reach):
    """∇ of Σ over prefixes of reach, held fixed, times a sum over next tokens."""
    weight = exact.prefix_reach(reach, world.task).detach()

    def total(policy):
        ours, theirs = exact.prefix_logps(policy, world.task), exact.prefix_logps(world.ref, world.task)
        return (weight * term(ours, theirs.detach()).sum(-1)).sum()

    return exact.gradient(total, world.policy)


@pytest.mark.parametrize("world", worlds()[2:4], ids=lambda w: w.name)
def test_known_gradients_are_those_of_what_their_names_say(world):
    theirs, drew = (exact.seq_logp(p, world.task).detach() for p in (world.ref, world.old))

    def of(term):
        """∇ of a sum over completions of a term of log π, log ref and log old."""
        return exact.gradient(lambda p: term(exact.seq_logp(p, world.task), theirs, drew).sum(), world.policy)

    fresh, stale = (catalogue.gradients(world, samples) for samples in ("fresh", "stale"))
    reverse, forward = of(lambda a, b, c: a.exp() * (a - b)), of(lambda a, b, c: b.exp() * (b - a))
    expected = {
        "KL(π‖ref)": reverse,
        "KL(ref‖π)": forward,
        "KL(π‖ref) - KL(ref‖π)": reverse - forward,
        "½χ²(π‖ref)": of(lambda a, b, c: (2 * a - b).exp() / 2),
        "2·TV(π, ref)": of(lambda a, b, c: (a.exp() - b.exp()).abs()),
        "TV(π, ref)": of(lambda a, b, c: (a.exp() - b.exp()).abs() / 2),
        SQUARE: of(lambda a, b, c: a.exp() * (a - b) ** 2 / 2),
        SIZE: of(lambda a, b, c: a.exp() * (a - b).abs()),
        "-H(π)": of(lambda a, b, c: a.exp() * a),
        "E[1/length]": of(lambda a, b, c: a.exp() / world.task.mask.sum(-1)),
        "KL(π‖ref) per token": per_token(world, lambda a, b: a.exp() * (a - b), world.policy),
        "KL(ref‖π) per token": per_token(world, lambda a, b: b.exp() * (b - a), world.policy),
        "½χ²(π‖ref) per token": per_token(world, lambda a, b: (2 * a - b).exp() / 2, world.policy),
        "2·TV(π, ref) per token": per_token(world, lambda a, b: (a.exp() - b.exp()).abs(), world.policy),
        "-H(π) per token": per_token(world, lambda a, b: a.exp() * a, world.policy),
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(fresh[name], gradient, rtol=1e-9, atol=1e-13, msg=name)
    expected = {
        "KL(π‖ref)": reverse,
        "KL(ref‖π)": forward,
        "KL(old‖π)": of(lambda a, b, c: c.exp() * (c - a)),
        "KL(π‖old)": of(lambda a, b, c: a.exp() * (a - c)),
        "E_old[k2]": of(lambda a, b, c: c.exp() * (a - b) ** 2 / 2),
        "E_old[k3]": of(lambda a, b, c: c.exp() * ((b - a).exp() + a)),
        "E_old[inverted k3]": of(lambda a, b, c: c.exp() * ((a - b).exp() - a)),
        "½E_old[log²(π/old)]": of(lambda a, b, c: c.exp() * (a - c) ** 2 / 2),
        "χ²(old‖π) - KL(old‖π)": of(lambda a, b, c: (2 * c - a).exp() + c.exp() * a),
        "KL(π‖ref) per token": per_token(world, lambda a, b: a.exp() * (a - b), world.policy),
        "KL(π‖ref) per token, prefixes of old": per_token(world, lambda a, b: a.exp() * (a - b), world.old),
        "KL(ref‖π) per token, prefixes of old": per_token(world, lambda a, b: b.exp() * (b - a), world.old),
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(stale[name], gradient, rtol=1e-9, atol=1e-13, msg=name)


def test_names_that_the_atlas_has_too_mean_the_same():
    world = worlds()[3]
    known = atlas.Landmarks(world.policy, world.ref, world.old, world.task)
    fresh, stale = (catalogue.gradients(world, samples) for samples in ("fresh", "stale"))
    shared = 0
    for name, gradient in known.gradients.items():
        plain = name.removesuffix(" of the sequence").removeprefix("-").replace("½E[log²]", SQUARE)
        sign = -1 if name.startswith("-") else 1
        for ours in (fresh, stale):
            if plain in ours and not (ours is fresh and "old" in plain):
                torch.testing.assert_close(ours[plain], sign * gradient, rtol=1e-9, atol=1e-13)
                shared += 1
    assert shared >= 12


def test_no_two_known_names_mean_the_same_in_every_world_by_mistake():
    """Names that agree everywhere are the same sum by theory; all others differ in some world."""
    same = {
        frozenset(("KL(π‖ref)", "KL(π‖ref) per token")),
        frozenset(("KL(old‖π)", "KL(old‖π) per token")),
    }
    tables = [catalogue.quantities(world, "fresh") for world in worlds()]
    for one, other in itertools.combinations(tables[0], 2):
        alike = all(t[one] == pytest.approx(t[other], rel=1e-9) for t in tables)
        assert alike == (frozenset((one, other)) in same), (one, other)
    fields = [catalogue.gradients(world, "fresh") for world in worlds()]
    for one, other in itertools.combinations(fields[0], 2):
        assert any((f[one] - f[other]).norm() > 1e-8 * f[one].norm() for f in fields), (one, other)


# --- the numbers of a verdict ---------------------------------------------------------------------


@pytest.mark.parametrize("fn", [k1, k2, k3], ids=lambda f: f.__name__)
def test_readings_are_exact_means_deviations_and_angles(fn):
    for reading, world in zip(check(fn).readings, worlds(), strict=True):
        ours, theirs = (exact.token_logps(p, world.task).detach() for p in (world.policy, world.ref))
        values, drawn = fn(ours, theirs).sum(-1), exact.seq_logp(world.policy, world.task).detach()
        mean = exact.expectation(values, drawn, world.task).item()
        assert (reading.world, reading.distance) == (world.kind, world.distance)
        assert reading.kl == pytest.approx(exact.kl(world.policy, world.ref, world.task).item(), rel=1e-10)
        assert reading.mean == pytest.approx(mean, rel=1e-9)
        assert reading.bias == reading.mean - reading.kl
        sd = exact.variance(values, drawn, world.task).sqrt().item()
        assert reading.sd == pytest.approx(sd, rel=1e-9)
        place = atlas.Placement(fn.__name__, "loss", "token", "on-policy")
        mean_gradient = atlas.mean_field(place, world.policy, world.ref, world.old, world.task)
        true = exact.gradient(lambda p, w=world: exact.kl(p, w.ref, w.task), world.policy)
        if fn is k1:
            assert math.isnan(reading.angle)
        else:
            assert reading.angle == pytest.approx(atlas.angle(mean_gradient, true).item(), abs=1e-4)


def test_a_profile_tells_the_shape_and_where_clamps_act():
    cases = {
        terms.k3_clamped: ("e^(-d) + d - 1", (-2.6109, 10.99998), (-2.6109, 10.99998), (0, 10)),
        terms.k1_times_ratio: ("d", (-40, 40), (-math.inf, math.inf), (-40, 40)),
        terms.k2_capped: ("½·d²", (-(20**0.5), 20**0.5), (-(20**0.5), 20**0.5), (0, 10)),
        terms.k3: ("e^(-d) + d - 1", (-math.inf, math.inf), (-math.inf, math.inf), None),
    }
    for term, (formula, within, live, bounds) in cases.items():
        found = check(term, inputs=ALL).profile
        assert found.formula == formula
        assert found.within == pytest.approx(within, abs=1e-3)
        assert found.live == pytest.approx(live, abs=1e-3)
        if bounds:
            assert found.bounds == pytest.approx(bounds, abs=1e-4)
    half = check(bugs.get("BUG-10").broken).profile
    assert half.live == (-math.inf, math.inf)  # pushes on, the wrong way
    assert half.slope_within == pytest.approx((-10, math.inf), abs=1e-3)
    straight = check(terms.k3_pulled_by_k2, inputs=ALL).profile
    assert straight.slope_within == straight.live == (-math.inf, math.inf)
    assert check(lambda a, b: (a - b).detach()).profile.live is None
    assert check(lambda a, b: 1 - torch.cos(a - b)).profile.formula == ""
    assert (
        check(lambda a, b: k1(a, b) + 0.25 * torch.expm1(b - a)).profile.formula == "0.25·e^(-d) + d - 0.25"
    )
    assert check(full_vocab_kl, inputs=LOGITS).profile is None


def test_overflow_starts_where_the_largest_number_ends():
    naive = check(lambda a, b: (b - a).exp() - 1 - (b - a)).profile
    for name, largest in (
        ("float32", torch.finfo(torch.float32).max),
        ("float16", torch.finfo(torch.float16).max),
    ):
        low, high = naive.finite[name]
        assert low == pytest.approx(-math.log(largest), abs=0.02)
        assert high == math.inf
    swapped = check(lambda a, b: three(b - a)).profile
    assert swapped.finite["float32"][1] == pytest.approx(math.log(torch.finfo(torch.float32).max), abs=0.02)
    assert check(k2).profile.finite["float32"] == (-math.inf, math.inf)
    late = check(terms.k3_capped, inputs=ALL).profile  # the value is 10 there, the gradient nan
    assert late.finite["float32"][0] == pytest.approx(-88.72, abs=0.02)


def test_rounding_near_zero_is_told_from_the_formula_that_avoids_it():
    naive, careful = check(lambda a, b: (b - a).exp() - 1 - (b - a)), check(k3)
    assert naive.profile.lost["float32"] == 1e-3
    assert naive.profile.below_zero["float32"]
    assert careful.profile.lost["float32"] == 0
    assert not careful.profile.below_zero["float32"]
    assert careful.profile.lost["bfloat16"] == 0.1
    assert check(k1).profile.lost == {"float32": 0.0, "bfloat16": 0.0}
    assert "Rounding" in naive.words
    assert "Rounding" not in careful.words


def test_a_function_that_works_in_float32_keeps_its_name():
    verdict = check(lambda a, b: k3(a.float(), b.float()))
    assert verdict.value == "KL(π‖ref)"
    assert verdict.gradient == "∇KL(ref‖π) per token"


PADDING = {  # function of (logp, ref_logp, mask): what is found, the rest being False
    "sum of fills": (lambda a, b, m: (a - b).masked_fill(~m, 0).sum(-1), set()),
    "sum of products": (lambda a, b, m: ((a - b) * m).sum(-1), {"spoils_value"}),
    "sum of where": (
        lambda a, b, m: torch.where(m, (b - a).exp() - 1 - (b - a), 0).sum(-1),
        {"spoils_gradient"},
    ),
    "no mask": (lambda a, b, m: (a - b).sum(-1), {"reads_masked", "spoils_value"}),
    "padded mean": (lambda a, b, m: (a - b).masked_fill(~m, 0).mean(-1), {"counts"}),
    "from the left": (
        lambda a, b, m: ((a - b) * (torch.arange(m.shape[1]) < m.sum(-1, keepdim=True))).sum(-1),
        {"spoils_value", "side"},
    ),
    "loss": (lambda a, b, m: kltutor.masked_sum(kltutor.kl_terms(a, b, m, "k3"), m), set()),
    "refuses": (lambda a, b, m: kltutor.masked_sum(k1(a, b), m), {"refuses"}),
}


@pytest.mark.parametrize("name", PADDING)
def test_masks_and_padding(name):
    fn, expected = PADDING[name]
    found = check(fn, inputs=MASKED, returns="sequence").padding
    flags = ("reads_masked", "spoils_value", "spoils_gradient", "refuses", "counts", "side")
    assert {flag for flag in flags if getattr(found, flag)} == expected
    if name == "no mask":
        assert found.empty == "0" or float(found.empty) != 0
    else:
        assert found.empty in ("0", "an error")


def test_more_of_masks_and_padding():
    assert check(lambda a, b, m: (a - b).exp(), inputs=MASKED).padding.fills_masked
    assert not check(lambda a, b, m: a - b, inputs=MASKED).padding.fills_masked
    mean = check(lambda a, b, m: ((a - b) * m).sum(-1) / m.sum(-1), inputs=MASKED, returns="sequence")
    assert mean.padding.empty == "nan"
    assert "gives nan" in mean.words
    assert check(lambda a, b: (a - b).mean(-1), returns="sequence").padding.counts
    assert not check(lambda a, b: (a - b).sum(-1), returns="sequence").padding.counts
    whole = check(k1, inputs=WHOLE, returns="sequence").padding
    assert whole == kltutor.audit.Padding()


def test_how_a_scalar_reduces_a_batch():
    reductions = {"token_mean": "token mean", "sequence_sum": "mean", "sequence_mean": "mean"}
    for how, name in reductions.items():
        assert check(loss("k1", reduction=how), inputs=ALL, returns="scalar").reduction == name
    total = check(lambda a, b, m: ((a - b) * m).sum(), inputs=MASKED, returns="scalar")
    assert total.reduction == "sum"
    odd = check(lambda a, b, m: ((a - b) * m).sum() / len(a) ** 2, inputs=MASKED, returns="scalar")
    assert odd.reduction == "another reduction"
    assert check(k1).reduction == ""


def test_a_function_that_couples_the_rows_of_a_batch_is_measured_one_completion_at_a_time():
    def centred(a, b):
        value = (a - b).sum(-1)
        return value + (value.detach() - value).mean()  # in the gradient only

    def shared(a, b):
        return (a - b).sum(-1) * len(a)

    for fn, gradient in ((centred, "0"), (shared, "0")):
        verdict = check(fn, returns="sequence")
        assert verdict.alone
        assert (verdict.value, verdict.gradient) == ("KL(π‖ref)", gradient)
        assert "other rows" in verdict.words
    assert not check(k1).alone


@pytest.mark.parametrize("name", ["-k1", "k2", "k3 swapped", "mean of k1", "k3 within 20", "full swapped"])
def test_a_counterexample_shows_the_number_given_and_the_right_one(name):
    fn, inputs, returns, *_ = KNOWN[name]
    found = audit(fn, inputs, returns).counterexample
    assert sum(found.policy) == pytest.approx(1)
    assert sum(found.ref) == pytest.approx(1)
    assert len(found.outcomes) == len(set(found.outcomes)) == len(found.policy) == len(found.ref)
    right = sum(p * math.log(p / q) for p, q in zip(found.policy, found.ref, strict=True))
    assert found.right == pytest.approx(right, rel=1e-9)
    assert abs(found.given - found.right) > 1e-6 * found.right
    if inputs is None and returns is None:
        policy, ref = (torch.tensor([x], dtype=torch.float64).T.log() for x in (found.policy, found.ref))
        given = (policy.exp() * fn(policy, ref)).sum().item()
        assert found.given == pytest.approx(given, rel=1e-9)
    assert f"{found.given:.6g}" in str(found)


def test_the_reverse_kl_has_no_counterexample():
    assert check(k1).counterexample is None
    assert check(k3).counterexample is None
    assert check(full_vocab_kl, inputs=LOGITS).counterexample is None


# --- judgement and looks --------------------------------------------------------------------------


def test_expectations_judge_value_and_gradient_apart():
    three_, one, two = check(k3), check(k1), check(k2)
    assert three_.expects(value="reverse-kl")
    assert three_.expects(gradient="forward")
    assert not three_.expects(gradient="reverse")
    assert not three_.expects(value="reverse-kl", gradient="reverse")
    assert three_.misses(gradient="reverse")[0].startswith("gradient: reverse is expected")
    assert len(two.misses(value="reverse-kl", gradient="forward")) == 2
    assert one.expects(value="reverse-kl", gradient="none")
    assert two.expects(value="half-log2", gradient="reverse")
    assert check(lambda a, b: (a - b).detach()).expects(gradient="none")
    swapped = check(lambda a, b: three(b - a))
    assert swapped.expects(value="chi2-minus-kl", gradient="half-chi2")
    assert check(lambda a, b: (a - b).abs()).expects(value="abs-log")
    assert check(lambda a, b: b - a).expects(value="minus-kl")
    assert check(lambda a, b: 0 * a).expects(value="zero", gradient="none")
    assert check(lambda a, old: old - a, inputs=("logp", "old_logp")).expects(value="step-kl")
    assert check(lambda a, b: full_vocab_kl(b, a), inputs=LOGITS).expects(value="forward-kl")
    for verdict in (one, two, three_, swapped):
        assert sum(verdict.expects(value=value) for value in VALUES) == 1
        assert sum(verdict.expects(gradient=gradient) for gradient in GRADIENTS) == 1
    for fn in (lambda a, b: k1(a, b) / LOG2, lambda a, b: 2 * k3(a, b), clamp(three, -20, 20)):
        assert not check(fn).expects(value="reverse-kl")
    assert not check(lambda a, b: 2 * k2(a, b)).expects(gradient="reverse")
    assert check(terms.k3_wide, inputs=ALL).expects(value="reverse-kl", gradient="forward")  # acts past 40
    for wrong in ({"value": "k3"}, {"gradient": "k3"}):
        with pytest.raises(jaxtyping.TypeCheckError, match=f"'{next(iter(wrong))}'"):
            one.misses(**wrong)


def test_a_verdict_shows_the_same_findings_in_three_ways():
    from rich.console import Console

    def less_than(logp, ref_logp, old_logp, mask):
        return terms.k3_clamped(logp, ref_logp, old_logp, mask)

    less_than.__name__ = "<b>k3[red]"
    verdict = check(less_than, inputs=ALL)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(verdict)
    text, html = console.export_text(), verdict._repr_html_()
    record = json.loads(verdict.to_json())
    assert "<b>" not in html
    assert "&lt;b&gt;k3[red]" in html
    assert "<b>k3[red]" in text
    for heading, words in verdict.findings():
        assert heading in text
        assert words in " ".join(text.split())
        assert heading in html
    assert record["value"] == verdict.value
    assert record["profile"]["finite"]["float32"] == [-math.inf, math.inf] or record["profile"]["finite"]
    assert record["readings"][3]["kl"] == verdict.readings[3].kl
    assert record == verdict.to_dict()
    assert json.loads(check(k1).to_json())["readings"][0]["angle"] is None  # nan
    assert json.loads(check(k1).to_json())["profile"]["within"] == ["-inf", "inf"]


def test_the_words_say_what_matters():
    assert check(k3).words.startswith("The mean of k3 on fresh samples is KL(π‖ref).")
    assert "follows ∇KL(ref‖π) per token, not ∇KL(π‖ref)" in check(k3).words
    assert "no gradient on average" in check(k1).words
    assert "nothing flows back" in check(lambda a, b: (a - b).detach()).words
    capped = check(terms.k3_clamped, inputs=ALL).words
    assert "Outside [-2.611, 11] nats a token feels no gradient." in capped
    assert "Counterexample: π = (0.75, 0.25, 1e-05)" in capped
    assert "compares the policy with the one that drew" in check(terms.old_k1, inputs=ALL).words


# --- what it refuses ------------------------------------------------------------------------------


def forgetful():
    calls = itertools.count()
    return lambda a, b: (a - b) * (1 + next(calls))


REFUSED = {
    "shape": (
        lambda a, b: (a - b).sum(),
        {},
        ValueError,
        r"<lambda>, called with logp \(12, 3\).*returned shape \(\); a token value of shape \(12, 3\)",
    ),
    "row": (
        lambda a, b: a - b,
        {"returns": "sequence"},
        ValueError,
        r"returned shape \(12, 3\); a sequence value of shape \(12,\)",
    ),
    "scalar": (
        lambda a, b: a - b,
        {"returns": "scalar"},
        ValueError,
        r"returned shape \(1, 3\); a scalar value of shape \(\)",
    ),
    "raises": (
        lambda a, b: a[99],
        {},
        ValueError,
        r"<lambda>.*completions, near.*raised IndexError: index 99",
    ),
    "nan": (lambda a, b: (a - b) * math.nan, {}, ValueError, r"<lambda> returned nan \(completions, near\)"),
    "list": (lambda a, b: [1.0], {}, TypeError, r"returned list; a token value"),
    "none": (lambda a, b: None, {}, TypeError, r"returned NoneType; a token value"),
    "whole numbers": (lambda a, b: (a - b).long(), {}, TypeError, r"returned torch.int64; floating numbers"),
    "arguments": (lambda a: a, {}, ValueError, r"raised TypeError: .*positional argument"),
    "memory": (forgetful(), {}, ValueError, r"two different values for the same arguments"),
    "no function": (3, {}, jaxtyping.TypeCheckError, "'fn'"),
    "unknown returns": (k1, {"returns": "row"}, jaxtyping.TypeCheckError, "'returns'"),
    "unknown input": (k1, {"inputs": ("logp", "ref")}, ValueError, r"inputs are \('logp', 'ref'\); names"),
    "twice": (k1, {"inputs": ("logp", "logp")}, ValueError, r"inputs are \('logp', 'logp'\); names"),
    "a text": (k1, {"inputs": "logp"}, ValueError, r"inputs are 'logp'; names"),
    "no policy": (k1, {"inputs": ("ref_logp", "mask")}, ValueError, r"logp, seq_logp or logits must be one"),
    "no token": (k1, {"inputs": WHOLE}, ValueError, r"one number a completion; returns='sequence'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_that_cannot_be_used_is_refused_by_name(name):
    fn, options, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message) as caught:
        check(fn, **options)
    if name == "raises":
        assert isinstance(caught.value.__cause__, IndexError)


def test_the_error_of_the_first_call_is_the_one_that_is_told():
    def picky(logp, ref_logp):
        raise KeyError("graph") if logp.requires_grad else IndexError("no graph")

    with pytest.raises(ValueError, match="raised KeyError: 'graph'") as caught:
        check(picky)
    assert isinstance(caught.value.__cause__, KeyError)


def test_nan_at_a_moderate_distance_is_refused_and_infinity_far_away_is_a_finding():
    with pytest.raises(ValueError, match=r"returned nan \(one action, moderate\)"):
        check(lambda a, b: (0.5 - (a - b)).sqrt())
    verdict = check(lambda a, b: ((a - b) * 50).exp())
    assert verdict.value == "none of the known"
    assert any(math.isinf(reading.mean) for reading in verdict.readings)
    json.loads(verdict.to_json())


def test_a_check_takes_less_than_three_seconds_and_loads_no_rich():
    code = "import sys, kltutor.audit; print('rich' in sys.modules, 'kltutor.audit.command' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"]
    for fn, options in ((k3, {}), (loss("k3"), {"inputs": ALL, "returns": "scalar"})):
        start = time.process_time()
        check(fn, **options)
        assert time.process_time() - start < 3
