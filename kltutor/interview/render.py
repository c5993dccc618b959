r"""The bank's text in three forms: for a terminal, for MathJax without macros, and for pages that have them.

The bank writes formulas between $ or $$, with the macros of the book, such as `\KL{p}{q}`; code stands
between backticks, and a new line starts a paragraph. A page of the book takes that as it is.
"""

import html
import re

from kltutor.claims.text import plain

MACROS = {  # those of book/_config.yml
    "KL": (r"\operatorname{KL}\!\left(#1\,\middle\|\,#2\right)", 2),
    "E": (r"\mathbb{E}", 0),
    "Var": (r"\operatorname{Var}", 0),
    "Cov": (r"\operatorname{Cov}", 0),
    "pol": (r"\pi_{\theta}", 0),
    "refp": (r"\pi_{\mathrm{ref}}", 0),
}
SPOKEN = {  # shorter ones, which `plain` can write
    "KL": (r"\mathrm{KL}(#1 \Vert #2)", 2),
    "E": (r"\mathrm{E}", 0),
    "Var": (r"\mathrm{Var}", 0),
    "Cov": (r"\mathrm{Cov}", 0),
    "pol": (r"\pi", 0),
    "refp": (r"\mathrm{ref}", 0),
}
UNICODE = {
    r"(?<![A-Za-z\d)}\]] )(?<!\^\{)-(?=[\d\\(a-zA-Z])": "−",
    r"\\(?:left|right|middle)(?![a-z])": "",
    r"\\hat\{r\}": "r̂",
    r"\\leftarrow": " ← ",
    r"\\[|]": "‖",
    r"\\quad": "   ",
    r"\\,|\\!": " ",
    r"_\{([^{}]* [^{}]*)\}": r"[\1]",
    r"\\log (\\frac\{(?:[^{}]|\{[^{}]*\})*\}\{(?:[^{}]|\{[^{}]*\})*\})": r"\\log(\1)",
    r"\\(log|exp|max|min|arg|Var|Cov)(?![A-Za-z^_(])": r" \\text{\1} ",
    r"\\(log|exp|max|min|arg|Var|Cov)(?=[\^_(])": r" \\text{\1}",
}
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)


def expand(tex: str, macros: dict[str, tuple[str, int]] = MACROS) -> str:
    r"""Return a formula with the macros of the book written out.

    Raises:
        ValueError: a macro lacks an argument in braces, or braces do not match.

    Example:
        >>> print(expand(r"\E_{\pol}[\KL{p}{q_{1}}]"))
        \mathbb{E}_{\pi_{\theta}}[\operatorname{KL}\!\left(p\,\middle\|\,q_{1}\right)]
    """
    found = re.search(rf"\\({'|'.join(macros)})(?![A-Za-z])", tex)
    if found is None:
        return tex
    body, count = macros[found[1]]
    rest = tex[found.end() :]
    for number in range(1, count + 1):
        argument, rest = _braced(rest.lstrip(), tex)
        body = body.replace(f"#{number}", expand(argument, macros))
    return tex[: found.start()] + body + expand(rest, macros)


def _braced(text: str, whole: str) -> tuple[str, str]:
    """Return what stands in the braces that open the text, and what follows them."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            if i == 0:
                break
            return text[1:i], text[i + 1 :]
    raise ValueError(f"an argument in braces is expected after a macro of {whole!r}.")


def formulas(text: str) -> tuple[str, ...]:
    """Return the formulas of a text, without their dollar signs and with the macros."""
    return tuple(display or inline for display, inline in FORMULA.findall(text))


def terminal(text: str) -> str:
    r"""Return a text in plain Unicode, one line a paragraph or displayed formula.

    Example:
        >>> print(terminal(r"So $\KL{\pol}{\refp} = \E_{\pol}[k_1]$; see `expm1`. $$k_3 = w - 1 - \log w.$$"))
        So KL(π ‖ ref) = Eπ[k1]; see expm1.
            k3 = w − 1 − log w.
    """

    def written(match: re.Match[str]) -> str:
        tex = expand(match[1] or match[2], SPOKEN)
        for pattern, replacement in UNICODE.items():
            tex = re.sub(pattern, replacement, tex)
        line = plain(f"${' '.join(tex.split())}$")
        line = re.sub(r"([(\[−]) | (?=[)\],.;])", r"\1", line).replace(" - ", " − ")
        return f"\n    {line}\n" if match[1] else line

    lines = FORMULA.sub(written, text).replace("`", "").split("\n")
    return "\n".join(line if line.startswith("    ") else line.strip() for line in lines if line.strip())


def mathjax(text: str) -> str:
    r"""Return a text as HTML with its formulas between \( \) or \[ \] and without macros, as Anki wants them.

    Example:
        >>> print(mathjax(r"If $p < q$, `log(p)` and $\E$."))
        <p>If \(p &lt; q\), <code>log(p)</code> and \(\mathbb{E}\).</p>
    """

    def written(match: re.Match[str]) -> str:
        return rf"\[{expand(match[1])}\]" if match[1] else rf"\({expand(match[2])}\)"

    page = FORMULA.sub(written, html.escape(text, quote=False))
    page = re.sub(r"`([^`]*)`", r"<code>\1</code>", page)
    return "".join(f"<p>{paragraph}</p>" for paragraph in page.split("\n"))
