"""A GRPO step of `kltutor` against one of TRL's trainer and against the matrix products it consists of.

There are 3·10⁹ completions of 8 tokens from 16 words, too many to list, so `train` does not take such a task.
The step is composed of public parts that `train` is made of: `sample`, `completion_logps` of policy and
reference, `group_advantages`, `ppo_clip_loss`, `kl_loss`, Adam. Both sides sample, ask the reference, take
TRL's default loss (a mean over tokens, bias-corrected k3) and make one step of Adam with the gradient
shortened to 1, in float32, with policies of one architecture that have learnt nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.clock import Comparison, Timing, take_turns
from benchmarks.matmuls import bare_seconds, best_rate, flops, products_of
from benchmarks.setting import BETA, CLIP, LONGEST_GRADIENT, RATE, Setting
from benchmarks.trl_grpo import trl_steps
from kltutor import (
    GPTShape,
    TinyGPT,
    completion_logps,
    group_advantages,
    kl_loss,
    ppo_clip_loss,
    sample,
)

FULL = Setting()
QUICK = Setting(
    words=4, horizon=3, batch=8, group=4, layers=1, heads=1, width=8, steps=2, warmup=1, repeats=2
)


def kltutor_step(setting: Setting) -> tuple[Callable[[], object], int]:
    """Return a function that makes one step, and the number of parameters."""
    shape = GPTShape(
        setting.words,
        setting.words,
        setting.prompt + setting.horizon,
        setting.layers,
        setting.heads,
        setting.width,
    )
    draw = torch.Generator().manual_seed(0)
    policy, ref = (TinyGPT(shape, generator=draw, dtype=torch.float32, device="cpu") for _ in range(2))
    ref.load_state_dict(policy.state_dict())
    optimiser = torch.optim.Adam(policy.parameters(), lr=RATE)
    group = torch.arange(setting.batch) // setting.group

    def step() -> None:
        asked = torch.randint(
            1, setting.words, (setting.batch // setting.group, setting.prompt), generator=draw
        )
        prompts = asked.repeat_interleave(setting.group, 0)
        drawn = sample(policy, prompts, setting.horizon, draw)
        scores = pay(drawn.tokens)
        advantages = group_advantages(scores, group)[:, None].expand_as(drawn.logp)
        with torch.no_grad():
            ref_logp = completion_logps(ref, prompts, drawn.tokens, drawn.mask)
        logp = completion_logps(policy, prompts, drawn.tokens, drawn.mask)
        loss = ppo_clip_loss(logp, drawn.logp, advantages, drawn.mask, CLIP, reduction="token_mean")
        loss = loss + BETA * kl_loss(
            logp,
            ref_logp,
            drawn.mask,
            "k3",
            reduction="token_mean",
            old_logp=drawn.logp,
            correction="differentiable",
            ratio="token",
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), LONGEST_GRADIENT)
        optimiser.step()

    return step, sum(parameter.numel() for parameter in policy.parameters())


def pay(tokens: Tensor) -> Tensor:
    """Return a reward that costs nothing to compute: how often the first word was said."""
    return (tokens == 1).sum(-1).float()


def compare(setting: Setting) -> Comparison:
    """Time both sides in turns, then the matrix products of our step alone."""
    step, size = kltutor_step(setting)
    trl, trl_size = trl_steps(setting)
    ours, theirs = [], []
    for _ in range(setting.repeats):  # in turns, so that a busy machine slows both
        ours.append(take_turns({"": step}, 1, each=setting.steps, warmup=setting.warmup)[""].median)
        theirs.append(trl())
    products = products_of(step)
    work, rate = flops(products), best_rate(setting.repeats)
    bare = bare_seconds(products, setting.repeats)
    found = {"kltutor": Timing.of(ours), "TRL": Timing.of(theirs)}
    limits = {"its matrix products alone": bare, "its FLOPs at the rate of a large product": work / rate}
    mine = found["kltutor"].median
    table = Comparison(
        f"GRPO, {setting.batch} completions of {setting.horizon} tokens: {setting.layers} layers, width "
        f"{setting.width}, {setting.heads} heads, {setting.words} words, float32",
        ("", "parameters", "ms a step", "steps/s", "sequences/s", "kltutor is"),
    )
    for name, parameters in (("kltutor", size), ("TRL", trl_size)):
        took = found[name]
        ratio = "" if name == "kltutor" else f"{took.median / mine:.3g} times as fast"
        each = f"{1 / took.median:.4g}", f"{setting.batch / took.median:.4g}"
        table.rows.append((name, f"{parameters}", str(took), *each, ratio))
    for name, took in limits.items():
        each = f"{1 / took:.4g}", f"{setting.batch / took:.4g}"
        table.rows.append((name, "", f"{1e3 * took:.4g}", *each, f"{mine / took:.3g} times as slow"))
    table.notes.append(
        f"{work / 1e6:.4g} MFLOP a step. A large product runs at {rate / 1e9:.3g} GFLOP/s, those of the step "
        f"at {work / bare / 1e9:.3g}."
    )
    table.numbers = {
        "kltutor_sequences_per_second": setting.batch / mine,
        "trl_sequences_per_second": setting.batch / found["TRL"].median,
        "times_trl": found["TRL"].median / mine,
        "times_matrix_products": mine / bare,
        "times_flop_limit": mine * rate / work,
        "flop": work,
    }
    return table
