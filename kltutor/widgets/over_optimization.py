"""Proxy and gold over √KL: where the gold peaks, and what a KL budget keeps of the peak."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from kltutor.overoptimization import GoldCurve
from kltutor.selection import best_of_n_kl_bound
from kltutor.widgets.base import Choice, Flag, Number, Real, StateError, Widget

REACH = 8.0  # curves are drawn that many times as far as their peak ...
ROOTS = torch.linspace(0, 1, 161, dtype=torch.float64)  # ... and densest near the start, where they are steep
SHARES = torch.linspace(0, 2, 81, dtype=torch.float64)  # of the distance of the peak
SHAPES = {"best-of-n": GoldCurve("best-of-n", 2.0, 1.0), "rl": GoldCurve("rl", 1.0, 1.0)}  # peak 1 at d = 1
STEEPEST = 5.0  # alpha/beta of RL: its peak is at e^8 = 2981 nats
MOST_DRAWS = 10**8  # beyond, one more draw costs less than SLACK
SLACK = 1e-9  # nats; so that the budget of n draws, rounded, allows n draws


class Overoptimization(Widget):
    """Gao et al.'s two forms of the gold reward, a straight proxy, and a stop at a KL budget.

    Gains are over the initial policy, in reward units, at d = √KL(policy ‖ initial policy), KL in nats per
    sequence. The proxy gains slope·d, as a proxy that is Gaussian under the initial policy does along its RL
    optima. Set `form`, `alpha`, `beta`, `slope` and `budget`; read the numbers. What is kept is in percent
    of the gold at the peak. `alpha` may be at most 5·`beta` for RL, or the peak is out of sight.

    Example:
        >>> w = Overoptimization(alpha=1.0, beta=0.25, budget=2.0)
        >>> w.peak_kl, round(w.kept, 2), w.draws
        (4.0, 91.42, 19.0)
        >>> w.form = "rl"
        >>> w.budget = w.peak_kl / 2
        >>> round(w.peak_kl, 2), round(w.kept, 2)
        (403.43, 95.22)
    """

    form = Choice(
        "best-of-n", ("best-of-n", "rl"), help="gold is d·(alpha - beta·d), or d·(alpha - beta·log d)"
    )
    alpha = Real(0.9, 0.1, 3.0, help="alpha of the gold curve, reward units per √nat")
    beta = Real(0.3, 0.02, 1.0, help="beta of the gold curve: how fast it bends; not a penalty")
    slope = Real(0.9, 0.05, 3.0, help="slope of the proxy, reward units per √nat")
    budget = Real(1.125, 0.0, 25_000.0, help="KL at which the run stops, nats per sequence")
    axis = Choice("distance", ("distance", "kl"), help="what runs along the axis: d = √KL, or the KL")
    slip = Flag(False, help="whether the curve with d misread as the KL is drawn")

    peak_distance = Number("d where the gold is highest, √nats")
    peak_kl = Number("KL where the gold is highest, nats per sequence")
    peak_gold = Number("gain in gold there, reward units")
    zero_kl = Number("KL where the gold is back at its start, nats per sequence")
    stop_distance = Number("√budget, √nats")
    stop_gold = Number("gain in gold at the stop, reward units")
    stop_proxy = Number("gain in proxy at the stop, reward units")
    gap = Number("proxy less gold at the stop, reward units")
    kept = Number("gold at the stop, percent of that at the peak")
    kl_share = Number("budget, in KLs of the peak")
    distance_share = Number("d at the stop, in distances of the peak")
    draws = Number("largest n with log n - (n-1)/n within the budget; inf above a hundred million")
    peak_draws = Number("largest n with log n - (n-1)/n within peak_kl; inf above a hundred million")
    slip_kl = Number("KL where the peak would be if d were the KL, nats per sequence")
    slip_kept = Number("gold there in truth, percent of that at the peak")
    landmarks = Number(
        "d, KL, gold, proxy, gap and percent kept at: a quarter of peak_kl, half of it, it, slip_kl, budget"
    )
    curve_distance = Number("161 distances from 0 to 8 times that of the peak, √nats")
    curve_gold = Number("gain in gold at these distances")
    curve_proxy = Number("gain in proxy at these distances")
    curve_slip = Number("what the curve would be at these distances if d were the KL")
    share_distance = Number("81 distances from 0 to 2 times that of the peak, in distances of the peak")
    kept_best_of_n = Number("percent kept there in the form of best-of-n, whatever alpha and beta")
    kept_rl = Number("percent kept there in the form of RL, whatever alpha and beta")

    def check(self) -> None:
        """Raise StateError if the peak of RL is out of sight."""
        if self.form == "rl" and self.alpha > STEEPEST * self.beta * (1 + 1e-9):
            raise StateError(
                f"alpha is {self.alpha:g} and beta {self.beta:g}, so RL peaks at d = e^"
                f"{self.alpha / self.beta - 1:.3g}; alpha of at most {STEEPEST:g}·beta is expected."
            )

    @property
    def numbers(self) -> dict[str, Any]:
        """What follows from the state, by the package."""
        self.check()
        form: Literal["best-of-n", "rl"] = "rl" if self.form == "rl" else "best-of-n"
        curve = GoldCurve(form, self.alpha, self.beta)
        peak = curve.peak
        stop, slip_kl = math.sqrt(self.budget), peak.distance
        kls = [curve.kl_budget(0.25), curve.kl_budget(0.5), peak.kl, slip_kl, self.budget]
        at = torch.tensor(kls, dtype=torch.float64).sqrt()
        gold, proxy = curve.gold(at), self.slope * at
        kept = 100 * gold / peak.gold
        along = REACH * peak.distance * ROOTS.square()
        shape = {name: 100 * unit.gold(SHARES) / unit.peak.gold for name, unit in SHAPES.items()}
        found: dict[str, float | Tensor] = {
            "peak_distance": peak.distance,
            "peak_kl": peak.kl,
            "peak_gold": peak.gold,
            "zero_kl": peak.kl * (4 if form == "best-of-n" else math.e**2),
            "stop_distance": stop,
            "stop_gold": gold[-1],
            "stop_proxy": proxy[-1],
            "gap": proxy[-1] - gold[-1],
            "kept": kept[-1],
            "kl_share": self.budget / peak.kl,
            "distance_share": stop / peak.distance,
            "draws": _draws(self.budget),
            "peak_draws": _draws(peak.kl),
            "slip_kl": slip_kl,
            "slip_kept": kept[3],
            "landmarks": torch.stack([at, at.square(), gold, proxy, proxy - gold, kept], -1),
            "curve_distance": along,
            "curve_gold": curve.gold(along),
            "curve_proxy": self.slope * along,
            "curve_slip": curve.gold(along.square()),
            "share_distance": SHARES,
            "kept_best_of_n": shape["best-of-n"],
            "kept_rl": shape["rl"],
        }
        return {name: x.tolist() if isinstance(x, Tensor) else x for name, x in found.items()}


def _draws(budget: float) -> float:
    """Return the largest n whose KL of best-of-n is within the budget, to SLACK; inf above MOST_DRAWS."""
    n = math.floor(math.exp(min(budget, math.log(MOST_DRAWS)) + 1))  # never too few, as log n < budget + 1
    while best_of_n_kl_bound(n) > budget + SLACK:
        n -= 1
    return float(n) if n <= MOST_DRAWS else math.inf
