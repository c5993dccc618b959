"""Claims of section 2.5 on estimators as losses: the mean gradient with the samples held fixed."""

import torch

from kltutor.claims import claim
from kltutor.claims.witnesses import (
    KL,
    OLD,
    POLICY,
    REF,
    REVERSED_KL,
    agree,
    differ,
    ensure,
    gradient,
    num,
    vector,
)
from kltutor.divergences import kl
from kltutor.estimators import k1, k2, k3


@claim(
    "KL-224",
    section="2.5",
    says="As a loss on one action drawn from the policy, k1 has mean gradient zero, k2 has that of "
    f"{KL}, and k3 exactly that of {REVERSED_KL}.",
    verdict="folklore is wrong",
    folklore="k3 as a loss gives the gradient of the KL it estimates, up to a small error.",
    kind="exact",
    sources=("tang2025pitfalls", "liu2025rethinking", "wang2025klblog"),
    source_rows=("m:I01", "f:W14", "m:C07", "m:C08"),
)
def gradients_of_the_three_losses() -> str:
    """Automatic gradients in free logits, on-policy, stale, as a reward, and where k3 comes to rest."""
    logits = POLICY.clone().requires_grad_(True)
    policy = logits.log_softmax(-1)
    held, stale = policy.detach().exp(), OLD.exp()
    ratio = (policy - OLD).exp()
    reverse, forward = gradient(kl(policy, REF), logits), gradient(kl(REF, policy), logits)
    on = {f.__name__: gradient(held @ f(policy, REF), logits) for f in (k1, k2, k3)}
    agree(on["k1"], torch.zeros(3), "k1 as a loss")
    agree(on["k2"], reverse, "k2 as a loss")
    agree(on["k3"], forward, "k3 as a loss")
    differ(on["k3"], reverse, "k3 as a loss and the reverse gradient", 0.1)

    frozen = ratio.detach()
    agree(
        gradient(stale @ k1(policy, REF), logits),
        -gradient(kl(OLD, policy), logits),
        "stale k1 pushes away",
    )
    agree(gradient(stale @ (frozen * k2(policy, REF)), logits), reverse, "k2 times a frozen ratio")
    agree(gradient(stale @ (frozen * k3(policy, REF)), logits), forward, "k3 times a frozen ratio")
    agree(gradient(stale @ (ratio * k3(policy, REF)), logits), reverse, "k3 times a live ratio")
    mean_k2 = gradient(policy.exp() @ k2(policy, REF), logits)
    agree(gradient(stale @ (ratio * k2(policy, REF)), logits), mean_k2, "k2 times a live ratio")
    differ(mean_k2, reverse, "the gradient of E[k2]", 0.1)
    as_reward = gradient((held * k3(policy, REF).detach()) @ policy, logits)
    agree(as_reward, reverse - forward, "k3 in the reward")
    _where_k3_rests()
    cosine = torch.nn.functional.cosine_similarity(on["k3"], reverse, 0)
    return (
        f"k1 {vector(on['k1'])}, k2 {vector(on['k2'])} = reverse, k3 {vector(on['k3'])} = forward; "
        f"cosine of the last two {num(cosine, 3)}."
    )


@claim(
    "KL-225",
    section="2.4",
    says=r"With $\Delta = \log(\pi_{\mathrm{ref}}/\pi)$ the gradient of k3 in $\log \pi$ is "
    r"$1 - e^{\Delta} = -\Delta - \Delta^2/2 - \dots$; with $\delta = -\Delta$ it is "
    r"$1 - e^{-\delta} = \delta - \delta^2/2 + \dots$.",
    verdict="folklore is wrong",
    folklore=r"With $\Delta = \log(\pi_{\mathrm{ref}}/\pi)$ the gradient of k3 in $\log \pi$ is $1 - "
    r"e^{-\Delta}$.",
    kind="exact",
    source_rows=("m:W09", "m:I15", "m:H16", "f:W13"),
)
def sign_of_the_k3gradient() -> str:
    """Automatic gradients over five log-ratios, and the third-order remainder of the expansion."""
    logp_here = torch.full((5,), -3.0, dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0], dtype=torch.float64)  # log policy/ref
    (slope,) = torch.autograd.grad(k3(logp_here, logp_here.detach() - delta).sum(), logp_here)
    agree(slope, 1 - (-delta).exp(), "1 - e^Δ with Δ = log(ref/policy)")
    differ(slope, 1 - delta.exp(), "1 - e^-Δ with Δ = log(ref/policy)", 1)
    small = torch.tensor([0.002, 0.001], dtype=torch.float64)
    rest = (1 - (-small).exp()) - (small - small**2 / 2)
    agree(rest[0] / rest[1], 8, "ratio of remainders, third order", 0.02)
    return (
        f"policy/ref = e: gradient {num(slope[-1])} (folklore {num(1 - delta[-1].exp())}); policy/ref = 1/e: "
        f"{num(slope[0])} (folklore {num(1 - delta[0].exp())})."
    )


def _where_k3_rests() -> None:
    """E[reward] less beta times k3 as a loss rests at beta·ref/(λ - reward), not at ref·e^(reward/beta)/Z."""
    reward, beta = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.5
    low, high = 1.0 + 1e-9, 10.0
    for _ in range(200):  # λ above the largest reward, such that the probabilities sum to one
        middle = (low + high) / 2
        low, high = (middle, high) if (beta * REF.exp() / (middle - reward)).sum() > 1 else (low, middle)
    rest = (beta * REF.exp() / (low - reward)).log()
    for policy, still in ((rest, True), ((REF + reward / beta).log_softmax(-1), False)):
        logits = policy.clone().requires_grad_(True)
        live = logits.log_softmax(-1)
        field = gradient(live.exp() @ reward - beta * (policy.exp() @ k3(live, REF)), logits)
        ensure(bool(field.abs().max() < 1e-9) is still, f"the field at {policy.exp()} is {field}")
