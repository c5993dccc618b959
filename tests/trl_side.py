"""TRL's own trainers around policies of ours, and completions for both: what the parity tests share."""

import importlib.util
import os
import tempfile
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kltutor import GPTShape, TinyGPT
from kltutor.masking import token_logps

WORDS = ("<end>", "a", "b", "c", "d", "e")  # a completion ends with the first
PAD = len(WORDS)


def require_trl():
    """Skip the calling module where TRL is not installed; fail it in CI, where it has to be."""
    if importlib.util.find_spec("trl") is None:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        how = {} if say is pytest.fail else {"allow_module_level": True}
        say(
            "TRL is not installed. `make .venv/peers` installs it, for these tests and for make bench.", **how
        )


class Spoken(nn.Module):
    """A TinyGPT that answers as a transformers model does once TRL has fused its head.

    TRL's head computes in float32 whatever the model; this one stays in float64, so that its losses can be
    compared to the last digits. One test holds TRL's head against `token_logps`.
    """

    is_gradient_checkpointing = False

    def __init__(self, policy):
        """Speak for a policy."""
        super().__init__()
        self.policy = policy

    def forward(self, input_ids, attention_mask=None, labels=None, fused_lm_head=False, use_cache=None):
        """Return logits or, to TRL, log-probabilities of the labels, 0 where they are -100."""
        logits = self.policy(input_ids)
        if not fused_lm_head:
            return SimpleNamespace(logits=logits)
        labels = labels[:, 1:]
        chosen = labels.clamp(min=0)[..., None]
        log_probs = logits[:, :-1].log_softmax(-1).gather(-1, chosen).squeeze(-1)
        idle = torch.zeros_like(log_probs)  # what TRL only logs
        return SimpleNamespace(
            log_probs=log_probs.masked_fill(labels == -100, 0),
            entropy=idle,
            mean_logits=idle,
            is_top1=idle.bool(),
        )


def policies(seed):
    """Return a policy, the one that drew, and a reference: unlike each other, small and in float64."""
    shape = GPTShape(len(WORDS) + 1, len(WORDS), 12, width=8)
    return [
        TinyGPT(
            shape, generator=torch.Generator().manual_seed(100 * seed + i), dtype=torch.float64, device="cpu"
        )
        for i in range(3)
    ]


def said(seed, count, longest=5):
    """Draw that many completions of unlike lengths, as lists of token ids that end with the end token."""
    draw = torch.Generator().manual_seed(seed)
    lengths = 1 + torch.randperm(count, generator=draw) % longest
    return [[*torch.randint(1, len(WORDS), (n - 1,), generator=draw).tolist(), 0] for n in lengths.tolist()]


def logps_of(policy, prompts, completions):
    """Return log π of each row's tokens but the first, and where they are the completion's."""
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    place = torch.arange(1, width)
    start = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    stop = torch.tensor([len(row) for row in rows])[:, None]
    return token_logps(policy(tokens)[:, :-1], tokens[:, 1:]), (place >= start) & (place < stop)


def text(ids):
    """Return token ids as words."""
    return " ".join(WORDS[i] for i in ids)


@cache
def tiny():
    """Return a tokenizer, and the folder of a model, that TRL's constructors accept; both made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*WORDS, "<pad>"))}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tempfile.mkdtemp()
    config = GPT2Config(
        vocab_size=len(WORDS) + 1,
        n_positions=12,
        n_embd=8,
        n_layer=1,
        n_head=2,
        eos_token_id=0,
        bos_token_id=0,
    )
    torch.manual_seed(0)  # transformers draws from the global generator
    GPT2LMHeadModel(config).save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    return wrapped, folder


def trainer(kind, rows, **options):
    """Return a trainer of TRL on a data set of rows, built around a model that Spoken ones then replace."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # TRL reports its use otherwise
    import datasets
    import transformers
    import trl
    from trl.experimental import cpo, orpo

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    tokenizer, folder = tiny()
    home = {"CPO": cpo, "ORPO": orpo}.get(kind, trl)
    common = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    config = getattr(home, f"{kind}Config")(
        tempfile.mkdtemp(), per_device_train_batch_size=len(rows), **common | options
    )
    extra = {"reward_funcs": lambda score, **rest: score} if kind in ("GRPO", "RLOO") else {}
    made = getattr(home, f"{kind}Trainer")(
        transformers.GPT2LMHeadModel.from_pretrained(folder),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **extra,
    )
    made.current_gradient_accumulation_steps = 1  # as the training loop sets it
    return made


def agree(theirs, ours, policy, tolerance=1e-9):
    """Compare two losses, and their gradients in every parameter of the policy."""
    grads = [
        torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True) for loss in (theirs, ours)
    ]
    torch.testing.assert_close(theirs.double(), ours.double(), rtol=tolerance, atol=tolerance)
    size = max(grad.abs().max() for grad in grads[1])
    assert size > 1e-3  # else nothing is compared
    torch.testing.assert_close(*grads, rtol=0, atol=tolerance * max(size.item(), 1))
