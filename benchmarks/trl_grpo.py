"""The same GRPO step, made by TRL's trainer."""

import os
import tempfile
from collections.abc import Callable

import torch

from benchmarks.clock import Clock
from benchmarks.setting import BETA, CLIP, LONGEST_GRADIENT, RATE, Setting


def trl_steps(setting: Setting) -> tuple[Callable[[], float], int]:
    """Return a function that makes a row of steps and says how many seconds one took, and the parameters."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # it reports its use otherwise
    import datasets
    import transformers
    import trl
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    words = ["<end>", *(f"word{i}" for i in range(1, setting.words))]
    splitter = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[1]))
    splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=splitter, eos_token="<end>", pad_token="<end>"
    )
    config = transformers.GPT2Config(
        vocab_size=setting.words,
        n_positions=setting.prompt + setting.horizon,
        n_embd=setting.width,
        n_layer=setting.layers,
        n_head=setting.heads,
        bos_token_id=0,
        eos_token_id=0,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
    )
    folder = tempfile.mkdtemp()
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    asked = torch.randint(1, setting.words, (setting.batch, setting.prompt), generator=draw).tolist()
    rows = datasets.Dataset.from_list([{"prompt": " ".join(words[i] for i in ids)} for ids in asked])
    options = trl.GRPOConfig(
        tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        optim="adamw_torch",
        weight_decay=0.0,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=LONGEST_GRADIENT,
        beta=BETA,
        epsilon=CLIP,
        per_device_train_batch_size=setting.batch,
        num_generations=setting.group,
        max_completion_length=setting.horizon,
        max_steps=setting.warmup + setting.steps,
    )

    def reward(completion_ids: list[list[int]], **rest: object) -> list[float]:
        return [float(ids.count(1)) for ids in completion_ids]

    class Watch(transformers.TrainerCallback):
        """Notes when each step ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: object, **rest: object) -> None:
            self.ends.append(Clock.now())

    model = transformers.GPT2LMHeadModel.from_pretrained(folder)

    def run() -> float:
        watch = Watch()
        made = trl.GRPOTrainer(
            transformers.GPT2LMHeadModel.from_pretrained(folder),
            reward,
            options,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[watch],
        )
        made.remove_callback(transformers.PrinterCallback)  # with the bar off, it prints
        made.train()
        return (watch.ends[-1] - watch.ends[setting.warmup - 1]) / setting.steps

    return run, sum(parameter.numel() for parameter in model.parameters())
