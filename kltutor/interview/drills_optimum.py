"""Numeric questions on the optimum, its price in nats, and over-optimisation."""

import math

from kltutor.interview import numbers
from kltutor.interview.drill import Draw, Made, Trap, kind, row, tex


def _arms(draw: Draw) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    ref = draw.distribution(3, floor=2)
    rewards = (0.0, draw.step(0.2, 0.8, 0.2), draw.step(1.0, 2.0, 0.5))
    return ref, rewards, draw.choice((0.25, 0.4, 0.5, 0.8, 1.0, 1.25, 2.0))


OBJECTIVE = r"$\E[r] - \beta \KL{\pol}{\refp}$"


def _case(ref: tuple[float, ...], rewards: tuple[float, ...], beta: float) -> str:
    return f"Three answers, reference ${row(ref)}$, rewards ${row(rewards)}$, $\\beta = {beta:g}$."


@kind("best-answer", level=1, topic="theory", claims=("KL-601",), sections=("ch-theory", "ch6-sweep"))
def _best_answer(draw: Draw) -> Made:
    ref, rewards, beta = _arms(draw)
    answer = numbers.tilt(ref, rewards, beta)[2]
    z = math.exp(numbers.log_z(ref, rewards, beta))
    return Made(
        prompt=(
            _case(ref, rewards, beta)
            + f" What probability does the last answer have at the optimum of {OBJECTIVE}?"
        ),
        inputs={"ref": ref, "rewards": rewards, "beta": beta},
        answer=answer,
        unit="",
        solution=(
            rf"$Z = \sum \refp\, e^{{r/\beta}} = {tex(z)}$, and "
            rf"$\pi^* = {ref[2]:g}\, e^{{{rewards[2]:g}/{beta:g}}}/Z = {tex(answer)}$."
        ),
        traps=(
            Trap(
                numbers.tilt(ref, [beta * beta * r for r in rewards], beta)[2],
                r"Divide the reward by $\beta$.",
            ),
            Trap(
                numbers.tilt([1 / 3] * 3, rewards, beta)[2],
                "The reference is missing: that is a plain softmax.",
            ),
            Trap(numbers.rational(ref, rewards, beta)[2], "That is where $k_3$ as a loss rests."),
        ),
    )


@kind("value", level=2, topic="theory", claims=("KL-602",), sections=("ch-theory", "ch6-calculus"))
def _value(draw: Draw) -> Made:
    ref, rewards, beta = _arms(draw)
    log_z = numbers.log_z(ref, rewards, beta)
    policy = numbers.tilt(ref, rewards, beta)
    answer = beta * log_z
    return Made(
        prompt=(_case(ref, rewards, beta) + f" How large is the maximum of {OBJECTIVE}?"),
        inputs={"ref": ref, "rewards": rewards, "beta": beta},
        answer=answer,
        unit="units of reward",
        solution=rf"It is $\beta \log Z = {beta:g} \cdot {tex(log_z)} = {tex(answer)}$.",
        traps=(
            Trap(
                numbers.dot(policy, rewards),
                "That is the mean reward of the optimum, without the price of its KL.",
            ),
            Trap(log_z, r"That is $\log Z$; the value is $\beta$ times that."),
        ),
    )


@kind("kl-spent", level=2, topic="beta", claims=("KL-601", "KL-609"), sections=("ch-beta", "ch6-sweep"))
def _kl_spent(draw: Draw) -> Made:
    ref, rewards, beta = _arms(draw)
    policy = numbers.tilt(ref, rewards, beta)
    answer = numbers.kl(policy, ref)
    mean = numbers.dot(ref, rewards)
    variance = numbers.dot(ref, [(r - mean) ** 2 for r in rewards])
    gain, log_z = numbers.dot(policy, rewards), numbers.log_z(ref, rewards, beta)
    return Made(
        prompt=(
            _case(ref, rewards, beta)
            + rf" Let $\pi^*$ be the optimum of {OBJECTIVE}. What is $\KL{{\pi^*}}{{\refp}}$, in nats?"
        ),
        inputs={"ref": ref, "rewards": rewards, "beta": beta},
        answer=answer,
        unit="nats",
        solution=(
            rf"$\KL{{\pi^*}}{{\refp}} = \E^*[r]/\beta - \log Z = {tex(gain / beta)} - {tex(log_z)} = "
            rf"{tex(answer)}$."
        ),
        traps=(
            Trap(variance / (2 * beta**2), "That is the rule for small tilts, which is off here."),
            Trap(numbers.kl(ref, policy), r"That is $\KL{\refp}{\pi^*}$."),
        ),
    )


@kind(
    "beta-for-reward",
    level=3,
    topic="beta",
    claims=("KL-601", "KL-608"),
    sections=("ch-beta", "ch6-frontier"),
)
def _beta_for_reward(draw: Draw) -> Made:
    start = draw.step(0.05, 0.5, 0.05)
    goal = draw.step(start + 0.1, 0.95, 0.05)
    answer = 1 / (numbers.logit(goal) - numbers.logit(start))
    return Made(
        prompt=(
            f"The reference solves a task with probability ${start:g}$; reward is 1 if solved, else 0. At "
            f"which $\\beta$ "
            f"does the optimum of reward less $\\beta \\KL{{\\pol}}{{\\refp}}$ solve it with probability "
            f"${goal:g}$?"
        ),
        inputs={"start": start, "goal": goal},
        answer=answer,
        unit="units of reward per nat",
        solution=(
            r"The tilt adds $1/\beta$ to the logit, so $1/\beta = \operatorname{logit} "
            rf"{goal:g} - \operatorname{{logit}} {start:g} = {tex(1 / answer)}$ and $\beta = {tex(answer)}$."
        ),
        traps=(
            Trap(1 / answer, r"That is $1/\beta$."),
            Trap(
                1 / (math.log(goal) - math.log(start)),
                "Normalise: both answers change, so the logit moves, not the logarithm.",
            ),
        ),
    )


@kind("k3-rest", level=3, topic="placement", claims=("KL-321",), sections=("ch3-rest",))
def _k3_rest(draw: Draw) -> Made:
    start, beta = draw.step(0.1, 0.6, 0.1), draw.choice((0.1, 0.2, 0.25, 0.4, 0.5))
    ref, rewards = (round(1 - start, 10), start), (0.0, 1.0)
    answer = numbers.rational(ref, rewards, beta)[0]
    level = beta * ref[0] / answer
    return Made(
        prompt=(
            f"Two answers, reference ${row(ref)}$, rewards ${row(rewards)}$. One trains on the reward with "
            f"${beta:g}\\, k_3$ in the loss, on policy. What probability does the worse answer have at rest?"
        ),
        inputs={"ref": ref, "beta": beta},
        answer=answer,
        unit="",
        solution=(
            rf"At rest $\pol = \beta \refp/(\lambda - r)$, with $\lambda$ such that both sum to one: "
            rf"$\lambda = {tex(level)}$, so it keeps ${beta:g} \cdot {ref[0]:g}/{tex(level)} = "
            rf"{tex(answer)}$."
        ),
        traps=(
            Trap(
                numbers.tilt(ref, rewards, beta)[0],
                "That is the exponential tilt, the optimum of the other KL.",
            ),
        ),
    )


@kind("gaussian-price", level=1, topic="beta", claims=("KL-401",), sections=("ch-beta",))
def _gaussian_price(draw: Draw) -> Made:
    sd, budget = draw.step(0.5, 5, 0.5), draw.choice((0.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0))
    answer = sd / math.sqrt(2 * budget)
    return Made(
        prompt=(
            f"Under the reference the reward is normal with standard deviation ${sd:g}$. At which $\\beta$ "
            f"does the optimum of {OBJECTIVE} have a KL of ${budget:g}$ nats from the reference?"
        ),
        inputs={"sd": sd, "budget": budget},
        answer=answer,
        unit="units of reward per nat",
        solution=(
            rf"$\mathrm{{KL}} = \sigma^2/(2\beta^2)$, so $\beta = \sigma/\sqrt{{2\,\mathrm{{KL}}}} = "
            rf"{tex(answer)}$."
        ),
        traps=(
            Trap(sd**2 / (2 * budget), r"That is $\beta^2$: take the root."),
            Trap(sd / math.sqrt(budget), r"The factor 2 is missing: $\mathrm{KL} = \sigma^2/(2\beta^2)$."),
        ),
    )


@kind("best-of-n", level=2, topic="over-optimisation", claims=("KL-618",), sections=("ch6-overoptimisation",))
def _best_of_n(draw: Draw) -> Made:
    n = draw.choice((2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32, 64, 100))
    answer = numbers.best_of_n_bound(n)
    return Made(
        prompt=(
            f"The reward is continuous. What is $\\KL{{\\pi_n}}{{\\refp}}$, in nats, for the policy $\\pi_n$ "
            f"of best-of-{n}?"
        ),
        inputs={"n": n},
        answer=answer,
        unit="nats",
        solution=rf"$\log n - (n - 1)/n = {tex(math.log(n))} - {tex((n - 1) / n)} = {tex(answer)}$.",
        traps=(Trap(math.log(n), r"$\log n$ is an upper bound; subtract $(n - 1)/n$."),),
    )


@kind(
    "best-of-n-ties",
    level=3,
    topic="over-optimisation",
    claims=("KL-618",),
    sections=("ch6-overoptimisation",),
)
def _best_of_n_ties(draw: Draw) -> Made:
    start, n = draw.step(0.05, 0.6, 0.05), draw.choice((2, 3, 4, 5, 8))
    answer = numbers.best_of_n_kl([1 - start, start], [0, 1], n)
    solved = 1 - (1 - start) ** n
    return Made(
        prompt=(
            f"An answer of the reference is right with probability ${start:g}$, and right or wrong is all "
            f"the reward. "
            f"Best-of-{n} keeps a right one if there is one. What is $\\KL{{\\pi_n}}{{\\refp}}$ of that "
            "policy $\\pi_n$, counting only right and wrong, in nats?"
        ),
        inputs={"start": start, "n": n},
        answer=answer,
        unit="nats",
        solution=(
            rf"It is right with probability $1 - (1 - {start:g})^{{{n}}} = {tex(solved)}$. The KL of that "
            rf"coin from "
            rf"the coin ${start:g}$ is ${tex(answer)}$, below $\log n - (n - 1)/n = "
            rf"{tex(numbers.best_of_n_bound(n))}$."
        ),
        traps=(
            Trap(numbers.best_of_n_bound(n), "That holds for a reward without ties; here it is a bound."),
        ),
    )


@kind("half-budget", level=3, topic="over-optimisation", claims=("KL-615",), sections=("ch6-stop",))
def _half_budget(draw: Draw) -> Made:
    alpha, beta = draw.step(0.6, 2.0, 0.2), draw.choice((0.1, 0.2, 0.25, 0.4))
    peak = numbers.peak("best-of-n", alpha, beta, "distance")
    answer = peak / math.sqrt(2)
    return Made(
        prompt=(
            f"Gold reward follows $d({alpha:g} - {beta:g}\\, d)$ with $d = \\sqrt{{\\mathrm{{KL}}}}$. At "
            f"which $d$ is half "
            "of the KL of the peak spent?"
        ),
        inputs={"alpha": alpha, "beta": beta},
        answer=answer,
        unit="root nats",
        solution=(
            rf"$d_{{\mathrm{{peak}}}} = \alpha/(2\beta) = {tex(peak)}$. Half of its square is the square of "
            rf"$d_{{\mathrm{{peak}}}}/\sqrt{{2}} = {tex(answer)}$."
        ),
        traps=(
            Trap(peak / 2, "That is a quarter of the KL: the KL is the square of $d$."),
            Trap(peak**2 / 2, "That is the KL, not its root."),
            Trap(peak, "That is the peak itself."),
        ),
    )
