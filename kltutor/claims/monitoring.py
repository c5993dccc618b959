"""Claims of section 2.4 and beyond on KL curves: the (r - 1) - log r forms, stale and truncated samples."""

import math

import torch

from kltutor.claims import claim
from kltutor.claims.witnesses import OLD, POLICY, REF, agree, differ, ensure, gradient, logp, num
from kltutor.divergences import chi2, kl
from kltutor.estimators import full_vocab_kl, k1, k2, k3
from kltutor.moments import estimator_moments, gaussian_moments, optimal_coef


@claim(
    "KL-217",
    section="2.4",
    says=r"Schulman adds the control variate $\lambda(r - 1)$ to $-\log r$ first, takes $\lambda = 1$ "
    r"because $\log r \le r - 1$, and only then reads k3 as a Bregman gap; the recipe $f(r) - f'(1)(r - 1)$ "
    r"serves any $f$-divergence.",
    verdict="folklore is wrong",
    folklore="Schulman looked for a non-negative function with the right mean and found e^x - x - 1.",
    kind="cited",
    sources=("schulman2020kl",),
    source_rows=("f:W25",),
)
def history_of_k3() -> str:
    """The recipe for both directions of KL, from samples of one distribution."""
    q, r = POLICY.exp(), (REF - POLICY).exp().requires_grad_(True)
    means = []
    for f, truth in ((lambda x: -x.log(), kl(POLICY, REF)), (lambda x: x * x.log(), kl(REF, POLICY))):
        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(f(one), one)
        values = (f(r) - slope * (r - 1)).detach()
        agree(q @ values, truth, "mean of f(r) - f'(1)(r - 1)")
        ensure((values >= 0).all(), "a value is negative")
        ensure((f(r) < 0).any(), "f alone is never negative, so the recipe shows nothing")
        means.append(q @ values)
    agree((r - 1 - r.log()), k3(POLICY, REF), "the recipe for -log r and k3")
    return (
        f"Schulman (2020). From samples of q: -log r + (r - 1) has mean {num(means[0])}, r log r - (r - 1) "
        f"has mean {num(means[1])}, the two KLs, and neither is ever negative."
    )


@claim(
    "KL-218",
    section="2.4",
    says=r"On policy samples, $(r - 1) - \log r$ with $r = \pi/\pi_{\mathrm{ref}}$ has the mean "
    r"$\chi^2(\pi \Vert \pi_{\mathrm{ref}}) - \mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$; k3 needs "
    r"$r = \pi_{\mathrm{ref}}/\pi$.",
    verdict="folklore is wrong",
    folklore="The two forms of k3 are dual, so it does not matter which way up the ratio is.",
    kind="exact",
    source_rows=("f:W11", "m:I19"),
)
def inverted_ratio_measures_chi2() -> str:
    """Both ways up, on an unlike pair."""
    probs, log_ratio = POLICY.exp(), k1(POLICY, REF)
    inverted = probs @ (torch.expm1(log_ratio) - log_ratio)
    right = probs @ (torch.expm1(-log_ratio) + log_ratio)
    agree(inverted, chi2(POLICY, REF) - kl(POLICY, REF), "the inverted ratio")
    agree(right, kl(POLICY, REF), "the right ratio")
    differ(inverted, right, "the two", 1)
    differ(inverted, kl(REF, POLICY), "the other KL", 1)
    return (
        f"r = ref/policy: {num(right)} = KL; r = policy/ref: {num(inverted)} = {num(chi2(POLICY, REF))} - KL."
    )


@claim(
    "KL-219",
    section="2.4",
    says=r"With samples of an old policy, $(r - 1) - \log r$ with $r = \pi/\pi_{\mathrm{old}}$ estimates "
    r"$\mathrm{KL}(\pi_{\mathrm{old}} \Vert \pi)$, not $\mathrm{KL}(\pi \Vert \pi_{\mathrm{old}})$; "
    r"clamping $r$ at $10^{-8}$ floors $\log r$ at $-18.42$ and ends its gradient there.",
    verdict="holds",
    kind="exact",
    source_rows=("m:I19",),
)
def old_samples_measure_from_old() -> str:
    """Three outcomes by enumeration, and the clamp on both sides of its edge."""
    log_ratio = POLICY - OLD
    mean = OLD.exp() @ (torch.expm1(log_ratio) - log_ratio)
    agree(mean, kl(OLD, POLICY), "mean over old samples")
    differ(mean, kl(POLICY, OLD), "the other direction", 0.005)
    logits = torch.tensor([-25.0, -18.0], dtype=torch.float64, requires_grad=True)
    floored = logits.exp().clamp_min(1e-8).log()
    slope = gradient(floored.sum(), logits)
    agree(floored[0], math.log(1e-8), "the floor")
    agree(floored[1], -18.0, "just above the floor")
    agree(slope, torch.tensor([0.0, 1.0]), "gradient below and above")
    return (
        f"Mean {num(mean)} = KL(old ‖ policy), KL(policy ‖ old) = {num(kl(POLICY, OLD))}; "
        f"floor {floored[0].item():.2f}, gradient {slope[0].item():g} below it."
    )


@claim(
    "KL-220",
    section="2.4",
    says="Libraries log different estimators of the step from the old policy: TRL's former PPO trainer k2, "
    "verl and OpenRLHF k1, CleanRL and Stable-Baselines3 the $(r - 1) - \\log r$ form.",
    verdict="folklore is wrong",
    folklore="approx_kl is k3 in every library.",
    kind="cited",
    sources=("sheng2025hybridflow",),
    source_rows=("m:W11", "f:W10"),
)
def what_libraries_log() -> str:
    """Each formula rewritten, and its mean over all outcomes with samples of the old policy."""
    new_minus_old = POLICY - OLD
    ratio = new_minus_old.exp()
    logged = {
        "TRL PPO": new_minus_old**2 / 2,
        "verl, OpenRLHF": -new_minus_old,
        "CleanRL, SB3": (ratio - 1) - new_minus_old,
    }
    means = {name: OLD.exp() @ value for name, value in logged.items()}
    agree(logged["TRL PPO"], k2(OLD, POLICY), "TRL's and k2")
    agree(logged["verl, OpenRLHF"], k1(OLD, POLICY), "verl's and k1")
    agree(logged["CleanRL, SB3"], k3(OLD, POLICY), "CleanRL's and k3")
    agree(means["verl, OpenRLHF"], kl(OLD, POLICY), "mean of k1")
    agree(means["CleanRL, SB3"], kl(OLD, POLICY), "mean of k3")
    differ(means["TRL PPO"], kl(OLD, POLICY), "mean of k2", 0.005)
    return (
        f"trl@f2cd5771 ppo_trainer.py, verl@1dda039b core_algos.py, OpenRLHF@3c3be623 loss.py, cleanrl "
        f"ppo.py, sb3 ppo.py. Means: {', '.join(f'{name} {num(mean)}' for name, mean in means.items())}; "
        f"KL(old ‖ policy) {num(kl(OLD, POLICY))}."
    )


@claim(
    "KL-221",
    section="2.6",
    says=r"Computed as $e^d - d - 1$, k3 comes out negative or zero for small $d$ in float32, bfloat16 and "
    r"float16; $\mathrm{expm1}(d) - d$ is not negative at any 16-bit number, nor on a fine float32 grid.",
    verdict="folklore is wrong",
    folklore="k3 is non-negative, so its computed value is.",
    kind="exact",
    source_rows=("m:C13",),
)
def expm1_keeps_the_sign() -> str:
    """All 16-bit numbers, and a fine grid of 32-bit ones around zero."""
    lows = []
    for dtype, small in ((torch.bfloat16, 0.01), (torch.float16, 3e-4)):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite()]
        ensure((torch.expm1(every) - every >= 0).all(), f"expm1(d) - d is negative in {dtype}")
        x = torch.tensor(small, dtype=dtype)
        low = (torch.exp(x) - x - 1).item()
        ensure(low < 0, f"exp(d) - d - 1 is not negative at {small} in {dtype}")
        lows.append(low)
    d = torch.linspace(-2e-3, 2e-3, 400_001)
    plain, careful = torch.exp(d) - d - 1, torch.expm1(d) - d
    ensure((careful >= 0).all(), "expm1(d) - d is negative in float32")
    share = (plain < 0).double().mean()
    ensure(bool(0.005 < share < 0.02), f"exp(d) - d - 1 is negative for {share} of small d in float32")
    agree(
        (torch.exp(torch.tensor(1e-4)) - torch.tensor(1e-4) - 1).item(),
        0,
        "exp(d) - d - 1 at 1e-4 in float32",
    )
    away = d.abs() > 1e-4
    exact = torch.expm1(d.double()) - d.double()
    error = ((careful - exact) / exact).abs()[away].max()
    ensure(error < 2e-3, f"expm1(d) - d has a relative error of {error}")
    return (
        f"exp(d) - d - 1: {num(lows[0], 2)} at d = .01 in bfloat16, {num(lows[1], 2)} at 3e-4 in float16, "
        f"{num(plain.min(), 1)} and 0 (d = 1e-4) in float32; expm1(d) - d: none negative among all 16-bit "
        f"and {len(d)} float32 numbers, relative error below .002 for 1e-4 < |d| < 2e-3 in float32."
    )


@claim(
    "KL-223",
    section="2.9",
    says=r"When samples come from a truncated or tempered policy $q$ but are scored with the full softmax, "
    r"k1 has mean $\mathrm{KL}(q \Vert \pi_{\mathrm{ref}}) - \mathrm{KL}(q \Vert \pi)$, which can be "
    r"negative, and k2 and k3 need not have the mean $\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$ or "
    r"$\mathrm{KL}(q \Vert \pi_{\mathrm{ref}})$ either.",
    verdict="folklore is wrong",
    folklore="k1 is unbiased, so a KL curve that stays below zero must be noise or a sign error.",
    kind="exact",
    source_rows=("m:C01",),
)
def truncated_samples_bias_every_estimator() -> str:
    """Top-k and a temperature below one, against a reference that is more peaked than the policy."""
    policy, ref = logp(0.4, 0.3, 0.2, 0.1), logp(0.55, 0.3, 0.11, 0.04)
    top2 = torch.where(policy > math.log(0.25), policy, -torch.inf).log_softmax(-1)
    evidence = []
    for name, sampler in (("top-2", top2), ("temperature .6", (policy / 0.6).log_softmax(-1))):
        means = [sampler.exp() @ estimator(policy, ref) for estimator in (k1, k2, k3)]
        agree(means[0], kl(sampler, ref) - kl(sampler, policy), f"E[k1] under {name}")
        ensure(means[0] < -0.01, f"E[k1] under {name} is {means[0]}")
        for truth in (kl(policy, ref), kl(sampler, ref)):
            for mean in means:
                differ(mean, truth, f"an estimator under {name}", 1e-3)
        evidence.append(
            f"{name}: k1, k2, k3 {', '.join(num(m, 3) for m in means)}, KL(q ‖ ref) "
            f"{num(kl(sampler, ref), 3)}"
        )
    return f"KL(policy ‖ ref) {num(kl(policy, ref), 3)}; {'; '.join(evidence)}."


@claim(
    "KL-226",
    section="2.8",
    says="One draw of k3 has less variance than one of k1, with the same mean.",
    verdict="holds if",
    condition=r"the policy that drew them covers the reference and $\chi^2(\pi_{\mathrm{ref}} \Vert \pi) < "
    r"2J$; else k1, $\lambda^*$ or the full-vocabulary KL of each prefix is the better curve.",
    kind="exact",
    source_rows=("m:C16", "f:I01", "m:I21"),
)
def which_estimator_to_monitor_with() -> str:
    """The standard error of 1000 draws over KL, near, far, and with a wide reference."""
    rows = []
    for mu, sigma, best in ((0.1, 1.0, "k3"), (1.5, 1.0, "k1"), (0.0, 1.5, "k1")):
        moments = gaussian_moments(mu, sigma)
        error = {n: (moments[n].variance / 1000).sqrt() / moments["k1"].mean for n in ("k1", "k3")}
        ensure(min(error, key=lambda n: error[n]) == best, f"best at mu {mu}, sigma {sigma}: {error}")
        rows.append(f"mu {mu:g}, sigma {sigma:g}: k1 {num(error['k1'], 2)}, k3 {num(error['k3'], 2)}")
    moments = estimator_moments(POLICY, REF)
    values = k1(POLICY, REF) + optimal_coef(POLICY, REF) * torch.expm1(REF - POLICY)
    combined = POLICY.exp() @ (values - kl(POLICY, REF)) ** 2
    ensure(
        combined < min(moments["k1"].variance, moments["k3"].variance) - 0.01,
        "the best coefficient is not best",
    )
    agree(full_vocab_kl(POLICY, REF), kl(POLICY, REF), "the full-vocabulary KL, which has no variance")
    return (
        f"Relative error of 1000 draws: {'; '.join(rows)}; unlike pair, variance with λ*: {num(combined, 4)}."
    )


@claim(
    "KL-227",
    section="2.9",
    says=r"From samples of an old policy, $\sum_t k_1$ estimates $\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}})$ "
    "without bias when each term is weighted by the ratio of its whole prefix, not by that of its own token; "
    r"a log-ratio frozen at rollout time gives the gradient of $\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}}) - "
    r"\mathrm{KL}(\pi \Vert \pi_{\mathrm{old}})$.",
    verdict="folklore is wrong",
    folklore="Multiplying each token's log-ratio by its own importance ratio corrects for stale samples.",
    kind="exact",
    source_rows=("m:I18",),
)
def stale_samples_need_prefix_ratios() -> str:
    """Two tokens of three values by enumeration; then one action for the gradient."""
    then = {"new": torch.stack([POLICY, OLD, REF]), "old": torch.stack([OLD, REF, POLICY])}
    ref_then = torch.stack([REF, POLICY, OLD])
    truth = kl(POLICY, REF) + POLICY.exp() @ kl(then["new"], ref_then)
    first, second = POLICY - REF, then["new"] - ref_then
    ratio, next_ratio = (POLICY - OLD).exp(), (then["new"] - then["old"]).exp()
    drawn = (OLD[:, None] + then["old"]).exp()
    means = {
        "prefix": (drawn * (ratio * first)[:, None]).sum()
        + (drawn * ratio[:, None] * next_ratio * second).sum(),
        "token": (drawn * (ratio * first)[:, None]).sum() + (drawn * next_ratio * second).sum(),
        "none": (drawn * (first[:, None] + second)).sum(),
    }
    agree(means["prefix"], truth, "prefix ratios")
    differ(means["token"], truth, "token ratios", 0.05)
    differ(means["none"], truth, "no ratio", 0.05)

    logits = POLICY.clone().requires_grad_(True)
    policy = logits.log_softmax(-1)
    weight = OLD.exp() * (policy.detach() - OLD).exp()
    grad = {
        "frozen": gradient((weight * policy * (OLD - REF)).sum(), logits),
        "fresh": gradient((weight * policy * (policy.detach() - REF)).sum(), logits),
        "kl": gradient(kl(policy, REF), logits),
        "to old": gradient(kl(policy, OLD), logits),
    }
    agree(grad["fresh"], grad["kl"], "log-ratio of the current policy")
    agree(grad["frozen"], grad["kl"] - grad["to old"], "log-ratio frozen at rollout")
    differ(grad["frozen"], grad["kl"], "the frozen gradient", 0.05)
    return (
        f"KL {num(truth)}; ratios of the prefix {num(means['prefix'])}, of the token {num(means['token'])}, "
        f"none {num(means['none'])}; the frozen gradient is off by up to "
        f"{num(grad['to old'].abs().max(), 3)}."
    )
