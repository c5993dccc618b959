"""DPO, IPO, KTO, SimPO and ORPO beside TRL's own code, on the same completions: loss and gradient.

TRL tokenises, pads and masks the texts itself; our side starts from the token ids. Where TRL does something
else than the paper or than `kltutor`, the test is named after it and reproduces it.
"""

import pytest
import torch
from trl_side import Spoken, agree, logps_of, policies, require_trl, said, text, trainer

from kltutor import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    masked_mean,
    masked_sum,
    orpo_loss,
    preference_metrics,
    reduce,
    simpo_loss,
)

require_trl()
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
BATCHES = pytest.mark.parametrize("seed", [0, 1])
BETA = 0.3


class Pairs:
    """Pairs of completions of unlike lengths to prompts of one to three words."""

    def __init__(self, seed):
        """Draw them."""
        count = (7, 5)[seed]
        self.policy, _, self.ref = policies(seed)
        self.prompts = [row[:-1] for row in said(seed + 10, 2 * count, 4) if len(row) > 1][:count]
        self.sides = {"chosen": said(seed, count), "rejected": said(seed + 20, count)}
        assert [len(row) for row in self.sides["chosen"]] != [len(row) for row in self.sides["rejected"]]

    def logps(self, side, policy=None):
        """Return log-probabilities of the tokens of one side, and their mask."""
        return logps_of(policy or self.policy, self.prompts, self.sides[side])

    def sums(self):
        """Return what DPO and IPO take: whole completions, the policy's and the reference's."""
        ours = [masked_sum(*self.logps(side)) for side in self.sides]
        return *ours, *(masked_sum(*self.logps(side, self.ref)).detach() for side in self.sides)

    def means(self):
        """Return what SimPO and ORPO take: means over the tokens of each completion."""
        return [masked_mean(*self.logps(side)) for side in self.sides]

    def trainer(self, kind, **options):
        """Return TRL's trainer on the texts, and the batch that it makes of them."""
        columns = {side: [text(row[:-1]) for row in rows] for side, rows in self.sides.items()}
        rows = [
            {"prompt": text(prompt) + " ", "chosen": c, "rejected": r}
            for prompt, c, r in zip(self.prompts, columns["chosen"], columns["rejected"], strict=True)
        ]
        if kind == "KTO":
            rows = [
                {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
                for row in rows
                for side in self.sides
            ]
        made = trainer(kind, rows, **{"beta": BETA, "max_length": None} | options)
        made.model, made.ref_model = Spoken(self.policy), Spoken(self.ref)
        return made, made.data_collator(list(made.train_dataset))

    def dpo(self, **options):
        """Return TRL's loss, and what it logged."""
        made, batch = self.trainer("DPO", **options)
        return made._compute_loss(made.model, batch, return_outputs=False), made._metrics["train"]


@BATCHES
def test_dpo(seed):
    pairs = Pairs(seed)
    theirs, shown = pairs.dpo(loss_type="sigmoid")
    agree(theirs, dpo_loss(*pairs.sums(), BETA).mean(), pairs.policy)
    for ours, name in (("chosen_reward", "chosen"), ("rejected_reward", "rejected"), ("margin", "margins")):
        logged = shown[f"rewards/{name}"][-1]
        assert logged == pytest.approx(preference_metrics(*pairs.sums(), BETA)[ours], rel=1e-6)


@BATCHES
def test_trl_s_sigmoid_loss_does_not_hear_label_smoothing(seed):
    """Its other losses do. Conservative DPO, which `label_smoothing` stands for, is none of TRL's."""
    pairs = Pairs(seed)
    theirs, _ = pairs.dpo(loss_type="sigmoid", label_smoothing=0.2)
    agree(theirs, dpo_loss(*pairs.sums(), BETA).mean(), pairs.policy)
    smoothed = dpo_loss(*pairs.sums(), BETA, label_smoothing=0.2).mean()
    assert abs(theirs - smoothed) > 1e-3


@BATCHES
def test_trl_s_robust_loss_combines_ours_with_its_labels_turned_round(seed):
    pairs, eps = Pairs(seed), 0.2
    theirs, _ = pairs.dpo(loss_type="robust", label_smoothing=eps)
    chosen, rejected, ref_chosen, ref_rejected = pairs.sums()
    right = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, BETA).mean()
    wrong = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, BETA).mean()
    agree(theirs, ((1 - eps) * right - eps * wrong) / (1 - 2 * eps), pairs.policy)


@BATCHES
def test_trl_s_ipo_is_fed_log_ratios_per_token(seed):
    """The paper's are of whole completions, so that τ stands for another strength there."""
    pairs = Pairs(seed)
    theirs, _ = pairs.dpo(loss_type="ipo")
    means = [masked_mean(*pairs.logps(side)) for side in pairs.sides]
    refs = [masked_mean(*pairs.logps(side, pairs.ref)).detach() for side in pairs.sides]
    agree(theirs, ipo_loss(*means, *refs, BETA).mean(), pairs.policy)
    assert abs(theirs - ipo_loss(*pairs.sums(), BETA).mean()) > 0.1


@pytest.mark.parametrize("turned_round", [False, True])
@BATCHES
def test_kto_pairs_prompts_with_the_completion_before(seed, turned_round):
    pairs = Pairs(seed)
    if turned_round:  # so that the reference point is once clamped and once not
        pairs.policy, pairs.ref = pairs.ref, pairs.policy
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    made, batch = pairs.trainer("KTO", **weights)
    theirs = made._compute_loss(made.model, batch, return_outputs=False)
    prompts = [prompt for prompt in pairs.prompts for _ in pairs.sides]
    shown = [row for both in zip(*pairs.sides.values(), strict=True) for row in both]
    turned = shown[-1:] + shown[:-1]
    logp, mismatched = (masked_sum(*logps_of(pairs.policy, prompts, rows)) for rows in (shown, turned))
    ref, ref_mismatched = (
        masked_sum(*logps_of(pairs.ref, prompts, rows)).detach() for rows in (shown, turned)
    )
    anchor = kto_reference_point(mismatched, ref_mismatched)
    assert (anchor > 0.01) == turned_round
    desirable = torch.arange(len(prompts)) % 2 == 0
    ours = kto_loss(logp, ref, desirable, anchor, BETA, **weights).mean()
    agree(theirs, ours, pairs.policy)
    assert made._metrics["train"]["kl"][-1] == pytest.approx(anchor.item(), rel=1e-6)


@BATCHES
def test_simpo_is_cpo_without_its_likelihood(seed):
    pairs, gamma = Pairs(seed), 0.5
    made, batch = pairs.trainer("CPO", loss_type="simpo", simpo_gamma=gamma, cpo_alpha=0.0)
    theirs, _ = made.get_batch_loss_metrics(made.model, batch)
    agree(theirs, simpo_loss(*pairs.means(), BETA, gamma).mean(), pairs.policy)


@BATCHES
def test_trl_s_cpo_adds_a_likelihood_per_token_of_the_batch_unless_told_otherwise(seed):
    """`cpo_alpha` is 1 by default, and then loss_type="simpo" is not SimPO."""
    pairs, gamma = Pairs(seed), 0.5
    made, batch = pairs.trainer("CPO", loss_type="simpo", simpo_gamma=gamma)
    theirs, _ = made.get_batch_loss_metrics(made.model, batch)
    likelihood = reduce(*pairs.logps("chosen"), "token_mean")
    agree(theirs, simpo_loss(*pairs.means(), BETA, gamma).mean() - likelihood, pairs.policy)


@BATCHES
def test_the_odds_term_of_orpo(seed):
    """TRL computes it in float32."""
    pairs = Pairs(seed)
    made, _ = pairs.trainer("ORPO")
    chosen, rejected = pairs.means()
    theirs = -made.odds_ratio_loss(chosen, rejected)[0]
    ours = orpo_loss(chosen, rejected, BETA) + chosen
    torch.testing.assert_close(theirs.double(), ours, rtol=1e-6, atol=1e-6)
    agree(theirs.mean(), ours.mean(), pairs.policy, tolerance=1e-6)


@BATCHES
def test_trl_s_orpo_is_supervised_on_the_prompt_too_and_per_token_of_the_batch(seed):
    """The paper's first term, and ours, is the mean over each chosen completion alone."""
    pairs = Pairs(seed)
    made, batch = pairs.trainer("ORPO")
    theirs, _ = made.get_batch_loss_metrics(made.model, batch)
    chosen, rejected = pairs.means()
    odds = (orpo_loss(chosen, rejected, BETA) + chosen).mean()
    firsts = [prompt[:1] for prompt in pairs.prompts]  # all but the first token is learnt
    rest = [prompt[1:] + row for prompt, row in zip(pairs.prompts, pairs.sides["chosen"], strict=True)]
    likelihood = reduce(*logps_of(pairs.policy, firsts, rest), "token_mean")
    agree(theirs, odds - likelihood, pairs.policy, tolerance=1e-6)
    assert abs(theirs - orpo_loss(chosen, rejected, BETA).mean()) > 0.01


def test_without_trl_the_tests_are_skipped_and_in_ci_they_fail(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception, match=r"make \.venv/peers"):
        require_trl()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"make \.venv/peers"):
        require_trl()
