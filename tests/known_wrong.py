"""What this subject's folklore gets wrong, as patterns that no text of ours may match in its own words.

Each entry holds the rows of the project's notes, a regular expression over plain text (see `says`), and a
wrong sentence that it finds. A text may quote such a sentence to refute it; then leave the quotation out.
"""

import re

from kltutor.interview import terminal

WRONG = [
    (
        "m:W01 f:W12",
        r"k2.{0,60}\b0\.18\b|\b0\.18\b.{0,40}k2",
        "In the simulation the mean of $k_2$ is about 0.18.",
    ),
    (
        "m:W02 f:I03",
        r"(smallest|least|lowest|min\w*)\b.{0,30}k1.{0,60}−1\.5\b",
        "The smallest $k_1$ of ten thousand is about $-1.5$.",
    ),
    (
        "m:W03 f:W03",
        r"half.{0,30}KL.{0,60}(half of dpeak|dpeak/2)|0\.5 ?KLpeak.{0,40}dpeak/2",
        r"Spend half of the KL at the peak, that is $\sqrt{\mathrm{KL}} < d_{\mathrm{peak}}/2$.",
    ),
    (
        "m:W04 f:W01",
        r"(third|higher)[- ]order.{0,60}\bd\^?\(?3/2|\bd\^?\(?3/2.{0,60}(third|higher)[- ]order|[-−] ?δ ?d",
        r"For PPO a third-order term is subtracted, $\delta d^{3/2}$.",
    ),
    ("m:W05 f:W02", r"\bd = KL\b", r"Gold is $d(\alpha - \gamma d)$ with $d = \mathrm{KL}$."),
    (
        "m:W06 f:W21",
        r"(longer|more negative).{0,80}(smaller|lower|reduces the|less) loss",
        r"A longer answer has a more negative log-probability, hence a smaller loss.",
    ),
    (
        "m:W07 f:W15",
        r"(per-token|token-level|each token|by token).{0,30}k2.{0,60}(is|gives|has) (the )?(exact|strict)"
        r"|k2.{0,15}(per|(of|for) each) token.{0,40}(is|gives|has) (the )?(exact|strict)",
        r"Token-level $k_2$ in the loss is the strict gradient of the reverse KL.",
    ),
    (
        "m:W08 f:I08",
        r"(both|two) placements.{0,40}(same|one) objective|both optimise the same",
        "Both placements optimise the same objective.",
    ),
    (
        "m:W09 f:W13",
        r"1 [-−] e\^?\(?⁻?[−-](?-i:Δ)",
        r"The gradient of $k_3$ is $(1 - e^{-\Delta}) \nabla \log \pi$.",
    ),
    (
        "m:W10 f:I24",
        r"clamp.{0,40}(cures?|prevents?|is enough|solves?).{0,30}overflow",
        "A clamp at 10 prevents the overflow.",
    ),
    (
        "m:W11 f:W10",
        r"(TRL|OpenRLHF|verl).{0,60}approx_?kl.{0,40}(k3|\(r [-−] 1\))",
        "In TRL, OpenRLHF and verl the default approx_kl is k3.",
    ),
    (
        "m:W12 f:W08 f:I11",
        r"(adaptive|controller|rule|coefficient)\b.{0,60}\b(is|has only) (the|a) (P\b|proportional)"
        r"|(clip|horizon).{0,60}(is|of|from) (the rule of )?PPO-Penalty",
        "The adaptive coefficient is the P term of a PID.",
    ),
    ("m:W13 f:W24", r"JS\b.{0,30}is the (square )?root of a metric", "JS is the square root of a metric."),
    (
        "m:W14 f:I17",
        r"(only|iff|if and only)\b.{0,30}(invertible|bijecti)",
        "The KL is kept only by an invertible map.",
    ),
    (
        "m:W15",
        r"(last|terminal).{0,60}argmax of the cumulative sum",
        "The last token is the argmax of the cumulative sum.",
    ),
    (
        "m:W16",
        r"(1e-8|small epsilon).{0,80}(safe|avoids|protects)",
        "Adding 1e-8 to the deviation makes it safe for equal rewards.",
    ),
    (
        "m:W17",
        r"(fires?|alarm|warns?) (when|if).{0,30}gold.{0,40}KL.{0,20}(for|over) (\d+|five|several)",
        "It fires when gold falls and the KL rises for 5 checkpoints.",
    ),
    (
        "m:W18 f:I19",
        r"forward KL.{0,60}(must|needs?|requires?)( to)?( be)? sampl.{0,20}ref"
        r"|forward KL.{0,40}(infeasible|impossible|meaningless|out of reach)",
        "The forward KL is infeasible in RLHF.",
    ),
    (
        "m:W19",
        r"(JS|α)\b.{0,60}needs? (an? )?(extra|trained|density-ratio)",
        "The JS divergence needs an extra density-ratio network.",
    ),
    (
        "m:W20",
        r"(β|coefficient).{0,30}(independent of|does not depend on).{0,20}(reward scale|scale of the reward)",
        "In the loss the coefficient does not depend on the scale of the reward.",
    ),
    (
        "m:I01 f:W14",
        r"k3.{0,60}\b(is|gives) (only |just )?an? (biased )?first-order",
        "The gradient of $k_3$ is only a first-order approximation.",
    ),
    (
        "m:I02 f:I02",
        r"squares?.{0,30}cancel.{0,60}varia",
        "As squares no longer cancel, $k_2$ has less variance.",
    ),
    ("m:I03", r"E[pπ]\[q/p\] = 1", r"By Jensen it is at least $-\log \E_p[q/p] = 0$, as $\E_p[q/p] = 1$."),
    (
        "m:I05",
        r"because.{0,40}mode[- ]seeking|mode[- ]seeking.{0,30}(fits|suits|is why|is what we want)",
        "RLHF uses reverse KL because of its mode seeking.",
    ),
    ("m:I06 f:I18", r"GANs? .{0,40}reverse KL|reverse KL.{0,40}GAN", "Training a GAN minimises reverse KL."),
    (
        "m:I07 f:I06",
        r"concav\w+.{0,15}(so|hence|therefore|thus)\b.{0,30}uniq",
        "J is concave, so it is unique.",
    ),
    (
        "m:I08 f:I05",
        r"(only for|holds for|needs|assumes).{0,20}Bradley-Terry reward",
        "The closed form needs a Bradley-Terry reward.",
    ),
    (
        "m:I09 f:I07",
        r"clip.{0,40}(switches|turns) (the )?(KL|anchor|it) off|clip.{0,30}(KL|anchor) (fails|vanishes)",
        "The clip switches the anchor off when the policy is far away.",
    ),
    (
        "m:I10",
        r"small (β|beta|coefficient).{0,60}(is |becomes )?negligible",
        "For a small coefficient the bias is negligible.",
    ),
    (
        "m:I11 f:W18",
        r"(β|beta) .{0,20}0\.01.{0,8}0\.5\b|0\.001.{0,30}(explo|diverge)",
        "Choose β in [0.01, 0.5]; below 0.001 the KL explodes.",
    ),
    (
        "m:I12 f:I21",
        r"larger (RM|reward model)s?( always)? peaks? later and",
        "A larger reward model peaks later and higher.",
    ),
    (
        "m:I13",
        r"double[- ]count|counts? (the )?KL twice|counted twice",
        "An attached log-ratio counts the KL twice.",
    ),
    (
        "m:I16 f:W25",
        r"Schulman.{0,30}(looked|searched|looks|searches) for",
        "Schulman looked for a non-negative function with the right mean.",
    ),
    (
        "m:I17",
        r"(χ².{0,30}large|large χ²).{0,60}heavy",
        r"A large $\chi^2$ with a small KL means heavy tails.",
    ),
    (
        "m:I19 f:W11",
        r"\(r [-−] 1\) [-−] log r.{0,40}(dual|equivalent|same)",
        "$(r - 1) - \\log r$ is the equivalent dual form.",
    ),
    ("m:I20", r"self-distillation", "If the reference trains along, the KL becomes self-distillation."),
    (
        "m:I21",
        r"k3 of the (whole )?(sequence|completion).{0,30}(is best|to monitor|monitors)",
        "Take $k_3$ of the sequence to monitor the KL.",
    ),
    (
        "m:I22",
        r"DPO.{0,60}\b(always|equivalent|identical)\b.{0,30}(same|RL)\b",
        "DPO and KL-regularised RL always have the same fixed point.",
    ),
    (
        "m:I23",
        r"DPO.{0,60}implicitly (KL-)?(constrain|bound|keep)",
        "In DPO the policy is implicitly constrained.",
    ),
    (
        "m:I24",
        r"SimPO.{0,30}(has no|without any|no) (KL constraint|anchor|regularis)",
        "SimPO has no anchor at all.",
    ),
    ("m:I28", r"minori[sz]ation|mean[- ]seeking", "Forward KL is mean seeking."),
    (
        "m:I29",
        r"implicit reward (is|equals|is equivalent to) (just )?(the )?KL",
        "The implicit reward is the KL.",
    ),
    ("m:I30", r"variance.{0,30}k1 > k2 > k3", "In variance, $k_1 > k_2 > k_3$."),
    (
        "m:I32 f:I12",
        r"z0 = E\[β|z0 is (an estimate of )?(β|the) ?(KL|times)",
        r"In KTO $z_0 = \E[\beta \mathrm{KL}]$.",
    ),
    (
        "m:C02",
        r"k3 (always )?has (a )?(lower|smaller|less) variance( than k1)?[.;]",
        "$k_3$ has lower variance.",
    ),
    ("m:C05", r"k2 (always )?(reads|is biased) (too )?(high|upward)", "$k_2$ reads too high."),
    (
        "f:W04",
        r"(same|equal) KL.{0,60}over-?optimi\w+ (alike|equally|similarly)",
        "At the same KL, best-of-n and PPO over-optimise similarly.",
    ),
    (
        "f:W05",
        r"(KL )?penalty (prevents|cures|stops|avoids).{0,30}(over-?optimi|hacking|falling)",
        "The KL penalty prevents over-optimisation.",
    ),
    (
        "f:W06 f:W07",
        r"(InstructGPT|Anthropic|Bai).{0,60}adapt",
        "InstructGPT and Anthropic use an adaptive beta.",
    ),
    (
        "f:W09",
        r"target(_kl)? ?(=|of|is) 0\.01 .{0,40}(is usual|works|is typical)",
        "A target of 0.01 nats is usual.",
    ),
    (
        "f:W16",
        r"no (universally )?(best|single best) estimator|no estimator is best",
        "There is no universally best estimator.",
    ),
    (
        "f:W17 f:U02",
        r"DAPO.{0,40}(uses|keeps|kept|with|small).{0,20}(k3|β|coefficient)",
        "DAPO keeps $k_3$ with a small β.",
    ),
    ("f:W19", r"Cohere.{0,10}(DRO|OPO)|(DRO|OPO).{0,10}Cohere", "Cohere's DRO."),
    (
        "f:W20",
        r"IPO.{0,40}(KL-free|without (a |the )?(KL|reference)|has no reference|dropped? the (KL|reference))",
        "SimPO and IPO went the KL-free way.",
    ),
    ("f:W22", r"reference must be.{0,40}SFT", "The reference must be the previous SFT checkpoint."),
    (
        "f:W23",
        r"prompt( token)?s?.{0,80}KL (there |on them )?(is|should be|must be) (zero|0)\b",
        "On the prompt both read the same text, so the KL there is zero.",
    ),
    ("f:I15", r"discriminator('s)? loss.{0,20}(2 ?JS|JS)", "The discriminator's loss is 2 JSD − log 4."),
    ("f:U01", r"Yu et al.{0,60}χ²", r"Yu et al. monitor KL and $\chi^2$ together."),
    ("f:U03", r"GRPO.{0,40}\bfirst\b.{0,40}k3", "GRPO was the first method with k3."),
    (
        "f:U05",
        r"SimPO.{0,60}(is (less robust|more sensitive|worse)|less robust than DPO\b(?! I would not))",
        "SimPO is less robust than DPO.",
    ),
    (
        "f:U06",
        r"anneal.{0,60}(rare|seldom).{0,60}robust",
        "Annealing is rare because adaptive rules are more robust.",
    ),
    (
        "f:U07",
        r"between 1 and 10.{0,40}healthy|healthy.{0,40}\[1, 10\]",
        "A healthy ratio is between 1 and 10: healthy.",
    ),
    ("f:U09", r"(W2|Wasserstein)[- ]KL", "Use a Wasserstein KL."),
]


def says(text: str) -> list[str]:
    """Return the rows whose wrong statement a text makes; formulas stand between dollar signs."""
    line = " ".join(terminal(text).split())
    return [rows for rows, pattern, _ in WRONG if re.search(pattern, line, re.IGNORECASE)]
