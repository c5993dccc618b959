"""The options of the command line: one for every field of `Run`, and errors that speak of them."""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from kltutor.options import Algorithm
from kltutor.run import BY_DEFAULT, TASKS, Run

ALGORITHM = "algorithm"
# Every field of `Run` but the algorithm, by panel of the help.
PANELS: dict[str, dict[str, str]] = {
    "What is learnt": {
        "task": "What completions are scored for.",
        "policy": "A free logit for every prefix, or a small transformer.",
        "reward": "The reward trained on: the true one, or the one fitted to pairs.",
        "steps": "Number of steps.",
        "seed": "Of everything that happens in training.",
        "world_seed": "Of the reference and of the labelled pairs.",
    },
    "The KL": {
        "beta": "Coefficient of KL(π ‖ ref), reward units per nat; τ of IPO, λ of ORPO.",
        "optimum_beta": "Beta of the optimum to compare with; the one in force if left out.",
        "controller": "What moves beta: its class and settings, as in ZieglerBeta,target_kl=2,horizon=2560.",
        "kl_placement": "In the reward, a number, or in the loss, differentiated.",
        "kl_estimator": "Full is the sum over the vocabulary at every prefix; in the loss only.",
        "kl_level": "Of a KL in the loss: a term a token, or one a sequence.",
        "kl_reduction": "Of a KL in the loss over tokens.",
        "kl_correction": "Of a KL in the loss for samples of an older policy.",
        "kl_ratio": "That the correction takes.",
    },
    "A step": {
        "batch": "Completions, or pairs.",
        "group": "Completions to one prompt.",
        "epochs": "Passes over a batch.",
        "minibatches": "Parts of a pass, each an update.",
        "rate": "Of Adam; of natural steps in units of 1/beta.",
        "decay": "Of the rate.",
        "optimiser": "Natural: for exact ascent of a tabular policy.",
        "max_gradient_norm": "Longer gradients are shortened to it.",
        "reduction": "Of the policy's loss over tokens; for that of the KL see --kl-reduction.",
        "advantages": "Of GRPO.",
        "clip_eps": "Of PPO and GRPO.",
        "gamma": "Discount of PPO and REINFORCE.",
        "gae_lambda": "Of PPO.",
        "value_rate": "Adam's rate for the values of PPO.",
        "label_smoothing": "Of DPO.",
        "simpo_gamma": "Of SimPO.",
    },
    "Data": {
        "data": "Where completions come from: the policy, or the reference in one of three ways.",
        "data_size": "Labelled pairs, to which the proxy reward is fitted.",
        "flip": "Probability that a label is turned round.",
    },
    "Model and machine": {
        "layers": "Of the transformer.",
        "heads": "Of the transformer.",
        "width": "Of the transformer.",
        "ref_steps": "Of supervised training that makes the transformer's reference.",
        "ref_scale": "Standard deviation of the tabular reference's logits.",
        "device": "A device of torch, such as cpu, cuda or mps.",
        "dtype": "Of the parameters; bfloat16 computes so over float32.",
        "exact_every": "Steps between exact measurements.",
        "checkpoint_every": "Steps between checkpoints.",
    },
}
FIELDS = [name for helps in PANELS.values() for name in helps]
# Of typer's own click or of the one installed beside it, as its version has it.
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


class OneLine(TyperCommand):
    """A command that says what is wrong with its options in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, or stop with status 2."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            text = cast(Any, error).format_message().replace("Value error, ", "").rstrip(".")
            fail(f"{text}. See `{ctx.command_path} --help`.")


def fail(message: str, status: int = 2) -> NoReturn:
    """Say what is wrong and end the command."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(status)


def flags(name: str) -> list[str]:
    """Return the option of a field of `Run`, and its short form where kl_ may be left out."""
    short = name.removeprefix("kl_")
    both = [name] if short == name or short in FIELDS else [name, short]
    return ["--" + own.replace("_", "-") for own in both]


def options() -> list[inspect.Parameter]:
    """Return ALGO and an option for every field of `Run`, as parameters of a command."""
    hints, keyword = get_type_hints(Run), inspect.Parameter.KEYWORD_ONLY
    hints |= {"task": Literal.__getitem__(tuple(TASKS)), "controller": str}  # both can be more in Python
    kept = {field.name: field.default for field in dataclasses.fields(Run)}
    algo = typer.Argument(metavar="ALGO", help=f"One of {', '.join(get_args(Algorithm))}.")
    found = [inspect.Parameter("algo", keyword, default=None, annotation=Annotated[Algorithm | None, algo])]
    for panel, helps in PANELS.items():
        for name, text in helps.items():
            usual = "" if kept[name] in (None, BY_DEFAULT) else f" Default: {kept[name]}."
            option = typer.Option(*flags(name), help=text + usual, rich_help_panel=panel, show_default=False)
            found.append(
                inspect.Parameter(
                    name, keyword, default=None, annotation=Annotated[hints[name] | None, option]
                )
            )
    return found


def signature() -> inspect.Signature:
    """Return the parameters of `kltutor train`."""
    keyword, found = inspect.Parameter.KEYWORD_ONLY, options()
    out = typer.Option("--out", metavar="DIR", help="Keep log, checkpoint and figure there.")
    on = typer.Option("--resume", help="Continue the run in DIR; its options need not be repeated.")
    found.append(inspect.Parameter("out", keyword, default=None, annotation=Annotated[Path | None, out]))
    found.append(inspect.Parameter("resume", keyword, default=False, annotation=Annotated[bool, on]))
    return inspect.Signature(found)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line and an exit status."""
    from kltutor.finite import NonFiniteError

    try:
        yield
    except NonFiniteError as error:
        fail(spoken(str(error)), 1)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}. Choose another folder or file, or make this one usable.")
    except ValueError as error:
        fail(spoken(str(error)))


def spoken(message: str) -> str:
    """Return the first line of a message about fields as one about options."""
    named = [*FIELDS, "out", "against", "quantity", "unit_size", "address"]
    text, one = message.splitlines()[0], f"({'|'.join(named)})"

    def option(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-")

    text = re.sub(rf"\b{one}='?([\w.]+)'?", lambda found: f"{option(found)} {found[2]}", text)
    text = re.sub(rf"^{one}\b", option, text)
    text = re.sub(r"(?<![-\w'])(controller)\b", option, text)
    return re.sub(rf"(?<![-\w'])(?=\w*_){one}\b", option, text)


def parse_controller(text: str) -> dict[str, Any]:
    """Return class and settings of a text like ZieglerBeta,target_kl=2."""
    name, *rest = text.split(",")
    found: dict[str, Any] = {"class": name.strip()}
    for part in rest:
        key, equals, value = part.partition("=")
        if not (key.strip() and equals):
            raise ValueError(f"controller has {part!r}; name=value is expected, as in target_kl=2.")
        found[key.strip()] = _read(value.strip())
    return found


def _read(text: str) -> Any:
    """Return a number if the text is one, whole if it is written so."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
