"""The modes of failure in the order in which they explain each other, and what to try against each."""

HEALTHY = "healthy"
# Causes before symptoms: a mode explains some of those after it, never one before it.
MODES = (
    "negative-kl",
    "unit-mix-up",
    "wrong-reference",
    "moving-reference",
    "controller-oscillation",
    "runaway",
    "over-optimisation",
    "length-drift",
    "collapse",
)
EXPLAINS = {
    "unit-mix-up": ("controller-oscillation", "runaway", "over-optimisation", "length-drift", "collapse"),
    "negative-kl": ("unit-mix-up", "moving-reference", "runaway", "over-optimisation", "length-drift"),
    "wrong-reference": ("runaway",),
    "moving-reference": ("runaway", "over-optimisation", "length-drift", "collapse"),
    "runaway": ("over-optimisation", "length-drift"),
    "over-optimisation": ("length-drift",),
}
SECTIONS = {
    "collapse": "8.1",
    "runaway": "8.2",
    "over-optimisation": "8.3",
    "length-drift": "8.4",
    "wrong-reference": "8.5",
    "moving-reference": "8.5",
    "controller-oscillation": "8.6",
    "negative-kl": "8.6",
    "unit-mix-up": "8.6",
}
REMEDIES = {
    ("collapse", "no entropy to start with"): (
        "Start from a checkpoint that still varies: earlier in supervised training, or a higher temperature "
        "of the sampler in both the policy and the reference (section 8.1).",
    ),
    ("runaway", ""): (
        "Raise beta by a factor of 3 to 10, or let a controller hold the KL at a target (section 4.2).",
        "Check that the coefficient reaches the loss or the reward at all (section 7.5).",
        "Take a checkpoint from before the climb; the reward since then is bought with KL (section 6.4).",
    ),
    ("collapse", ""): (
        "Lower beta by a factor of 3 to 10: KL(π* ‖ ref) is about Var_ref(reward) / (2·beta²) (section 4.4).",
        "Check that rewards differ within a group and that the learning rate is not too small (section 8.1).",
    ),
    ("over-optimisation", ""): (
        "Stop at the step where the held-out score was highest, or spend half the KL of the peak (section "
        "6.4).",
        "Train on the minimum or on mean - k·sd of an ensemble of reward models (section 8.3).",
        "Do not expect a larger beta to help by itself: it stops earlier on the same curve (section 6.4).",
    ),
    ("length-drift", ""): (
        "Compare rewards at equal length, in matched pairs, to see whether length itself is paid (section "
        "8.4).",
        "Take the length out of the reward, or normalise the loss so that it does not pay for it (section "
        "8.4).",
    ),
    ("wrong-reference", ""): (
        "Load as the reference the checkpoint that the policy starts from (section 8.5).",
        "If the two are meant to differ, subtract the KL of step 0 before comparing with a target (section "
        "8.5).",
        "Compare precision, adapter, dropout and chat template of the two models (section 7.5).",
    ),
    ("moving-reference", ""): (
        "Freeze the reference: a copy of the parameters, not the same tensors, and no gradient (section "
        "7.5).",
        "If it is replaced on purpose, log the KL from the first reference too: this one says only how far "
        "the policy went since the last replacement (section 8.5).",
        "If the prompts became easier meanwhile, the reward rose by itself: compare on the same prompts.",
    ),
    ("controller-oscillation", ""): (
        "Lower the gain or lengthen the horizon: with the lag of a trainer, gain times slope must stay "
        "below 1 "
        "(section 4.5).",
        "Feed the controller a running mean of the KL (section 4.5).",
    ),
    ("negative-kl", "swapped sign"): (
        "Take log π - log ref, in this order; what is logged is minus the KL (section 2.4).",
        "If the same number is charged, it pays for drift: turn the sign of the penalty too (section 7.5).",
    ),
    ("negative-kl", "sampler mismatch"): (
        "Score the tokens with the law that drew them: same temperature, top-k, top-p, weights and precision "
        "(section 2.4).",
        "Weight by the ratio of the policy to the sampler (section 3.5).",
    ),
    ("negative-kl", ""): (
        "Log the mean of k3 too: it tells a swapped sign from a sampler that is not the policy (section "
        "8.6).",
        "Check the order log π - log ref, the mask, and temperature, top-k and top-p of the sampler "
        "(section 2.4).",
    ),
    ("unit-mix-up", ""): (
        "Print beta, the KL and what was subtracted for one batch, with units, and divide (section 7.5).",
        "Sum the KL over the tokens of a completion, in nats, once, with a minus (section 3.1).",
    ),
    ("unit-mix-up", "coefficient never used"): (
        "Find where the coefficient should enter and assert that the reward changes with it (section 7.5).",
    ),
}
