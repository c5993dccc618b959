"""The bug zoo as a web page: code with numbered lines, what one sees of it, and the answer, folded."""

import html
import inspect
import io
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from kltutor.audit import check
from kltutor.bugs import Bug, Code, get
from kltutor.bugs.curves import Curve

SUSPECTS: dict[str, tuple[str, ...]] = {
    "The KL is exactly 0 at every step": ("BUG-05", "BUG-15"),
    "The mean of the KL is below zero": ("BUG-02", "BUG-18", "BUG-01"),
    "The KL is above zero before the first step": ("BUG-12",),
    "The KL, or its k3, is 0 or a hair below it early in the run": ("BUG-13",),
    "The KL spikes, or its mean jumps about": ("BUG-11", "BUG-12", "BUG-14"),
    "The KL is not what an independent sum gives": (
        "BUG-01",
        "BUG-06",
        "BUG-09",
        "BUG-11",
        "BUG-16",
        "BUG-17",
    ),
    "The KL looks right, and beta makes no difference": ("BUG-19", "BUG-20", "BUG-24"),
    "The policy ends too far away": ("BUG-03", "BUG-25", "BUG-07", "BUG-28", "BUG-05"),
    "The policy stays too close": ("BUG-23",),
    "A larger beta makes it worse": ("BUG-22",),
    "Some tokens drift and are never brought back": ("BUG-08", "BUG-10"),
    "The KL and beta swing": ("BUG-04",),
    "The KL as a loss pulls another way than in the reward": ("BUG-21", "BUG-19"),
    "Advantages where there is nothing to prefer": ("BUG-27", "BUG-26"),
}


STYLE = """<style>
.exhibit { margin: 0.5rem 0 1.5rem; }
.exhibit .highlight pre { margin: 0; overflow-x: auto; font-size: 0.8rem; }
.exhibit .highlight .linenos { margin-right: 1em; user-select: none; }
.exhibit-row { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; align-items: flex-start; }
.exhibit figure { flex: 0 1 22rem; margin: 0.75rem 0 0; }
.exhibit figcaption { font-weight: 600; font-size: 0.9em; }
.exhibit figure img { width: 100% !important; max-width: 100% !important; margin: 0 !important; }
.exhibit details { flex: 1 1 14rem; margin-top: 0.75rem; min-width: 0; font-size: 0.95em; }
.exhibit details[open] { flex-basis: 100%; order: 2; }
.exhibit summary { cursor: pointer; font-weight: 600; }
.exhibit details p { margin: 0.6rem 0; }
table.suspects { width: 100%; border-collapse: collapse; }
.suspects th, .suspects td { padding: 0.35rem 0.75rem 0.35rem 0; text-align: left !important; }
.suspects th, .suspects td { border-bottom: 1px solid color-mix(in srgb, currentcolor 25%, transparent); }
.suspects td { white-space: normal; }
.suspects tbody th { font-weight: 400; white-space: normal; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(.exhibit, .suspects):has(pre, th) {
  padding: 0; background-color: transparent; color: inherit;
}
</style>"""
HARMLESS = " /:;=,.-_()!*+?@&'"  # may stand in a quoted data address as they are


def listing(bug: Bug) -> tuple[list[str], int]:
    """Return the broken code as lines, under a name that gives nothing away, and which one is wrong.

    Example:
        >>> from kltutor import bugs
        >>> lines, wrong = listing(bugs.get("BUG-11"))
        >>> lines[0], wrong, lines[wrong - 1]
        ('def suspect(logp, ref_logp):', 3, '    return torch.expm1(log_ratio) - log_ratio')
    """
    lines = [f"def suspect({', '.join(inspect.signature(bug.broken).parameters)}):", *_body(bug.broken)]
    return lines, [line.strip() for line in lines].index(bug.line) + 1


def exhibit(bug: Bug) -> str:
    """Return the code with numbered lines, the plot, and the answer, folded."""
    lines, wrong = listing(bug)
    numbers = bug.demonstrate()
    curve = bug.curve()
    caught = (
        f"{bug.quantity[0].upper()}{bug.quantity[1:]}: {number(numbers['broken'])}, "
        f"true is {number(numbers['truth'])}."
    )
    answer = [
        f"<p><strong>Line {wrong}.</strong> {_text(bug.title)} {_text(bug.why)}</p>",
        _coloured("\n".join(_change(bug)), "diff"),
        f"<p><strong>What catches it.</strong> {_text(caught)}{_text(audited(bug))}</p>",
        f"<p><strong>Cure.</strong> {_text(bug.cure)}</p>",
        f"<p><strong>Seen in</strong> {_link(bug.thread)}.</p>",
    ]
    plot = quote(draw(curve), safe=HARMLESS)
    return (
        f'<div class="exhibit">\n{_coloured(chr(10).join(lines), "python", numbered=True)}'
        f'<div class="exhibit-row"><figure><figcaption>{html.escape(curve.finding)}</figcaption>'
        f'<img alt="{html.escape(describe(curve))}" src="data:image/svg+xml,{plot}"></figure>\n'
        f"<details><summary>Which line is wrong?</summary>\n{''.join(answer)}</details></div></div>"
    )


def audited(bug: Bug) -> str:
    """Return what `kltutor.check` says of the broken code and not of the cured; empty if it judges neither.

    Example:
        >>> from kltutor import bugs
        >>> audited(bugs.get("BUG-02"))
        ' `kltutor.check` says: The mean of suspect on fresh samples is -KL(π‖ref).'
        >>> audited(bugs.get("BUG-04"))
        ''
    """
    if bug.returns is None:
        return ""
    said = []
    for code in (bug.broken, bug.cured):
        verdict = check(code, inputs=bug.inputs, returns=bug.returns)
        said.append(re.split(r"(?<=\.) (?=[A-Z])", verdict.words.replace(verdict.name, "suspect")))
    found = [sentence for sentence in said[0] if sentence not in said[1]]
    more = ["One update later", "Counterexample", "In float32"]  # true, and more than a reader needs here
    if any("suspect" in sentence for sentence in found):  # else the news is in one of these
        more += ["One completion scatters", "Near 0", "Rounding", "A nan or inf"]
    found = [sentence for sentence in found if not sentence.startswith(tuple(more))]
    return f" `kltutor.check` says: {' '.join(found)}"


def suspects() -> str:
    """Return the table from what one sees to the bugs that may be behind it, each a link to its exhibit."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(seen)}</th><td>{", ".join(map(_anchor, ids))}</td></tr>\n'
        for seen, ids in SUSPECTS.items()
    )
    head = '<tr><th scope="col">What one sees</th><th scope="col">Suspects</th></tr>'
    return f'{STYLE}<table class="suspects"><thead>{head}</thead><tbody>\n{rows}</tbody></table>'


def draw(curve: Curve) -> str:
    """Return the plot of a curve as SVG, its text as text: a fifth of the size, for there are many."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    from kltutor import figures

    looks: dict[str, dict[str, Any]] = {
        "cured": dict(figures.line("policy")),
        "broken": dict(figures.line("optimum")),
    }
    small = {"font.size": 9, "axes.labelsize": 9, "svg.fonttype": "none"}
    with plt.rc_context(figures.STYLE | small):
        figure, ax = plt.subplots(figsize=(3.6, 2.4), layout="constrained")
        for name, look in looks.items():
            ax.plot(curve.x, getattr(curve, name), label=name, **look)
        ax.set_xscale(curve.plot.x_scale)
        ax.set_yscale(curve.plot.y_scale)
        if curve.plot.x_scale == "log" and curve.x[-1] < 20 * curve.x[0]:  # else no tick might have a number
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel=curve.plot.x, ylabel=curve.plot.y.replace(" [", "\n["))
        ax.legend(fontsize=8)
        file = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=none)
        plt.close(figure)
    _, start, rest = file.getvalue().partition("<svg")
    return re.sub(r"\s*\n\s*", " ", start + rest)


def describe(curve: Curve) -> str:
    """Return a curve in words, for those who do not see it.

    Example:
        >>> from kltutor import bugs
        >>> describe(bugs.get("BUG-24").curve()).partition(": ")[2]
        'broken from 3.57 to 3.57, cured from 0.56 to 0.0115.'
    """
    y = curve.plot.y[0].upper() + curve.plot.y[1:]
    return (
        f"{curve.finding}. {y} against {curve.plot.x}, {_course(curve.x)}: broken {_course(curve.broken)}, "
        f"cured {_course(curve.cured)}."
    )


def number(value: float) -> str:
    """Return a number with three digits, and rounding as 0.

    Example:
        >>> number(1e-17), number(-2.34567), number(59873.0)
        ('0', '-2.35', '59900')
    """
    if abs(value) < 1e-6:
        return "0"
    digits = f"{value:.3g}"
    return f"{float(digits):.0f}" if abs(value) >= 999.5 else digits


def _course(values: tuple[float, ...]) -> str:
    ends, extremes = (values[0], values[-1]), (min(values), max(values))
    if sorted(ends) == list(extremes):
        return f"from {number(ends[0])} to {number(ends[1])}"
    low, high = map(number, extremes)
    return f"from {number(ends[0])} to {number(ends[1])}, between {low} and {high}"


def _body(code: Code) -> list[str]:
    source = inspect.getsource(code)
    return [line for line in source.split('"""')[-1].splitlines() if line.strip()]


def _change(bug: Bug) -> Iterable[str]:
    before = [line.strip() for line in _body(bug.broken)]
    after = [line.strip() for line in _body(bug.cured)]
    if not bug.cured.__module__.startswith("kltutor.bugs"):
        call = ", ".join(inspect.signature(bug.cured).parameters)
        return [f"- {bug.line}", f"+ kltutor.{bug.cured.__name__}({call})"]
    return [f"- {line}" for line in before if line not in after] + [
        f"+ {line}" for line in after if line not in before
    ]


def _coloured(text: str, language: str, *, numbered: bool = False) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    formatter = HtmlFormatter(linenos="inline" if numbered else False)
    code = str(highlight(text, get_lexer_by_name(language), formatter))
    return code.replace("<pre>", '<pre tabindex="0">')  # it scrolls on a phone, so keys must reach it


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _link(thread: str) -> str:
    repository, issue = thread.split("#")
    return f'<a href="https://github.com/{repository}/issues/{issue}">{html.escape(thread)}</a>'


def _anchor(id: str) -> str:
    return f'<a href="#{id.lower()}">{get(id).id}</a>'
