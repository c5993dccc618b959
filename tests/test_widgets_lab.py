"""JupyterLab with a kernel: the cell shows the live widget, and each side follows the other."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from widget_page import parse

from kltutor.widgets import BetaSweep

pytestmark = pytest.mark.slow

CELLS = [
    "from kltutor.widgets import BetaSweep\n\nw = BetaSweep()\nw",
    "print('python has', w.beta, round(w.kl, 6))",
    "w.beta = 5.0",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server on a free port of this machine, with one notebook; yield the address of that."""
    root = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, root / "widget.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "ServerApp.ip=": "127.0.0.1",
        "ServerApp.port=": str(port),
        "ServerApp.root_dir=": str(root),
        "ServerApp.port_retries=": "0",
        "IdentityProvider.token=": "",
        "LabApp.news_url=": "",
        "LabApp.check_for_updates_class=": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}{value}" for name, value in settings.items()]
    places = {f"JUPYTER_{name}": str(root / name) for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(root / "s"), "JUPYTERLAB_WORKSPACES_DIR": str(root / "w")}
    log = (root / "log").open("w+")
    server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            break
        except OSError:
            time.sleep(0.25)
            assert server.poll() is None, (log.seek(0), log.read())[1]
    yield f"{address}/lab/tree/widget.ipynb?reset"
    server.terminate()
    server.wait(30)
    log.close()


@pytest.fixture
def notebook(chromium, lab):
    """The notebook in a browser that may speak to this machine only."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    here = re.match(r"https?://[^/]+", lab)[0]
    away = []

    def keep(route):
        if route.request.url.startswith((here, "data:", "blob:")):
            return route.continue_()
        away.append(route.request.url)
        return route.abort()

    context.route("**/*", keep)
    page = context.new_page()
    page.goto(lab)
    page.locator(".jp-NotebookPanel .jp-Cell").nth(2).wait_for(timeout=90_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=90_000)
    yield page
    assert away == []
    context.close()


def run(page, number):
    """Execute a cell and wait until the kernel has done it."""
    cell = page.locator(".jp-NotebookPanel .jp-Cell").nth(number)
    prompt = cell.locator(".jp-InputPrompt")
    before = prompt.inner_text()
    for _ in range(5):  # a notebook that has just opened may not listen yet
        cell.locator(".jp-InputArea-editor").click()
        page.keyboard.press("Control+Enter")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if prompt.inner_text() != before and re.fullmatch(r"\[\d+\]:", prompt.inner_text().strip()):
                return cell
            page.wait_for_timeout(100)
    raise AssertionError(f"cell {number} was not executed: {prompt.inner_text()}")


def said(page):
    """What Python has: beta and KL, as the second cell prints them."""
    area = page.locator(".jp-NotebookPanel .jp-Cell").nth(1).locator(".jp-OutputArea-output pre")
    run(page, 1)
    return [float(word) for word in area.last.inner_text().split()[2:]]


def test_the_live_widget_and_python_follow_each_other(notebook):
    cell = run(notebook, 0)
    live = cell.locator(".kl-root")
    live.wait_for(timeout=60_000)
    assert cell.locator(".kl-fallback").count() == 0  # the view won over the HTML form
    slider = live.get_by_role("slider", name="β, the price of a nat in reward (logarithmic)")
    assert said(notebook) == [0.2, round(BetaSweep().kl, 6)]

    slider.focus()
    notebook.keyboard.press("Home")
    for _ in range(10):
        notebook.keyboard.press("ArrowRight")
    beta, deadline = 10**-2.9, time.monotonic() + 30
    while (heard := said(notebook))[0] != pytest.approx(beta, rel=1e-5):
        assert time.monotonic() < deadline, heard
    assert heard[1] == pytest.approx(BetaSweep(beta=beta).kl, abs=2e-6)

    run(notebook, 2)
    notebook.wait_for_function(
        "Math.abs(Number(document.querySelector('.kl-root input[type=range]').value) - Math.log10(5)) < 0.01",
        timeout=20_000,
    )
    assert live.locator(".kl-slider output").inner_text() == "β = 5"
    shown = parse(live.locator('[data-number="kl"]').inner_text())
    assert shown == pytest.approx(BetaSweep(beta=5.0).kl, rel=6e-3)
