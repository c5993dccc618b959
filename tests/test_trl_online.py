"""GRPO and RLOO beside TRL's own code, on the same completions: loss, gradient, advantages.

Where TRL does something else than the paper or than `kltutor`, the test is named after it and reproduces it.
"""

import pytest
import torch
from trl_side import PAD, Spoken, agree, logps_of, policies, require_trl, said, text, trainer

from kltutor import (
    dr_grpo_advantages,
    group_advantages,
    grpo_loss,
    importance_weight,
    k3,
    kl_in_reward,
    kl_loss,
    masked_mean,
    masked_sum,
    ppo_clip_loss,
    reduce,
    reinforce,
    rloo_advantages,
)

require_trl()
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
BATCHES = pytest.mark.parametrize("seed", [0, 1])
BETA, CLIP, LONGEST, GROUP = 0.3, 0.2, 5, 4
REDUCTIONS = {"grpo": "sequence_mean", "bnpo": "token_mean", "dapo": "token_mean", "luspo": "sequence_sum"}


class Batch:
    """Completions to prompts of two words, four to a prompt, and what three policies say of them."""

    def __init__(self, seed):
        """Draw them."""
        count = (12, 8)[seed]
        draw = torch.Generator().manual_seed(seed)
        self.policy, self.drew, self.ref = policies(seed)
        asked = torch.randint(1, 6, (count // GROUP, 2), generator=draw).repeat_interleave(GROUP, 0)
        self.prompts, self.completions = asked.tolist(), said(seed, count, LONGEST)
        self.group = torch.arange(count) // GROUP
        self.scores = torch.randint(-8, 9, (count,), generator=draw).double() / 8  # exact in float32 too
        self.advantages = torch.randn(count, generator=draw, dtype=torch.float64)
        start = len(self.prompts[0]) - 1
        (self.logp, mask), (old, _), (ref, _) = (
            logps_of(policy, self.prompts, self.completions) for policy in (self.policy, self.drew, self.ref)
        )
        self.mask, self.logp = mask[:, start:], self.logp[:, start:]
        self.old_logp, self.ref_logp = old[:, start:].detach(), ref[:, start:].detach()
        self.each = self.advantages[:, None].expand_as(self.logp)
        assert len(set(self.mask.sum(-1).tolist())) == LONGEST

    def to_trl(self, **changes):
        """Return the batch as TRL's `_compute_loss` takes it."""
        padded = [row + [PAD] * (self.mask.shape[1] - len(row)) for row in self.completions]
        return {
            "prompt_ids": torch.tensor(self.prompts),
            "prompt_mask": torch.ones(len(self.prompts), 2, dtype=torch.long),
            "completion_ids": torch.tensor(padded),
            "completion_mask": self.mask.long(),
            "advantages": self.advantages,
            "old_per_token_logps": self.old_logp.masked_fill(~self.mask, 0),
            "ref_per_token_logps": self.ref_logp.masked_fill(~self.mask, 0),
            "num_items_in_batch": self.mask.sum(),
        } | changes

    def trainer(self, kind, **options):
        """Return TRL's trainer, the policy and the reference of this batch in it."""
        rows = [
            {"prompt": text(p), "score": s.item()} for p, s in zip(self.prompts, self.scores, strict=True)
        ]
        made = trainer(kind, rows, num_generations=GROUP, max_completion_length=LONGEST, **options)
        made.model, made.ref_model = Spoken(self.policy), Spoken(self.ref)
        return made

    def grpo(self, **options):
        """Return TRL's loss of the batch, and its trainer."""
        made = self.trainer("GRPO", **{"beta": BETA, "epsilon": CLIP} | options)
        return made._compute_loss(made.model, self.to_trl()), made

    def scored(self, kind, **options):
        """Return what TRL makes of the completions and their scores, had it drawn them itself."""
        made = self.trainer(kind, **options)
        words = [text(row) for row in self.completions]
        idle = (None, words, None, {}, None, None) if kind == "GRPO" else (words,)
        made._generate = lambda prompts: (self.prompts, self.completions, *idle)
        return made, made._generate_and_score_completions(list(made.train_dataset))

    def surrogate(self, reduction):
        """Return the clipped surrogate."""
        return ppo_clip_loss(self.logp, self.old_logp, self.each, self.mask, CLIP, reduction=reduction)

    def kl(self, reduction, **correction):
        """Return k3 to the reference."""
        return kl_loss(self.logp, self.ref_logp, self.mask, "k3", reduction=reduction, **correction)


@BATCHES
def test_grpo_as_published_is_trl_s_without_the_bias_correction(seed):
    batch = Batch(seed)
    theirs, made = batch.grpo(loss_type="grpo", use_bias_correction_kl=False)
    ours = grpo_loss(
        batch.logp, batch.old_logp, batch.ref_logp, batch.mask, batch.advantages, beta=BETA, clip_eps=CLIP
    )
    agree(theirs, ours, batch.policy)
    shown = made._metrics["train"]
    assert shown["kl"][-1] == pytest.approx(batch.kl("token_mean").item(), rel=1e-9)  # a mean over tokens
    ratio = importance_weight(batch.logp, batch.old_logp, batch.mask, "token")[batch.mask]
    up = (batch.each > 0)[batch.mask]
    clipped = torch.where(up, ratio > 1 + CLIP, ratio < 1 - CLIP).double().mean().item()
    assert 0.1 < clipped < 0.9  # both branches of the minimum are compared
    assert shown["clip_ratio/region_mean"][-1] == pytest.approx(clipped, abs=1e-6)


@BATCHES
@pytest.mark.parametrize("loss_type", REDUCTIONS)
def test_trl_s_bias_corrected_kl_is_k3_times_the_ratio_of_its_own_token_differentiated(seed, loss_type):
    """TRL's default. The ratio is that of one token, so beyond the first the mean stays biased."""
    batch, reduction = Batch(seed), REDUCTIONS[loss_type]
    theirs, _ = batch.grpo(loss_type=loss_type)
    kl = batch.kl(reduction, old_logp=batch.old_logp, correction="differentiable", ratio="token")
    agree(theirs, batch.surrogate(reduction) + BETA * kl, batch.policy)


@BATCHES
@pytest.mark.parametrize("loss_type", REDUCTIONS)
def test_each_of_trl_s_loss_types_is_one_reduction_of_the_same_terms(seed, loss_type):
    batch, reduction = Batch(seed), REDUCTIONS[loss_type]
    theirs, _ = batch.grpo(loss_type=loss_type, use_bias_correction_kl=False)
    agree(theirs, batch.surrogate(reduction) + BETA * batch.kl(reduction), batch.policy)


@BATCHES
def test_trl_s_dr_grpo_divides_the_sum_by_the_longest_length_possible(seed):
    """`sequence_sum` times a constant, 1/max_completion_length, which only changes the learning rate."""
    batch = Batch(seed)
    theirs, _ = batch.grpo(loss_type="dr_grpo", use_bias_correction_kl=False)
    ours = batch.surrogate("sequence_sum") + BETA * batch.kl("sequence_sum")
    agree(theirs, ours / LONGEST, batch.policy)


@BATCHES
def test_trl_s_sequence_level_ratio_is_a_geometric_mean_over_tokens(seed):
    """GSPO's (π/π_old)^(1/length); `importance_weight` has the whole product, which corrects expectations."""
    batch = Batch(seed)
    theirs, _ = batch.grpo(loss_type="grpo", beta=0.0, importance_sampling_level="sequence")
    logp, old_logp = (masked_mean(x, batch.mask)[:, None] for x in (batch.logp, batch.old_logp))
    whole = torch.ones(len(logp), 1, dtype=torch.bool)
    agree(theirs, ppo_clip_loss(logp, old_logp, batch.advantages[:, None], whole, CLIP), batch.policy)


@BATCHES
def test_trl_s_bias_correction_at_sequence_level_weights_every_token_with_that_mean(seed):
    """Broadcast over the tokens of a completion (huggingface/trl#6586); a token's own ratio is not in it."""
    batch = Batch(seed)
    level = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    theirs = batch.grpo(**level)[0] - batch.grpo(beta=0.0, **level)[0]
    ratio = masked_mean(batch.logp - batch.old_logp, batch.mask).exp()[:, None]
    terms = ratio * k3(batch.logp, batch.ref_logp)
    agree(theirs, BETA * reduce(terms, batch.mask, "sequence_mean"), batch.policy)


@BATCHES
def test_trl_on_policy_takes_the_policy_itself_as_the_old_one(seed):
    batch = Batch(seed)
    made = batch.trainer("GRPO", beta=BETA, epsilon=CLIP, loss_type="grpo")
    theirs = made._compute_loss(made.model, batch.to_trl(old_per_token_logps=None))
    batch.old_logp = batch.logp.detach()
    kl = batch.kl("sequence_mean", old_logp=batch.old_logp, correction="differentiable", ratio="token")
    agree(theirs, batch.surrogate("sequence_mean") + BETA * kl, batch.policy)


@BATCHES
def test_trl_s_z_scores_have_the_sample_s_deviation_and_an_epsilon(seed):
    """√((G-1)/G) of ours, and a little less: the std counts G-1, and 1e-4 is added to it."""
    batch = Batch(seed)
    batch.scores[:GROUP] = 0.625  # a group without spread
    theirs = batch.scored("GRPO", beta=BETA)[1]["advantages"].double()
    spread = batch.scores.view(-1, GROUP).std(1).repeat_interleave(GROUP)
    ours = group_advantages(batch.scores, batch.group) * ((GROUP - 1) / GROUP) ** 0.5
    torch.testing.assert_close(theirs, ours * spread / (spread + 1e-4), rtol=1e-6, atol=1e-6)
    assert (theirs[:GROUP] == 0).all()
    assert theirs[GROUP:].abs().max() > 0.5


@BATCHES
def test_trl_without_scaling_has_the_advantages_of_dr_grpo(seed):
    batch = Batch(seed)
    theirs = batch.scored("GRPO", beta=BETA, scale_rewards="none")[1]["advantages"].double()
    torch.testing.assert_close(theirs, dr_grpo_advantages(batch.scores, batch.group), rtol=1e-6, atol=1e-6)


@BATCHES
def test_trl_s_scaling_by_the_batch_divides_by_one_deviation(seed):
    """`kltutor` has no such choice: groups of different spread keep their proportion."""
    batch = Batch(seed)
    theirs = batch.scored("GRPO", beta=BETA, scale_rewards="batch")[1]["advantages"].double()
    ours = dr_grpo_advantages(batch.scores, batch.group) / (batch.scores.std() + 1e-4)
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


@BATCHES
def test_rloo_leaves_one_out_of_scores_less_beta_times_k1_of_the_whole_completion(seed):
    batch = Batch(seed)
    made, found = batch.scored("RLOO", beta=BETA)
    logp = batch.logp.detach()  # RLOO measures the KL on what it has just drawn
    rewards = kl_in_reward(batch.scores, logp, batch.ref_logp, batch.mask, BETA)
    ours = rloo_advantages(masked_sum(rewards, batch.mask), batch.group)
    torch.testing.assert_close(found["advantages"], ours, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["old_logps"], masked_sum(logp, batch.mask), rtol=1e-9, atol=1e-9)
    shown = reduce(logp - batch.ref_logp, batch.mask, "token_mean").item()
    assert made._metrics["train"]["kl"][-1] == pytest.approx(shown, rel=1e-6)


@BATCHES
def test_trl_s_rloo_is_a_clipped_ratio_of_whole_completions(seed):
    """The paper has a score function and no clip; so has `kltutor`. Off the policy they differ."""
    batch = Batch(seed)
    made = batch.trainer("RLOO", beta=BETA, epsilon=CLIP)
    old = masked_sum(batch.old_logp, batch.mask)
    theirs = made._compute_loss(made.model, batch.to_trl(old_logps=old))
    whole = torch.ones(len(old), 1, dtype=torch.bool)
    ratio = masked_sum(batch.logp, batch.mask)[:, None], old[:, None]
    agree(theirs, ppo_clip_loss(*ratio, batch.advantages[:, None], whole, CLIP), batch.policy)


@BATCHES
def test_on_policy_trl_s_rloo_has_another_value_than_the_score_function_and_the_same_gradient(seed):
    batch = Batch(seed)
    made = batch.trainer("RLOO", beta=BETA, epsilon=CLIP)
    theirs = made._compute_loss(
        made.model, batch.to_trl(old_logps=masked_sum(batch.logp, batch.mask).detach())
    )
    ours = reinforce(batch.logp, batch.each, batch.mask)
    torch.testing.assert_close(theirs, -batch.advantages.mean())
    agree(theirs - theirs.detach(), ours - ours.detach(), batch.policy)


def test_what_trl_s_own_head_says_is_token_logps():
    """The trainers above were handed the policy through a double of this head, in float64."""
    batch = Batch(0)
    made = trainer("GRPO", [{"prompt": "a b", "score": 0.0}] * GROUP, num_generations=GROUP)
    rows = batch.to_trl()
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
    seen = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
    theirs, _, _ = made._get_per_token_logps_and_entropies(made.model, ids, seen, batch.mask.shape[1])
    with torch.no_grad():
        ours, mask = logps_of(lambda tokens: made.model(tokens).logits, batch.prompts, batch.completions)
    torch.testing.assert_close(theirs, (ours * mask)[:, 1:], rtol=1e-6, atol=1e-6)
