"""How the true reward rises and falls with the KL: the two published forms, their fits, and a monitor.

The axis is d = √KL(policy ‖ initial policy), KL in nats per sequence. Gao et al. fit the gold reward, less
that of the initial policy, by d·(alpha - beta·d) for best-of-n and by d·(alpha - beta·log d) for RL. This
beta is a coefficient of a curve, not of a penalty.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kltutor.checks import check_finite, check_number, first

Form = Literal["best-of-n", "rl"]

CALIBRATION = 4000  # simulated runs
RUNS_AT_ONCE = 200
SURE = 0.999  # confidence that the calibrated false-alarm rate is at most the stated one


class Peak(NamedTuple):
    """Where a fitted curve is highest."""

    distance: float  # √nats
    kl: float  # nats per sequence
    gold: float  # gain over the initial policy, in reward units


@dataclass(frozen=True)
class GoldCurve:
    """A curve of gold reward over d = √KL, with the uncertainty of its fit.

    Attributes:
        form: "best-of-n" for d·(alpha - beta·d), "rl" for d·(alpha - beta·log d).
        alpha: initial slope of best-of-n, reward units per √nat.
        beta: how fast it bends.
        covariance: of (alpha, beta); zero for a curve that was not fitted.
        freedom: points minus 2; 0 for a curve that was not fitted.

    Example:
        >>> curve = GoldCurve("best-of-n", alpha=1.0, beta=0.25)
        >>> curve.peak, curve.kl_budget(0.5)
        (Peak(distance=2.0, kl=4.0, gold=1.0), 2.0)
    """

    form: Form
    alpha: float
    beta: float
    covariance: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
    freedom: int = 0

    def __post_init__(self) -> None:
        """Refuse coefficients that are not finite."""
        check_number(alpha=self.alpha, beta=self.beta)

    def gold(self, distance: Float[Tensor, " point"]) -> Float[Tensor, " point"]:
        """Return the gain in gold reward at d = √KL; 0 at d = 0. ValueError for a negative or infinite d."""
        up, down = _design(distance, self.form)
        return self.alpha * up - self.beta * down

    def band(
        self, distance: Float[Tensor, " point"], level: float = 0.95
    ) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
        """Return the confidence band of the mean curve, pointwise: Student's t with `freedom` degrees."""
        (a, c), (_, b) = self.covariance
        up, down = _design(distance, self.form)
        spread = (a * up.square() - 2 * c * up * down + b * down.square()).clamp_min(0).sqrt()
        middle, reach = self.gold(distance), self._quantile(level) * spread
        return middle - reach, middle + reach

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Return the confidence intervals of alpha and beta."""
        reach = self._quantile(level)
        return {
            name: (value - reach * math.sqrt(variance), value + reach * math.sqrt(variance))
            for name, value, variance in (
                ("alpha", self.alpha, self.covariance[0][0]),
                ("beta", self.beta, self.covariance[1][1]),
            )
        }

    @property
    def peak(self) -> Peak:
        """Return where the gold reward is highest: d = alpha/(2 beta), or e^(alpha/beta - 1) for RL.

        Raises:
            ValueError: the curve has no such peak, as beta is not above 0 (for best-of-n also alpha), or the
                peak is beyond the range of a float.
        """
        if self.beta <= 0 or (self.form == "best-of-n" and self.alpha <= 0):
            raise ValueError(f"alpha is {self.alpha} and beta {self.beta}; this curve has no peak.")
        try:
            if self.form == "best-of-n":
                distance = self.alpha / (2 * self.beta)
                peak = Peak(distance, distance**2, self.alpha * distance / 2)
            else:
                distance = math.exp(self.alpha / self.beta - 1)
                peak = Peak(distance, distance**2, self.beta * distance)
        except OverflowError:
            peak = Peak(math.inf, math.inf, math.inf)
        if not math.isfinite(peak.kl):
            raise ValueError(f"alpha is {self.alpha} and beta {self.beta}; the peak is beyond any float.")
        return peak

    def kl_budget(self, fraction: float) -> float:
        """Return that fraction of the KL at the peak, in nats; half of it is d = d_peak/√2, not d_peak/2.

        Raises:
            ValueError: fraction is not above 0 and at most 1, or the curve has no peak.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}; above 0 and at most 1 is expected.")
        return fraction * self.peak.kl

    def _quantile(self, level: float) -> float:
        from scipy.stats import t

        if not 0 < level < 1:
            raise ValueError(f"level is {level}; between 0 and 1 is expected.")
        if self.freedom < 1:
            raise ValueError("this curve was not fitted, so nothing is known of its uncertainty.")
        return float(t.ppf((1 + level) / 2, self.freedom))


def fit_gold(distance: Float[Tensor, " point"], gold: Float[Tensor, " point"], form: Form) -> GoldCurve:
    """Fit a published form to measured gold rewards by least squares, with its covariance.

    Both forms are linear in alpha and beta, so the fit is exact and its intervals are those of Student's t
    for independent errors of one variance.

    Args:
        distance: d = √KL in √nats, at least 0; at least two different ones above 0.
        gold: gain in gold reward over the initial policy.
        form: which curve.

    Raises:
        jaxtyping.TypeCheckError: shapes differ, or the form is unknown.
        ValueError: fewer than 3 points, a value is not finite, a distance is negative, or the points do not
            determine the curve.

    Source:
        Gao et al. (2023).

    Example:
        >>> d = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
        >>> curve = fit_gold(d, d * (1 - 0.25 * d), "best-of-n")
        >>> round(curve.alpha, 6), round(curve.beta, 6)
        (1.0, 0.25)
    """
    check_finite(gold=gold)
    if len(distance) < 3:
        raise ValueError(f"distance has {len(distance)} points; at least 3 are expected.")
    up, down = _design(distance, form)
    design, target = torch.stack([up, -down], 1).double(), gold.double()
    if torch.linalg.matrix_rank(design) < 2:
        raise ValueError("distance has fewer than two different values above 0; the curve is not determined.")
    inverse = torch.linalg.pinv(design)
    coefs = inverse @ target
    freedom = len(target) - 2
    residual = (target - design @ coefs).square().sum() / freedom
    (a, c), (_, b) = (residual * (inverse @ inverse.T)).tolist()
    # Down enters with a minus sign, so that both coefficients are those of the published forms.
    return GoldCurve(form, coefs[0].item(), coefs[1].item(), ((a, c), (c, b)), freedom)


class OveroptimizationMonitor:
    """Watch the gold reward of a run and fire when it has fallen while the KL rose.

    The last `window` checkpoints are compared with every earlier window that they do not overlap: U counts
    the pairs in which the earlier gold is larger. The monitor fires when U of some earlier window reaches the
    threshold and the mean KL of the last window is above that of the earlier one.

    U depends on ranks alone. If the gold values are exchangeable, as independent noise of any one law is,
    every order is equally likely, and the threshold is the smallest for which at most `false_alarm` of whole
    runs fire: it comes from 4000 simulated orders and holds with 99.9 % confidence. A tie counts for nothing,
    and the condition on the KL only silences, so neither can raise the rate. Noise that carries over from one
    checkpoint to the next is not exchangeable and fires more often. A fall shorter than the window hides.

    Args:
        checkpoints: of a run; the rate is for that many.
        window: how many checkpoints are compared with as many.
        false_alarm: largest probability that a run without trend fires.
        generator: source of the simulated orders.

    Raises:
        ValueError: window is below 2 or checkpoints below twice the window, false_alarm lies outside 0 to 1,
            or is so small that even a complete separation of two windows comes by chance more often.

    Example:
        >>> monitor = OveroptimizationMonitor(20, window=6, generator=torch.Generator().manual_seed(0))
        >>> gold = [min(i, 20 - i) for i in range(20)]
        >>> [i for i in range(20) if monitor.update(kl=float(i), gold=float(gold[i]))]
        [18, 19]
    """

    def __init__(
        self, checkpoints: int, *, window: int = 8, false_alarm: float = 0.05, generator: torch.Generator
    ) -> None:
        """Calibrate the threshold."""
        if window < 2 or checkpoints < 2 * window:
            raise ValueError(
                f"window is {window} and checkpoints {checkpoints}; a window of at least 2 and two windows a "
                "run are expected."
            )
        if not 0 < false_alarm < 1:
            raise ValueError(f"false_alarm is {false_alarm}; between 0 and 1 is expected.")
        self.checkpoints, self.window, self.false_alarm = checkpoints, window, false_alarm
        self.threshold = self._calibrate(generator)
        self._kl: list[float] = []
        self._gold: list[float] = []

    def update(self, kl: float, gold: float) -> bool:
        """Take one checkpoint and return whether the run looks over-optimised at it.

        Args:
            kl: KL(policy ‖ initial policy) in nats per sequence, as measured.
            gold: the true reward, or the held-out judgement that stands for it.

        Raises:
            ValueError: a value is not finite, or the run is longer than it was calibrated for.
        """
        check_number(kl=kl, gold=gold)
        if len(self._gold) == self.checkpoints:
            raise ValueError(
                f"the run has more than the {self.checkpoints} checkpoints it was calibrated for."
            )
        self._kl.append(kl)
        self._gold.append(gold)
        if len(self._gold) < 2 * self.window:
            return False
        counts = _separations(torch.tensor(self._gold, dtype=torch.float64), self.window)[:, -1]
        means = torch.tensor(self._kl, dtype=torch.float64).unfold(0, self.window, 1).mean(-1)
        earlier = slice(0, len(counts) - self.window)  # windows that do not overlap the last
        return bool(((counts[earlier] >= self.threshold) & (means[earlier] < means[-1])).any())

    def _calibrate(self, generator: torch.Generator) -> float:
        from scipy.stats import beta

        orders = torch.rand(CALIBRATION, self.checkpoints, generator=generator, dtype=torch.float64)
        counts = [_separations(part, self.window).triu(self.window) for part in orders.split(RUNS_AT_ONCE)]
        worst = torch.cat([part.flatten(1).amax(-1) for part in counts])  # of windows that do not overlap
        for threshold in range(self.window**2 + 1):
            fired = int((worst >= threshold).sum())
            bound = beta.ppf(SURE, fired + 1, CALIBRATION - fired) if fired < CALIBRATION else 1.0
            if bound <= self.false_alarm:
                return float(threshold)
        raise ValueError(
            f"false_alarm is {self.false_alarm}, but two windows of {self.window} separate completely by "
            "chance in more runs than that; a longer window is expected."
        )


def _separations(gold: Float[Tensor, "*run checkpoint"], window: int) -> Float[Tensor, "*run earlier later"]:
    """Return for each two windows in how many pairs the gold of the first is larger."""
    pairs = (gold.unsqueeze(-1) > gold.unsqueeze(-2)).double()
    return pairs.unfold(-2, window, 1).sum(-1).unfold(-1, window, 1).sum(-1)


def _design(
    distance: Float[Tensor, " point"], form: Form
) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """Return d, and d² or d·log d: what alpha and -beta multiply."""
    check_finite(distance=distance)
    if (distance < 0).any():
        raise ValueError(f"distance{first(distance < 0)} is {distance.min().item()}; at least 0 is expected.")
    return distance, distance.square() if form == "best-of-n" else torch.special.xlogy(distance, distance)
