"""Bugs against overflow: a clamp inside a loss keeps the number finite and takes the gradient away."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kltutor import exact, tasks
from kltutor.bugs import Code, bug
from kltutor.bugs.curves import Plot
from kltutor.estimators import k2, k3
from kltutor.tasks import TabularPolicy

LOST = 11.0  # nats by which the policy has come to like one action less than the reference does


def clamped_k3(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Cut the log-ratio off before it meets the exponential."""
    delta = (ref_logp - logp).clamp(max=10)
    return delta.exp() - delta - 1


def half_clamped_k3(
    logp: Float[Tensor, "batch time"], ref_logp: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Cut the log-ratio off inside the exponential, and only there."""
    delta = ref_logp - logp
    return delta.clamp(max=10).exp() - delta - 1


def _bandit(probs: Float[Tensor, " arm"]) -> TabularPolicy:
    return TabularPolicy(tasks.bandit(), probs.log()[None, None])


def _pair(lost: float = LOST) -> tuple[TabularPolicy, TabularPolicy]:
    """Return a policy that has all but lost the last arm, and the reference, which has not."""
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    left = ref[2] * torch.tensor(-lost, dtype=torch.float64).exp()
    return _bandit(torch.stack([0.6 * (1 - left), 0.4 * (1 - left), left])), _bandit(ref)


def _true_pull() -> float:
    policy, ref = _pair()
    return exact.gradient(lambda moving: exact.kl(ref, moving, tasks.bandit()), policy)[2].item()


def _at(code: Code, delta: float) -> tuple[float, float]:
    """Return value and slope in logp where the reference is delta nats above the policy."""
    logp = torch.full((1, 1), -delta - 1, dtype=torch.float64, requires_grad=True)
    value = code(logp, torch.full_like(logp, -1.0, requires_grad=False))
    (slope,) = torch.autograd.grad(value.sum(), logp)
    return value.item(), slope.item() + 0.0  # so that -0 is 0


def _slopes() -> dict[str, float]:
    codes = {"clamped": clamped_k3, "k3": k3, "k2": k2}
    slopes = {f"slope of one {name} in logp at 11 nats": _at(code, LOST)[1] for name, code in codes.items()}
    limits = {
        f"log-ratio at which exp overflows {str(dtype).removeprefix('torch.')}, nats": torch.tensor(
            torch.finfo(dtype).max, dtype=torch.float64
        )
        .log()
        .item()
        for dtype in (torch.float32, torch.float16)
    }
    return slopes | {"mean gradient of k2 in the same logit": pull_on_lost_action(k2)} | limits


def _half() -> dict[str, float]:
    return {
        "slope of one half clamped in logp at 11 nats": _at(half_clamped_k3, LOST)[1],
        "its value at 22026 nats": _at(half_clamped_k3, 22026.0)[0],
    }


def _pull_on_lost_action(code: Code, lost: float) -> float:
    policy, ref = _pair(lost)

    def loss(
        logp: Float[Tensor, "row time"], mask: Bool[Tensor, "row time"], ref_logp: Float[Tensor, "row time"]
    ) -> Float[Tensor, " row"]:
        losses: Tensor = code(logp, ref_logp).sum(-1)
        return losses

    given = exact.token_logps(ref, tasks.bandit())[0].detach()
    return exact.expected_gradient(loss, policy, tasks.bandit(), given=[given]).mean[2].item()


def _losses() -> list[float]:
    return [0.5, 1, 2, 3, 4, 6, 8, 9.9, 10.1, 11, 12, 14]


@bug(
    "BUG-10",
    title="The log-ratio is clamped inside the exponential of k3 only.",
    symptom="Beyond the clamp the loss pushes the policy further away, with a slope of +1 per nat.",
    why="Beyond the clamp the exponential is a constant. Only `-delta` has a slope left, and by it "
    "the loss falls as the token becomes rarer. Far enough out the value is negative.",
    cure="Take the clamp out, and let a run stop when k3 overflows; or use k2 as the loss, or k1 in "
    "the reward.",
    quantity="mean gradient in the logit of the lost action, nats per logit",
    broken=half_clamped_k3,
    cured=k3,
    truth=_true_pull,
    line="return delta.clamp(max=10).exp() - delta - 1",
    finding="Beyond 10 nats the slope has the other sign",
    plot=Plot(
        x="log ref − log policy of a token [nats]",
        y="slope of its loss [nats per nat]",
        points=_losses,
        at=lambda code: [_at(code, lost)[1] for lost in _losses()],
        y_scale="symlog",
    ),
    also=_half,
    thread="huggingface/trl#3015",
    inputs=("logp", "ref_logp"),
    returns="token",
)
@bug(
    "BUG-08",
    title="The log-ratio in k3 is clamped against overflow.",
    symptom="Beyond the clamp the gradient is 0 nats per logit: the anchor lets go of the actions that are "
    "furthest from the reference.",
    why="A clamp passes no gradient where it acts. This one acts on tokens whose probability has "
    "fallen by e^10 or more, and those are the ones that need a pull.",
    cure="Take the clamp out, and let a run stop when k3 overflows. k2 as the loss, or k1 in the reward, has "
    "no exponential; both follow the KL of the other direction.",
    quantity="mean gradient in the logit of the lost action, nats per logit",
    broken=clamped_k3,
    cured=k3,
    truth=_true_pull,
    line="delta = (ref_logp - logp).clamp(max=10)",
    finding="Beyond 10 nats nothing pulls back",
    plot=Plot(
        x="nats that the action has lost",
        y="mean pull on its logit [nats per logit]",
        points=_losses,
        at=lambda code: [_pull_on_lost_action(code, lost) for lost in _losses()],
    ),
    also=_slopes,
    thread="OpenRLHF/OpenRLHF#1160",
    inputs=("logp", "ref_logp"),
    returns="token",
)
def pull_on_lost_action(code: Code) -> float:
    """Return the mean gradient of the loss in the logit of an action that the policy has all but lost."""
    return _pull_on_lost_action(code, LOST)
