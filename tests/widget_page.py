"""A widget on a bare page in a real browser: what every widget's tests share.

page = WidgetPage(chromium, BetaSweep(), tmp_path)   # mounted, or an error
page.agrees(states)                the browser's numbers are Python's
page.shows(states)                 so is every number that it writes
page.drag("reward of good", 0, -30); page.press("reward of good", "ArrowUp")
page.state                         what the reader has set by that
page.axe()                         violations that are serious or critical
"""

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from kltutor.widgets import page as page_module

AXE = Path(__file__).parent / "axe" / "axe.min.js"
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
THIN = """() => {
    for (const formula of document.querySelectorAll('mjx-container')) formula.replaceChildren();
    const seen = {};
    for (const piece of document.querySelectorAll('.highlight pre span, dt.sig span')) {
        const kind = `${piece.className} in ${piece.closest('pre, dt').className}`;
        seen[kind] = (seen[kind] ?? 0) + 1;
        if (seen[kind] > 3) piece.replaceWith(...piece.childNodes);
    } }"""
MODULE = """name => import(URL.createObjectURL(new Blob(
    [document.getElementById(`kl-source-${name}`).textContent], {type: 'text/javascript'})))"""
SHELL = """<!doctype html><html lang="en" data-theme="{theme}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>A widget</title>
<style>body {{ background: {ground}; font-family: sans-serif; margin: 16px; }}</style></head>
<body><main><h1 style="color: {ink}">A widget</h1>{body}</main>{markup}</body></html>"""
GROUNDS = {"light": ("#ffffff", "#1f2328"), "dark": ("#121212", "#e6e6e6")}


def launch():
    """Yield a browser; without one skip, or fail where CI promises one."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        message = "install chromium: what widgets promise can only be checked in a browser"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


def listen(page):
    """Return a list that will hold whatever the page says that is not fine."""
    heard = []
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on(
        "console",
        lambda message: heard.append(message.text) if message.type in ("error", "warning") else None,
    )
    local = ("file:", "data:", "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(local) else heard.append(asked.url))
    return heard


def violations(page, within="document"):
    """Run axe-core; return its serious and critical findings, in words.

    First the page is thinned, for speed: formulas are emptied (MathJax has its own checks), and of the
    coloured pieces of code three of each kind in each kind of block stay.
    """
    page.evaluate(THIN)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        f"axe.run({within}, {{resultTypes: ['violations'], preload: false}}).then(r => r.violations.map(v =>"
        " [v.impact, v.id, v.help, v.nodes.map(n => n.target.join(' '))]))"
    )
    return [
        f"{impact}: {id}: {says}: {len(where)} times, first {where[0]}"
        for impact, id, says, where in found
        if impact in ("serious", "critical")
    ]


class WidgetPage:
    """One widget, mounted on a page of its own, with the network off."""

    def __init__(self, browser, widget, folder, *, width=740, height=900, theme="light"):
        """Open the page and wait until the widget is there."""
        ground, ink = GROUNDS[theme]
        body = widget.to_html()
        file = Path(folder) / f"{widget.module_name}-{width}-{theme}.html"
        markup = page_module.markup(body)
        file.write_text(
            SHELL.format(theme=theme, ground=ground, ink=ink, body=body, markup=markup), encoding="utf-8"
        )
        self.widget = widget
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
        self.page = context.new_page()
        self.heard = listen(self.page)
        self.page.goto(file.as_uri())
        self.page.wait_for_selector(".kl-widget[data-mounted]", timeout=20_000)

    def close(self):
        """Close the page; it must have said nothing."""
        assert self.heard == []
        self.page.context.close()

    @property
    def state(self):
        """What the widget's model holds now."""
        names = json.dumps(list(self.widget.state))
        return self.page.evaluate(
            f"(() => {{ const m = document.querySelector('.kl-widget').model;"
            f" return Object.fromEntries({names}.map(n => [n, m.get(n)])) }})()"
        )

    def set(self, state):
        """Set the model as the reader's hands would."""
        self.page.evaluate("state => document.querySelector('.kl-widget').model.update(state)", state)

    def compute(self, states):
        """Return the numbers of the module for each state: one call, in the browser."""
        name = json.dumps(self.widget.module_name)
        return self.page.evaluate(
            f"async states => {{ const m = await ({MODULE})({name}); return states.map(m.compute) }}", states
        )

    def python(self, state):
        """Return the numbers of the package for a state."""
        self.widget.state = state
        return self.widget.numbers

    def agrees(self, states, *, rtol=1e-6, atol=1e-12, loose=None):
        """Assert that browser and package have the same numbers; `loose` maps a name to (rtol, atol)."""
        for state, theirs in zip(states, self.compute(states), strict=True):
            ours = self.python(state)
            assert set(ours) == set(theirs), set(ours) ^ set(theirs)
            for name, number in ours.items():
                tolerance = (loose or {}).get(name, (rtol, atol))
                assert close(number, theirs[name], *tolerance), (name, number, theirs[name], state)

    def shows(self, states):
        """Assert that every number the widget writes is that of the package, in each state."""
        for state in states:
            self.set(state)
            ours = self.python(state)
            written = self.page.evaluate(
                "[...document.querySelectorAll('[data-number]')].map(n => [n.dataset.number,"
                " Number(n.dataset.digits ?? 3), n.textContent])"
            )
            assert written, "mark each number that is written: <output data-number='kl'>"
            for key, digits, text in written:
                number = ours
                for part in key.split("."):
                    number = number[int(part) if isinstance(number, list) else part]
                value = parse(text)
                half = max(0.51 * 10**-digits, 0.0051 * abs(number)) if "·" in text else 0.51 * 10**-digits
                assert close(number, value, 0, half), (key, number, text, state)

    def grip(self, label):
        """Return the control that a screen reader calls so."""
        return self.page.get_by_role("slider", name=label, exact=True)

    def drag(self, label, dx, dy):
        """Drag a control, or any locator, by so many pixels of the screen."""
        target = self.grip(label) if isinstance(label, str) else label
        target.scroll_into_view_if_needed()
        box = target.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for part in range(1, 9):
            self.page.mouse.move(x + dx * part / 8, y + dy * part / 8)
        self.page.mouse.up()

    def press(self, label, *keys):
        """Give a control the focus and press keys."""
        self.grip(label).focus()
        for key in keys:
            self.page.keyboard.press(key)

    def times(self, states):
        """Return milliseconds from an input to the new layout, one for each state."""
        return self.page.evaluate(
            """states => states.map(state => {
                const place = document.querySelector('.kl-widget'), start = performance.now();
                place.model.update(state);
                place.getBoundingClientRect();
                return performance.now() - start; })""",
            states,
        )

    def axe(self):
        """Return what axe-core finds serious or critical."""
        return violations(self.page)


def close(a, b, rtol, atol):
    """Whether two numbers, or two nested lists or dicts of them, are equal up to rounding."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(close(a[k], b[k], rtol, atol) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(close(x, y, rtol, atol) for x, y in zip(a, b, strict=True))
    if a is None or b is None or isinstance(a, bool | str):
        return a == b
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    if math.isinf(a) or math.isinf(b):  # no finite number is near them
        return a == b
    return abs(a - b) <= atol + rtol * abs(a)


def parse(text):
    """Return the number that kit.js's format() wrote."""
    words = {"∞": math.inf, "−∞": -math.inf, "undefined": math.nan}
    if text in words:
        return words[text]
    mantissa, _, power = text.replace("−", "-").partition("·10")
    return float(mantissa) * 10.0 ** int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")) or 0)
