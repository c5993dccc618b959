"""One coefficient over six decades: what the best policy does, and what it is worth."""

from typing import Any

import torch

from kltutor.divergences import kl
from kltutor.optimum import frontier, optimal_policy, rational_tilt, regularised_value
from kltutor.widgets.base import Flag, Number, Real, Reals, StateError, Widget, Words

BETAS = torch.logspace(-3, 3, 121, dtype=torch.float64)  # where the frontier is drawn


class BetaSweep(Widget):
    """π* = ref·exp(reward/beta)/Z over a few answers, beside the rational tilt and on the frontier.

    Set `beta`, `reward` and `ref`; read the numbers. All KLs are sums over the answers, in nats per sequence.

    Example:
        >>> w = BetaSweep(ref=[0.5, 0.5], reward=[1.0, 0.0], answers=["yes", "no"])
        >>> w.beta = 1.0
        >>> round(w.kl, 4), round(w.log_z, 4)
        (0.1109, 0.6201)
    """

    beta = Real(0.2, 1e-3, 1e3, help="reward per nat")
    reward = Reals((0.2, 0.5, 0.7, 0.6, 1.0), 0.0, 1.0, help="reward of each answer")
    ref = Reals((0.4, 0.3, 0.18, 0.09, 0.03), 1e-6, 1.0, help="reference probability of each answer")
    answers = Words(("fine", "good", "great", "superb", "wow!!!"), help="what is shown for each answer")
    log_scale = Flag(False, help="probabilities on a logarithmic axis")

    star = Number("π*(y) of each answer")
    tilt = Number("probability of each answer under the rational tilt")
    log_z = Number("log Z, nats")
    expected_reward = Number("E_π*[reward]")
    kl = Number("KL(π* ‖ ref), nats per sequence")
    value = Number("J(π*) = E[reward] - beta·KL = beta·log Z")
    losers = Number("π* of all answers but the best")
    kl_bound = Number("-log ref(best answers), nats: what KL(π* ‖ ref) tends to as beta goes to 0")
    ref_reward = Number("E_ref[reward]")
    tilt_reward = Number("E[reward] of the rational tilt")
    tilt_kl = Number("KL(tilt ‖ ref), nats per sequence")
    tilt_value = Number("J of the rational tilt, below `value` by beta·KL(tilt ‖ π*)")
    tilt_losers = Number("what the rational tilt leaves to all answers but the best")
    tilt_lambda = Number("λ of the rational tilt beta·ref/(λ - reward)")
    frontier_kl = Number("KL(π* ‖ ref) at 121 betas from 0.001 to 1000, nats per sequence")
    frontier_reward = Number("E_π*[reward] at the same betas")

    def check(self) -> None:
        """Raise StateError unless each answer has a probability and a reward, and probabilities sum to 1."""
        sizes = {name: len(self.state[name]) for name in ("ref", "reward", "answers")}
        if len(set(sizes.values())) > 1 or sizes["ref"] < 2:
            raise StateError(f"the lengths are {sizes}; equal ones of at least 2 are expected.")
        if abs(sum(self.ref) - 1) > 1e-9:
            raise StateError(f"ref sums to {sum(self.ref):.6g}, but probabilities sum to 1.")

    @property
    def numbers(self) -> dict[str, Any]:
        """What follows from the state, by the package."""
        self.check()
        ref = torch.tensor(self.ref, dtype=torch.float64)
        ref_logp = (ref / ref.sum()).log()
        reward = torch.tensor(self.reward, dtype=torch.float64)
        star, log_z = optimal_policy(ref_logp, reward, self.beta)
        tilt = rational_tilt(ref_logp, reward, self.beta)
        now = frontier(ref_logp, reward, torch.tensor([self.beta], dtype=torch.float64))
        edge = frontier(ref_logp, reward, BETAS)
        best = reward == reward.max()
        tilt_reward = tilt.exp() @ reward
        found = {
            "star": star.exp(),
            "tilt": tilt.exp(),
            "log_z": log_z,
            "expected_reward": now.reward[0],
            "kl": now.kl[0],
            "value": now.value[0],
            "losers": star[~best].exp().sum(),
            "kl_bound": -ref_logp[best].logsumexp(0),
            "ref_reward": ref_logp.exp() @ reward,
            "tilt_reward": tilt_reward,
            "tilt_kl": kl(tilt, ref_logp),
            "tilt_value": regularised_value(tilt, ref_logp, reward, self.beta),
            "tilt_losers": tilt[~best].exp().sum(),
            "tilt_lambda": self.beta + tilt_reward,
            "frontier_kl": edge.kl,
            "frontier_reward": edge.reward,
        }
        return {name: numbers.tolist() for name, numbers in found.items()}
