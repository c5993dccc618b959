"""Claims of section 6.4 on over-optimisation at work: the path, a learnt proxy, fits, a monitor, and DPO."""

import copy

import torch
from jaxtyping import Float
from scipy.stats import binom
from torch import Tensor

from kltutor import exact
from kltutor.claims import claim
from kltutor.claims.best_of_n import optimum_at
from kltutor.claims.lab import THREE, listed, triple
from kltutor.claims.witnesses import REF, agree, differ, ensure, num
from kltutor.divergences import kl
from kltutor.optimum import optimal_policy
from kltutor.overoptimization import Form, GoldCurve, OveroptimizationMonitor, fit_gold
from kltutor.pairs import sample_pairs
from kltutor.preference import dpo_loss
from kltutor.proxy import features, fit_proxy
from kltutor.selection import best_of_n
from kltutor.tasks import TabularPolicy, bandit, small

PAIRS, SEEDS = 100, 20
BETAS = torch.logspace(1, -2.5, 15, dtype=torch.float64).tolist()
DRAWS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)


@claim(
    "KL-621",
    section="6.4",
    says=r"Natural-gradient ascent on $\mathrm{E}[r]$ alone, from the reference, passes through the optima "
    r"$\pi^*_\beta$ with $1/\beta$ the time, for one action at any step size and for completions in the "
    "limit of small steps: the penalty and early stopping trace one frontier; plain ascent leaves it.",
    verdict="holds",
    kind="exact",
    sources=("gao2023",),
    source_rows=("f:W05",),
)
def early_stopping_is_a_penalty() -> str:
    """Three arms at three step sizes; completions with the step halved twice; plain steps."""
    arms = bandit((0.0, 2.0, 1.0))
    start = TabularPolicy(arms, REF[None, None])
    for steps, size in ((1, 1.5), (3, 0.5), (30, 0.05)):
        end = exact.ascend(start, lambda p: _mean_reward(p), arms, steps=steps, step_size=size)
        best = optimal_policy(REF, arms.reward[0], 1 / 1.5)[0]
        agree(kl(exact.seq_logp(end, arms)[0], best), 0, f"one action, {steps} steps", 1e-13)
    differ(best.exp(), optimal_policy(REF, arms.reward[0], 1.5)[0].exp(), "beta and 1/beta", 0.1)

    _, ref, _ = triple(THREE)
    ref_logp, time = exact.seq_logp(ref, THREE).detach()[0], 2.0
    best = optimal_policy(ref_logp, THREE.reward[0], 1 / time)[0]
    misses = []
    for steps in (10, 20, 40):
        end = exact.ascend(ref, _mean_reward, THREE, steps=steps, step_size=time / steps)
        misses.append(kl(exact.seq_logp(end, THREE)[0], best).item())
    falls = torch.tensor(misses[:-1], dtype=torch.float64) / torch.tensor(misses[1:], dtype=torch.float64)
    agree(falls, torch.full((2,), 4.0, dtype=torch.float64), "the miss over that with half the step", 0.15)
    agree(misses[-1], 0, "the miss with 40 steps", 1e-5)

    plain = exact.ascend(ref, _mean_reward, THREE, steps=60, step_size=0.2, natural=False)
    logp = exact.seq_logp(plain, THREE).detach()[0]
    beta, there = optimum_at(kl(logp, ref_logp).item(), ref_logp, THREE.reward[0])
    less = (there.exp() - logp.exp()) @ THREE.reward[0]
    agree(less, beta * kl(logp, there), "what plain ascent loses", 1e-9)
    differ(less, 0, "the reward that plain ascent loses", 0.02)
    return (
        f"One action: exact at 1, 3 and 30 steps. {THREE.size} completions: KL to the optimum "
        f"{listed(misses, 2)} at 10, 20, 40 steps. Plain ascent at {num(kl(logp, ref_logp), 3)} nats has "
        f"{num(less, 2)} less reward than the optimum there."
    )


@claim(
    "KL-622",
    section="6.4",
    says="Over-optimisation is produced on the lab: a linear proxy fitted to 100 pairs that the gold reward "
    r"labelled is optimised by best-of-n and by $\pi^*_\beta$; the proxy reward rises all along, and "
    "the gold reward rises and then falls, by more than 0.05 each, in 20 of 20 seeds with either "
    "method.",
    verdict="holds",
    kind="sampled",
)
def overoptimisation_on_the_lab() -> str:
    """For each seed a reference, pairs, a proxy; both paths; and the same with gold itself as the proxy."""
    task = small()
    asked = torch.tensor(task.prompt_probs, dtype=torch.float64)
    falls, peaks, lost = {"best-of-n": 0, "optima": 0}, [], []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        ref = exact.seq_logp(TabularPolicy.random(task, generator), task).detach()
        proxy = fit_proxy(task, sample_pairs(task, ref, PAIRS, generator))
        for learnt, reward in ((True, proxy), (False, task.reward)):
            paths = {
                "best-of-n": [best_of_n(ref, reward, n) for n in DRAWS],
                "optima": [optimal_policy(ref, reward, beta)[0] for beta in BETAS],
            }
            for name, path in paths.items():
                seen, gold = (
                    torch.stack([asked @ (p.exp() * r).sum(-1) for p in path]) for r in (reward, task.reward)
                )
                ensure((seen.diff() > -1e-12).all(), f"what {name} optimises falls")
                top = int(gold.argmax())
                fell = bool(gold[top] > gold[0] + 0.05 and gold[-1] < gold[top] - 0.05)
                ensure(learnt or not fell, "gold falls although it is what is optimised")
                falls[name] += fell
                if learnt and name == "optima":
                    peaks.append((asked @ kl(path[top], ref)).item())
                    lost.append((gold[top] - gold[-1]).item())
    ensure(list(falls.values()) == [SEEDS, SEEDS], f"gold falls in {falls} of {SEEDS}")
    ensure(binom.sf(SEEDS - 1, SEEDS, 0.86) < 0.05, "the stated confidence")
    middle = sorted(peaks)[SEEDS // 2], sorted(lost)[SEEDS // 2]
    return (
        f"Gold falls in {falls['best-of-n']} of {SEEDS} with best-of-n to n = {DRAWS[-1]}, in "
        f"{falls['optima']} with the optima; there it peaks at {num(middle[0], 2)} nats and then loses "
        f"{num(middle[1], 2)} in the median seed. With gold as the proxy: in 0. 20 of 20 "
        "means at least 86 % of all seeds, with 95 % confidence."
    )


@claim(
    "KL-623",
    section="6.4",
    says="The 95 % intervals of the fit, Student's t with two coefficients taken off, cover each planted "
    "coefficient of either form in 93.5 to 96.5 % of 2000 runs of 6 checkpoints; 1.96 standard errors "
    "cover less than 90 %, and errors that carry over from checkpoint to checkpoint break the rate.",
    verdict="holds if",
    condition="the errors are independent and normal with one variance; by chance some of the four rates "
    "would leave 93.5 to 96.5 % in under 1 % of repetitions.",
    kind="sampled",
)
def intervals_cover() -> str:
    """2000 runs of each form; the same with the normal quantile; then with noise of autocorrelation .9."""
    seed, runs = torch.Generator().manual_seed(0), 2000
    d = torch.linspace(0.5, 4, 6, dtype=torch.float64)
    ensure(4 * (binom.cdf(1869, runs, 0.95) + binom.sf(1930, runs, 0.95)) < 0.01, "the stated chance")
    rates, normal = [], []
    forms: tuple[Form, Form] = ("best-of-n", "rl")
    for form in forms:
        truth = GoldCurve(form, 1.0, 0.25)
        noise = 0.2 * torch.randn(runs, len(d), generator=seed, dtype=torch.float64)
        covered, narrow = _coverage(truth, d, noise)
        rates += [covered["alpha"], covered["beta"]]
        normal += [narrow["alpha"], narrow["beta"]]
    ensure(all(0.935 <= rate <= 0.965 for rate in rates), f"the intervals cover in {rates}")
    ensure(max(normal) < 0.9, f"1.96 standard errors cover in {normal}")
    carried = [noise[:500, 0]]
    for fresh in noise[:500, 1:].T:
        carried.append(0.9 * carried[-1] + (1 - 0.9**2) ** 0.5 * fresh)
    broken = _coverage(truth, d, torch.stack(carried, 1))[0]
    ensure(broken["alpha"] < 0.85, f"with errors that carry over the interval of alpha covers in {broken}")
    return (
        f"Cover α, β of best-of-n and of RL: {listed([100 * r for r in rates])} %; 1.96 standard errors: "
        f"{listed([100 * r for r in normal])} %; with autocorrelation .9: α of RL in "
        f"{100 * broken['alpha']:.0f} % of 500."
    )


@claim(
    "KL-624",
    section="6.4",
    says="A monitor that compares windows by ranks fires in at most the stated share of runs without a "
    "trend, whatever the law of the noise, and never on a flat history; a rise and fall of five times "
    "the noise it catches in most runs; noise that carries over breaks the rate; a detector that waits "
    "for gold not to rise while KL does not fall fires on a flat history and misses noisy falls.",
    verdict="holds if",
    condition="the noise is exchangeable; the rate of 5 % holds with 99.9 % confidence by calibration, and a "
    "rate above 7.5 % in 600 runs would come by chance in under 1 % of repetitions.",
    kind="sampled",
    source_rows=("m:W17",),
)
def monitor_with_a_stated_rate() -> str:
    """Heavy noise, flat runs, a rise and fall, falling KL, autocorrelated noise; then the naive rule."""
    length, runs, seed = 20, 600, torch.Generator().manual_seed(1)
    monitor = OveroptimizationMonitor(length, window=6, generator=torch.Generator().manual_seed(0))
    ensure(binom.sf(45, runs, 0.05) < 0.01, "the stated chance")
    heavy = -(torch.rand(runs, length, generator=seed, dtype=torch.float64).log() ** 3)  # cubed exponentials
    normal = torch.randn(runs, length, generator=seed, dtype=torch.float64)
    alarms = _share(monitor, heavy)
    ensure(0 < alarms <= 0.075, f"false alarms in {alarms} of the runs")
    ensure(_share(monitor, torch.zeros(1, length, dtype=torch.float64)) == 0, "a flat history fires")
    trend = torch.linspace(0, 1, length, dtype=torch.float64)
    hill = torch.minimum(2 * trend, 2 - 2 * trend)
    power = [_share(monitor, hill + sd * normal[:200]) for sd in (0.1, 0.2)]
    ensure(power[0] > 0.9 and power[1] > 0.5, f"the power is {power}")
    ensure(_share(monitor, hill + 0.1 * normal[:100], rising=False) == 0, "it fires while the KL falls")
    late = torch.cat([trend[:9] - 2, -trend[:11]])  # a fall of 11 checkpoints: no two windows of 6 lie in it
    ensure(_share(monitor, late[None]) == 0, "windows that overlap are compared")
    carried = [normal[:, 0]]
    for fresh in normal[:, 1:].T:
        carried.append(0.8 * carried[-1] + 0.6 * fresh)
    broken = _share(monitor, torch.stack(carried, 1)[:300])
    ensure(broken > 0.2, f"with autocorrelation .8 it fires in {broken} only")

    many = torch.randn(20_000, length, generator=seed, dtype=torch.float64)
    ensure(bool(_naive(torch.zeros(1, length, dtype=torch.float64)).all()), "the naive rule is silent")
    by_window, missed = _naive(many).double().mean(), 1 - _naive(0.1 * many - trend).any(-1).double().mean()
    agree(by_window, 1 / 120, "false alarms of the naive rule by window", 2e-3)
    agree(missed, 0.41, "falls that the naive rule misses", 0.02)
    caught = _share(monitor, 0.1 * normal[:100] - trend)
    ensure(caught > 0.97, f"the monitor catches {caught} of those falls")
    return (
        f"False alarms {100 * alarms:.1f} % (cubed exponential noise), {100 * broken:.0f} % at "
        f"autocorrelation .8; rise and fall by 1 with noise .1 and .2: {listed([100 * p for p in power], 2)} "
        f"% caught. Five in a row: fires at 1 of 120 windows, misses {100 * missed:.0f} % of falls from 1 to "
        f"0 with noise .1, the monitor {100 * (1 - caught):.0f} %."
    )


@claim(
    "KL-625",
    section="6.4",
    says="That DPO and its kin over-optimise too was shown by Rafailov et al. (2024), not by Gao et al., who "
    "study best-of-n and RL; a direct method has an implicit proxy: in a class of tilts linear in features, "
    r"DPO's minimum at any $\beta$ is the optimum of the reward model that Bradley-Terry fits in those "
    "features.",
    verdict="folklore is wrong",
    folklore="The curves of Gao et al. include DPO, and DPO has no reward model to over-optimise.",
    kind="cited",
    sources=("rafailov2024daa", "gao2023"),
    source_rows=("f:I22",),
)
def dpo_has_an_implicit_proxy() -> str:
    """The slope of DPO's loss at the optimum of the fitted proxy, at three beta; gold along them."""
    task, generator = small(), torch.Generator().manual_seed(2)
    asked = torch.tensor(task.prompt_probs, dtype=torch.float64)
    ref = exact.seq_logp(TabularPolicy.random(task, generator), task).detach()
    pairs, seen = sample_pairs(task, ref, 1000, generator), features(task)
    chosen, rejected = (pairs.prompt, pairs.chosen), (pairs.prompt, pairs.rejected)
    proxy = fit_proxy(task, pairs, ridge=1e-9)
    golds = []
    for beta in (10.0, 1.0, 0.05):

        def slope(reward: Tensor, beta: float = beta) -> Tensor:
            extra = torch.zeros(seen.shape[-1], dtype=torch.float64, requires_grad=True)
            logp = (ref + (reward + seen @ extra) / beta).log_softmax(-1)
            loss = dpo_loss(logp[chosen], logp[rejected], ref[chosen], ref[rejected], beta).mean()
            return torch.autograd.grad(loss, extra)[0]

        agree(slope(proxy), torch.zeros(seen.shape[-1], dtype=torch.float64), "DPO's slope", 1e-9)
        differ(slope(1.5 * proxy), slope(proxy), "the slope at another tilt", 0.005)
        golds.append(asked @ (optimal_policy(ref, proxy, beta)[0].exp() * task.reward).sum(-1))
    ensure(golds[1] > golds[0] + 0.05 and golds[2] < golds[1] - 0.05, f"gold along beta is {golds}")
    return (
        f"Rafailov et al. (2024) study DPO, IPO and SLiC. On the lab DPO's "
        f"slope at the proxy's optimum is 0 for each β; its gold is {listed(golds)} at β = 10, 1, .05."
    )


def _mean_reward(policy: torch.nn.Module) -> Tensor:
    assert isinstance(policy, TabularPolicy)
    return exact.expectation(policy.task.reward, exact.seq_logp(policy, policy.task), policy.task)


def _coverage(
    truth: GoldCurve, d: Float[Tensor, " point"], noise: Float[Tensor, "run point"]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return in what share of runs the interval covers alpha and beta, and 1.96 standard errors do."""
    planted = {"alpha": truth.alpha, "beta": truth.beta}
    covered, narrow = dict.fromkeys(planted, 0), dict.fromkeys(planted, 0)
    for one in truth.gold(d) + noise:
        fitted = fit_gold(d, one, truth.form)
        for i, (name, (low, high)) in enumerate(fitted.interval().items()):
            off = abs((low + high) / 2 - planted[name])
            covered[name] += low <= planted[name] <= high
            narrow[name] += off <= 1.96 * fitted.covariance[i][i] ** 0.5
    count = len(noise)
    return {n: c / count for n, c in covered.items()}, {n: c / count for n, c in narrow.items()}


def _share(
    monitor: OveroptimizationMonitor, gold: Float[Tensor, "run checkpoint"], rising: bool = True
) -> float:
    """Return in what share of runs a fresh copy of the monitor fires."""
    fired = 0
    for run in gold.tolist():
        fresh = copy.deepcopy(monitor)
        fired += any([fresh.update(i if rising else -i, value) for i, value in enumerate(run)])
    return fired / len(gold)


def _naive(gold: Float[Tensor, "run checkpoint"]) -> Tensor:
    """Return for each window of five whether gold never rises in it, while the KL does."""
    return (gold.unfold(1, 5, 1).diff(dim=-1) <= 0).all(-1)
