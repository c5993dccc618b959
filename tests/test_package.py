"""The package as a thing one installs: its dependencies, its layers, its pins, its wheel."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kltutor

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted((ROOT / "kltutor").rglob("*.py"))

# An import only ever points down this list.
LAYERS = [
    {"axis", "blocks", "checkpoints", "checks", "figures", "options", "resumable"},
    {"divergences", "masking", "schedules"},
    {"estimators"},
    {"controllers", "moments", "fits", "optimum", "selection"},
    {"placement", "preference", "overoptimization"},
    {"policy_gradient"},
    {"tasks"},
    {"model"},
    {"sampling"},
    {"pairs"},
    {"proxy"},
    {"exact"},
    {"run"},
    {"grid", "world"},
    {"rollout"},
    {"algorithms", "finite"},
    {"flags", "offline", "records"},
    {"diagnostics"},
    {"descent", "lessons"},
    {"learner"},
    {"train"},
    {"stacked"},
    {"units"},
    {"sweep"},
    {"engines", "plots", "tables"},
    {"diagnosis_session", "failures", "session", "sweep_plots"},
    {"sweep_session"},
    {"atlas"},
    {"audit"},
    {"libraries"},
    {"bugs"},
    {"derivations", "claims", "ledger"},
    {"interview", "katas"},
    {"quiz_session"},
    {"widgets"},
    {"cli"},
]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_is_pinned_inside_its_range():
    extras = [name for group in PROJECT["optional-dependencies"].values() for name in group]
    for requirement in map(Requirement, PROJECT["dependencies"] + extras):
        assert requirement.specifier, f"{requirement.name} has no range"
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), requirement


def test_conda_gets_the_same_pins_and_the_same_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert "--constraint constraints.txt" in pip
    assert "--editable .[book,test]" in pip
    assert "'.[book,test]'" in (ROOT / "Makefile").read_text()
    (python,) = [line.split("=")[1] for line in conda if line.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


def test_the_makefile_installs_every_extra():
    named = re.findall(r"--editable '\.\[(.*?)\]'", (ROOT / "Makefile").read_text())
    assert sorted(",".join(named).split(",")) == sorted(PROJECT["optional-dependencies"])
    assert "make .venv/peers" in (ROOT / ".ci" / "run").read_text()


def test_versions_agree():
    assert PROJECT["version"] == kltutor.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == kltutor.__version__
    assert f"## {kltutor.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_all_public_names_exist_are_listed_once_and_say_what_they_do():
    assert len(set(kltutor.__all__)) == len(kltutor.__all__)
    for name in kltutor.__all__:
        assert getattr(kltutor, name).__doc__, name


def test_importing_the_package_leaves_heavy_parts_alone():
    heavy = "('sympy', 'matplotlib', 'ipywidgets', 'anywidget', 'scipy.optimize', 'typer', 'rich')"
    code = (
        f"import sys, kltutor; assert not [m for m in {heavy} if m in sys.modules], 'heavy'; kltutor.claims"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_stays_short_and_imports_only_downwards(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 320
    parts = path.relative_to(ROOT / "kltutor").with_suffix("").parts
    if parts == ("__init__",):
        return
    level = next(i for i, layer in enumerate(LAYERS) if parts[0] in layer)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kltutor."):
            target = node.module.split(".")[1]
            below = next(i for i, layer in enumerate(LAYERS) if target in layer)
            assert (
                below < level
                or target == parts[0]
                or below == level == LAYERS.index({"derivations", "claims", "ledger"})
            ), f"{parts[0]} imports {target}"


def test_the_readme_s_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "nats" in result.stdout


def needed(name):
    """Return the distributions that a distribution needs without extras, and those that these need."""
    found = set()
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= {canonicalize_name(requirement.name)} | needed(requirement.name)
    return found


@pytest.mark.slow
def test_the_wheel_works_beside_nothing_but_what_it_says_it_needs(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    (packages,) = (tmp_path / "empty").glob("lib/python*/site-packages")
    # Linked instead of installed: the same files, a minute sooner.
    for distribution in map(importlib.metadata.distribution, needed("kltutor")):
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    where = subprocess.run(
        [python, "-c", "import kltutor; print(kltutor.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout
    assert str(tmp_path) in where
    assert (Path(where.strip()).parent / "py.typed").exists()
    command = [python.parent / "kltutor", "verify", "--only", "KL-210", "--json"]
    assert (
        '"KL-210"' in subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    )
