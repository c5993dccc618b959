"""Katas as files: one file a kata, of its name, in a folder of one's own."""

import importlib.util
import sys
from pathlib import Path

from kltutor.katas.calls import Code, line_of
from kltutor.katas.kata import Kata, all_katas, get


def write(kata: Kata, folder: Path) -> Path:
    """Write the file to begin a kata with, and return its path.

    Raises:
        ValueError: there is such a file already; it is left as it is.
        OSError: the folder cannot be made or written to.
    """
    path = folder / f"{kata.name}.py"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(kata.starter())
    except FileExistsError:
        raise ValueError(f"{path} is there already and is left as it is; delete or move it first.") from None
    return path


def find(name: str, folder: Path) -> tuple[Kata, Path]:
    """Return the kata and the file that a name or a path means.

    Raises:
        ValueError: there is no such kata, or no such file.
    """
    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if path.is_file() and path.stem not in {each.name for each in all_katas()}:
        raise ValueError(f"{path} has the name of no kata; the file of a kata has its name, such as k3.py.")
    kata = get(path.stem)
    if not path.is_file():
        raise ValueError(f"{path} is not there; `kltutor kata start {kata.name}` writes it.")
    return kata, path


def load(path: Path, name: str) -> Code:
    """Return the function of that name from a file. The file may import its neighbours.

    Raises:
        ValueError: the file cannot be imported, or has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"kata_{name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        reason = (getattr(error, "msg", None) or str(error).strip() or "no message").splitlines()[0]
        where = line_of(error, path=path)
        raise ValueError(
            f"{path.name} could not be imported: {where} raised {type(error).__name__}: {reason.rstrip('.')}."
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{path.name} has no function {name}.")
    code: Code = found
    return code
