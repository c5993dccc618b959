"""The command `kltutor check`: an audit in the terminal, with an exit status for somebody's CI."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from kltutor.audit.calls import Returns
from kltutor.audit.verdict import Gradient, Value
from kltutor.flags import fail


def check(
    function: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION", help="Such as package.module:function, importable from here."
        ),
    ],
    inputs: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What its positional arguments are, separated by commas: logp, ref_logp, old_logp, mask, "
            "seq_logp, ref_seq_logp, old_seq_logp, logits, ref_logits, old_logits, tokens.",
        ),
    ] = "logp,ref_logp",
    returns: Annotated[
        Returns, typer.Option(help="One value a token, one a completion, or one for all.")
    ] = "token",
    expect: Annotated[
        Value | None, typer.Option(help="What the value must estimate on fresh samples.")
    ] = None,
    expect_gradient: Annotated[
        Gradient | None, typer.Option(help="Which gradient it must give as a loss on fresh samples.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON and nothing else.")
    ] = False,
) -> None:
    """Say what a KL function estimates and which gradient it gives, by measuring.

    Exit status 0: as expected, or nothing expected; 1: not as expected; 2: it could not be used.
    """
    import torch

    from kltutor.audit.checking import check as audit

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    with contextlib.redirect_stdout(sys.stderr):  # what the function prints is no finding
        fn = _load(function)
        try:
            verdict = audit(fn, inputs=tuple(name.strip() for name in inputs.split(",")), returns=returns)
        except (ValueError, TypeError) as error:
            fail(str(error).splitlines()[0])
    missed = verdict.misses(value=expect, gradient=expect_gradient)
    if as_json:
        typer.echo(verdict.to_json())
    else:
        from rich.console import Console

        Console().print(verdict)
        typer.echo(verdict.words)
    for sentence in missed:
        typer.echo(f"Not as expected: {sentence}", err=True)
    raise typer.Exit(1 if missed else 0)


def _load(path: str) -> Callable[..., Any]:
    """Import module:function, or module:object.function, from here or from what is installed."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        fail(f"{path!r} is not of the form package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        fail(f"{module} could not be imported: {type(error).__name__}: {first}")
    for part in name.split("."):
        if not hasattr(found, part):
            fail(f"{module} has no {name}.")
        found = getattr(found, part)
    if not callable(found):
        fail(f"{name} of {module} is {type(found).__name__}; a function is expected.")
    function: Callable[..., Any] = found
    return function
