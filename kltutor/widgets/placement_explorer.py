"""One action and a few tokens: how hard a KL term pulls on a drawn token, and where its mean pull goes."""

import math
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from kltutor.divergences import kl
from kltutor.placement import Estimator, importance_weight, kl_in_reward, kl_terms
from kltutor.policy_gradient import ppo_clip_loss
from kltutor.widgets.base import Choice, Flag, Number, Real, Reals, StateError, Widget

NAMES: tuple[Estimator, ...] = get_args(Estimator)
TOKENS = ("ha", "ho", "hi", "hm")
GRID = torch.linspace(-5, 5, 161, dtype=torch.float64)  # where weights are drawn: sixteenths, so exact
FAR = 8.0  # nats below zero, where every log-ratio in reach leaves log-probabilities negative
ZERO = 1e-12  # lengths below are rounding
OFF = 5.0  # a clamp that no token in reach can meet


class PlacementExplorer(Widget):
    """k1, k2 and k3 in the loss or in the reward: weights on ∇log π, and the exact mean gradient.

    Set `policy`, `ref`, where the KL stands and what ρ does; read the numbers. Lists of three are for k1, k2
    and k3, lists of lists have an entry for each token in them. Gradients are in the logits of the policy,
    nats per logit; descending them is what a trainer does. Samples come from an old policy that gave `token`
    the probability policy/ρ and shared out the rest as the policy does.

    Example:
        >>> w = PlacementExplorer(policy=[0.6, 0.4], ref=[0.2, 0.8])
        >>> [round(weight, 4) for weight in w.weight]  # of the token ha, whose log-ratio is log 3
        [1.0, 1.0986, 0.6667]
        >>> w.place = "reward"
        >>> [round(weight, 4) for weight in w.weight]
        [1.0986, 0.6035, 0.4319]
    """

    policy = Reals((0.6, 0.3, 0.1), 1 / 128, 1.0, help="probability of each token under the policy")
    ref = Reals((0.1, 0.4, 0.5), 1 / 128, 1.0, help="probability of each token under the reference")
    token = Choice("ha", TOKENS, help="the token whose weights are read; the first tokens are in use")
    place = Choice("loss", ("loss", "reward"), help="where the KL term stands")
    correction = Choice("none", ("none", "stopgrad", "differentiable"), help="what becomes of ρ")
    log_rho = Real(0.0, -1.5, 1.5, help="log π(token) - log old(token), nats; 0: fresh samples")
    clamp = Real(OFF, 0.5, OFF, help="the log-ratio is clamped to ±clamp nats; 5 clamps nothing")
    advantage = Real(1.0, -2.0, 2.0, help="advantage of the token from the score alone")
    beta = Real(0.3, 0.0, 1.0, help="reward per nat")
    clip_eps = Real(0.2, 0.05, 0.5, help="half width of PPO's clip")
    show_k1 = Flag(True, help="whether k1 is drawn")
    show_k2 = Flag(True, help="whether k2 is drawn")
    show_k3 = Flag(True, help="whether k3 is drawn")

    old = Number("probability of each token under the policy that drew the samples")
    rho = Number("policy/old of the token")
    log_ratio = Number("log π - log ref of the token, nats")
    log_ratios = Number("log π - log ref of each token, nats")
    kl = Number("KL(policy ‖ ref), nats")
    weight = Number("weight on ∇log π of the token")
    weights = Number("weight on ∇log π of each token, with the token's own ρ")
    true_weight = Number("the same whose mean is ∇KL(policy ‖ ref): ρ·log-ratio of the token")
    curve = Number("weight at 161 log-ratios from -5 to 5, with the ρ of the token")
    true_curve = Number("true weight at the same log-ratios")
    gradient = Number("mean gradient in the logit of each token, nats per logit")
    true_gradient = Number("∇KL(policy ‖ ref) in the logit of each token, nats per logit")
    angle = Number("angle of the mean gradient to ∇KL(policy ‖ ref), degrees; nan where one of them is 0")
    length = Number("length of the mean gradient, in lengths of ∇KL(policy ‖ ref); nan where that is 0")
    net = Number("advantage less beta·log-ratio: what PPO sees with k1 in the reward")
    push_reward = Number("push on log π of the token: PPO with beta·k1 in the reward")
    push_score = Number("push on log π of the token by the clipped score alone")
    push_loss = Number("push on log π of the token: the clipped score, and beta·k3 in the loss")

    def check(self) -> None:
        """Raise StateError unless policy, ref and old are distributions over the same two to four tokens."""
        sizes = {name: len(self.state[name]) for name in ("policy", "ref")}
        if len(set(sizes.values())) > 1 or not 2 <= sizes["ref"] <= len(TOKENS):
            raise StateError(f"the lengths are {sizes}; equal ones from 2 to {len(TOKENS)} are expected.")
        for name in sizes:
            total = math.fsum(self.state[name])
            if abs(total - 1) > 1e-9:
                raise StateError(f"{name} sums to {total:.6g}, but probabilities sum to 1.")
        used = TOKENS[: sizes["ref"]]
        if self.token not in used:
            raise StateError(f"token is {self.token!r}; here one of {', '.join(used)} is expected.")
        old = self.policy[TOKENS.index(self.token)] * math.exp(-self.log_rho)
        if old >= 1:
            raise StateError(
                f"log_rho is {self.log_rho:g}, so the old probability of {self.token} would be {old:.4g}; "
                "less than 1 is expected."
            )

    @property
    def numbers(self) -> dict[str, Any]:
        """What follows from the state, by the package."""
        self.check()
        at = TOKENS.index(self.token)
        policy, ref = (torch.tensor(p, dtype=torch.float64) for p in (self.policy, self.ref))
        logits = (policy / policy.sum()).log().requires_grad_()
        logp, ref_logp = logits.log_softmax(-1), (ref / ref.sum()).log()
        old_logp = self._old(logp.detach(), at)

        (true,) = torch.autograd.grad(kl(logp, ref_logp), logits, retain_graph=True)
        # the tokens, and behind them the points of the curves
        everywhere = torch.cat([logp, GRID - FAR])
        log_ratio = everywhere - torch.cat([ref_logp, torch.full_like(GRID, -FAR)])
        rows = self._rows(log_ratio, everywhere, torch.cat([old_logp, GRID - FAR - self.log_rho]))
        weights, curve = torch.stack([_gradient(row.sum(), everywhere) for row in rows]).split(
            [len(policy), len(GRID)], dim=-1
        )
        gradient = torch.stack([_gradient(old_logp.exp() @ row[: len(policy)], logits) for row in rows])
        rho, log_ratios = (logp - old_logp)[at].detach().exp(), (logp - ref_logp).detach()
        net = self.advantage - self.beta * log_ratios[at]
        push_score = self._push(self.advantage, logp[at], old_logp[at])
        k3_pull = _gradient(_terms("k3", logp - ref_logp).sum(), logp)[at]
        found = {
            "old": old_logp.exp(),
            "rho": rho,
            "log_ratio": log_ratios[at],
            "log_ratios": log_ratios,
            "kl": kl(logp.detach(), ref_logp),
            "weight": weights[:, at],
            "weights": weights,
            "true_weight": rho * log_ratios[at],
            "curve": curve,
            "true_curve": math.exp(self.log_rho) * GRID,
            "gradient": gradient,
            "true_gradient": true,
            "length": torch.stack([_length(mean) for mean in gradient]) / (_length(true) or torch.nan),
            "net": net,
            "push_reward": self._push(net.item(), logp[at], old_logp[at]),
            "push_score": push_score,
            "push_loss": push_score - self.beta * k3_pull,
        }
        numbers = {name: number.tolist() for name, number in found.items()}
        return numbers | {"angle": [_degrees(mean, true) for mean in gradient]}

    def _old(self, logp: Tensor, at: int) -> Tensor:
        """Return the log-probabilities of the policy that drew the samples."""
        if self.log_rho == 0:
            return logp
        drawn = logp[at] - self.log_rho
        old_logp = logp + (-drawn.exp()).log1p() - (-logp[at].exp()).log1p()
        old_logp[at] = drawn
        return old_logp

    def _rows(self, log_ratio: Tensor, logp: Tensor, old_logp: Tensor) -> list[Tensor]:
        """Return for k1, k2 and k3 the loss of each row, whose gradient is what a trainer follows."""
        near = log_ratio.clamp(-self.clamp, self.clamp)
        mask = torch.ones_like(logp, dtype=torch.bool)[:, None]
        if self.place == "loss":
            terms = [_terms(name, near)[:, None] for name in NAMES]
            if self.correction != "none":
                how = cast(Literal["stopgrad", "differentiable"], self.correction)
                weight = importance_weight(logp[:, None], old_logp[:, None], mask, "token", how)
                terms = [weight * term for term in terms]
            return [term[:, 0] for term in terms]
        # the ratio to itself is 1, and its gradient ∇log π
        below = logp.detach() if self.correction == "none" else old_logp
        weight = importance_weight(logp[:, None], below[:, None], mask, "token", "differentiable")
        anchor, scores = torch.full_like(weight, -FAR).detach(), torch.zeros_like(logp).detach()
        shaped = anchor + near.detach()[:, None]
        rewards = [kl_in_reward(scores, shaped, anchor, mask, 1.0, estimator=name) for name in NAMES]
        return [-(weight * reward)[:, 0] for reward in rewards]

    def _push(self, advantage: float, logp: Tensor, old_logp: Tensor) -> Tensor:
        """Return minus the gradient of PPO's loss in log π of one token."""
        now = logp.detach().reshape(1, 1).requires_grad_()
        mask, each = torch.ones_like(now, dtype=torch.bool), torch.full_like(now, advantage).detach()
        loss = ppo_clip_loss(now, old_logp.detach().reshape(1, 1), each, mask, self.clip_eps)
        return 0.0 - _gradient(loss, now).squeeze()  # no −0


def _terms(estimator: Estimator, log_ratio: Tensor) -> Tensor:
    """Return the estimator of each log-ratio as `kl_loss` would reduce it, one token a row."""
    anchor = torch.full_like(log_ratio, -FAR).detach()[:, None]
    return kl_terms(
        anchor + log_ratio[:, None], anchor, torch.ones_like(anchor, dtype=torch.bool), estimator
    )[:, 0]


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, at, retain_graph=True, materialize_grads=True)
    return found


def _length(vector: Tensor) -> Tensor:
    length: Tensor = vector.norm()
    return length * (length > ZERO)


def _degrees(one: Tensor, other: Tensor) -> float:
    """Return the angle between two vectors, with its digits near 0 and 180; nan where one of them is 0."""
    if not _length(one) or not _length(other):
        return math.nan  # this very object, so that a list of numbers equals itself
    one, other = one / one.norm(), other / other.norm()
    found = (2 * torch.atan2((one - other).norm(), (one + other).norm())).rad2deg().item()
    return found if found >= 1e-6 else 0.0  # below is rounding
