"""Numeric questions on divergences and estimators."""

import math

from kltutor.interview import numbers
from kltutor.interview.drill import Draw, Made, Trap, kind, row, tex


def _pair(draw: Draw, size: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    while True:
        p, q = draw.distribution(size), draw.distribution(size)
        if sum(abs(a - b) for a, b in zip(p, q, strict=True)) > 0.3:
            return p, q


@kind("kl", level=1, topic="basics", claims=("KL-102",), sections=("ch1-sec-definition",))
def _kl(draw: Draw) -> Made:
    p, q = _pair(draw)
    answer, other = numbers.kl(p, q), numbers.kl(q, p)
    terms = " + ".join(rf"{a:g} \log \frac{{{a:g}}}{{{b:g}}}" for a, b in zip(p, q, strict=True))
    return Made(
        prompt=(
            f"The policy is ${row(p)}$, the reference ${row(q)}$. What is $\\KL{{\\pol}}{{\\refp}}$, in nats?"
        ),
        inputs={"policy": p, "ref": q},
        answer=answer,
        unit="nats",
        solution=f"The mean is under the policy: ${terms} = {tex(answer)}$.",
        traps=(
            Trap(other, r"That is $\KL{\refp}{\pol}$, the mean under the reference."),
            Trap(answer / math.log(2), "That is in bits; with the natural logarithm it is in nats."),
        ),
    )


@kind(
    "forward-kl",
    level=1,
    topic="basics",
    claims=("KL-112", "KL-224"),
    sections=("ch1-sec-direction", "ch2-loss"),
)
def _forward(draw: Draw) -> Made:
    p, q = _pair(draw, 2)
    answer = numbers.kl(q, p)
    terms = " + ".join(rf"{b:g} \log \frac{{{b:g}}}{{{a:g}}}" for a, b in zip(p, q, strict=True))
    return Made(
        prompt=(
            f"The policy is ${row(p)}$, the reference ${row(q)}$. Which KL does $k_3$ as a loss descend on "
            f"samples of "
            "the policy, for one action, and how large is it, in nats?"
        ),
        inputs={"policy": p, "ref": q},
        answer=answer,
        unit="nats",
        solution=(
            f"Its mean gradient is that of $\\KL{{\\refp}}{{\\pol}}$, the mean under the reference: "
            f"${terms} = {tex(answer)}$."
        ),
        traps=(
            Trap(
                numbers.kl(p, q),
                r"That is $\KL{\pol}{\refp}$: the mean of $k_3$, but not what it descends as a loss.",
            ),
        ),
    )


@kind("k2-mean", level=2, topic="estimators", claims=("KL-205",), sections=("ch2-k2",))
def _k2_mean(draw: Draw) -> Made:
    mu = draw.step(0.6, 1.9, 0.1)
    answer = numbers.gauss("k2", "mean", mu)
    return Made(
        prompt=f"The policy is $N(0, 1)$, the reference $N({mu:g}, 1)$. What is the mean of $k_2$, in nats?",
        inputs={"mu": mu},
        answer=answer,
        unit="nats",
        solution=(
            r"$\delta$ is normal with mean $\mu^2/2$ and variance $\mu^2$, so "
            rf"$\E[\delta^2]/2 = \mu^2/2 + \mu^4/8 = {tex(answer)}$."
        ),
        traps=(
            Trap(mu**2 / 2, "That is the KL; $k_2$ is biased."),
            Trap(math.sqrt(numbers.gauss("k2", "variance", mu)), "That is the standard deviation of $k_2$."),
            Trap(numbers.gauss("k2", "mean", mu) - mu**2 / 2, "That is the bias alone."),
        ),
    )


@kind("variance-ratio", level=2, topic="estimators", claims=("KL-212", "KL-214"), sections=("ch2-k3",))
def _variance_ratio(draw: Draw) -> Made:
    mu = draw.step(0.3, 2.0, 0.1)
    first, third = (numbers.gauss(name, "variance", mu) for name in ("k1", "k3"))
    return Made(
        prompt=(
            f"The policy is $N(0, 1)$, the reference $N({mu:g}, 1)$. What is the variance of $k_3$ divided "
            "by that of $k_1$, for one draw of each?"
        ),
        inputs={"mu": mu},
        answer=third / first,
        unit="",
        solution=(
            rf"$\Var k_1 = \mu^2 = {tex(first)}$ and $\Var k_3 = e^{{\mu^2}} - 1 - \mu^2 = {tex(third)}$; "
            rf"the ratio is "
            rf"${tex(third / first)}$."
        ),
        traps=(
            Trap(first / third, "That is the ratio the other way up."),
            Trap(math.sqrt(third / first), "That is the ratio of standard deviations."),
        ),
    )


@kind(
    "k3-token", level=1, topic="estimators", claims=("KL-209", "KL-218"), sections=("ch2-k3", "ch2-inverted")
)
def _k3_token(draw: Draw) -> Made:
    logp = -draw.step(0.5, 4.0, 0.1)
    ref_logp = -draw.step(0.5, 4.0, 0.1)
    delta = round(logp - ref_logp, 10)
    answer = math.expm1(-delta) + delta
    return Made(
        prompt=(
            f"A token that the policy drew has log-probability ${logp:g}$ under the policy and "
            f"${ref_logp:g}$ under the "
            "reference. What is its $k_3$, in nats?"
        ),
        inputs={"logp": logp, "ref_logp": ref_logp},
        answer=answer,
        unit="nats",
        solution=(
            rf"$\log w = {ref_logp:g} - ({logp:g}) = {-delta:g}$, so $w = {tex(math.exp(-delta))}$ and "
            rf"$k_3 = w - 1 - \log w = {tex(answer)}$."
        ),
        traps=(
            Trap(math.expm1(delta) - delta, "The ratio is upside down: $w$ is reference over policy."),
            Trap(delta, "That is $k_1$."),
            Trap(delta**2 / 2, "That is $k_2$."),
        ),
    )


@kind("negative-share", level=1, topic="estimators", claims=("KL-201",), sections=("ch-estimators",))
def _negative_share(draw: Draw) -> Made:
    mu = draw.step(0.2, 2.4, 0.1)
    answer = 100 * numbers.normal_cdf(-mu / 2)
    return Made(
        prompt=(
            f"The policy is $N(0, 1)$, the reference $N({mu:g}, 1)$. What percentage of all samples of $k_1$ "
            f"is below "
            "zero?"
        ),
        inputs={"mu": mu},
        answer=answer,
        unit="per cent",
        solution=(
            rf"$k_1$ is normal with mean $\mu^2/2$ and standard deviation $\mu$, so the share is "
            rf"$\Phi(-\mu/2) = \Phi({tex(-mu / 2)})$, ${tex(answer)}$ per cent."
        ),
        traps=(
            Trap(100 - answer, "That is the share above zero."),
            Trap(
                100 * numbers.normal_cdf(-mu),
                r"The mean is $\mu^2/2$ and the deviation $\mu$: divide the two.",
            ),
        ),
    )


@kind("top-k", level=2, topic="estimators", claims=("KL-210", "KL-223"), sections=("ch2-k3", "ch2-clinic"))
def _top_k(draw: Draw) -> Made:
    while True:
        policy, ref = tuple(sorted(draw.distribution(3), reverse=True)), draw.distribution(3)
        kept = policy[0] + policy[1]
        cut = (policy[0] / kept, policy[1] / kept, 0.0)
        if policy[1] > policy[2] and abs(numbers.kl(cut, ref) - ref[2]) > 0.05:
            break
    answer, full = numbers.mean("k3", cut, ref), numbers.kl(cut, ref)
    return Made(
        prompt=(
            f"Tokens are drawn by top-2 from the policy ${row(policy)}$ and scored with the truncated, "
            f"renormalised "
            f"policy against the reference ${row(ref)}$. What is the mean of $k_3$, in nats?"
        ),
        inputs={"policy": policy, "ref": ref},
        answer=answer,
        unit="nats",
        solution=(
            f"The KL of the truncated policy is ${tex(full)}$. The ratio $w$ has mean ${tex(1 - ref[2])}$ "
            f"instead of 1, "
            f"because ${ref[2]:g}$ of the reference is never drawn: ${tex(full)} - {ref[2]:g} = "
            f"{tex(answer)}$."
        ),
        traps=(
            Trap(full, "That is the KL; with missing support $k_3$ reads low."),
            Trap(
                numbers.kl(policy, ref), "That is the KL of the whole policy, which is not what is sampled."
            ),
        ),
    )
