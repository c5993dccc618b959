"""The widgets of a page that has no kernel: what to add to its HTML so that they run there.

Nothing is fetched. A page holds the source of each module it needs once, as text, and a module is run when
its widget comes near the screen.
"""

import re

from kltutor.widgets.base import HERE, source, style

PLACE = re.compile(r'<div class="kl-widget" data-widget="(\w+)"')


def names(body: str) -> list[str]:
    """Return which widgets an HTML text has places for, each once and in order."""
    return list(dict.fromkeys(PLACE.findall(body)))


def markup(body: str) -> str:
    """Return what an HTML text needs in addition for its widgets to run; nothing if it has none.

    Raises:
        ValueError: a source holds what would end a script element.
    """
    found = names(body)
    if not found:
        return ""
    shared = (HERE / "kit.css").read_text(encoding="utf-8")
    sheets = [shared, *(style(name).removeprefix(shared) for name in found)]
    parts = [f"<style>{''.join(sheets)}</style>"]
    for name in found:
        text = source(name)
        if re.search(r"</script|<!--", text, re.IGNORECASE):
            raise ValueError(
                f"{name}: a script element cannot hold </script or <!--; write them in two parts."
            )
        parts.append(f'<script type="text/plain" id="kl-source-{name}">{text}</script>')
    parts.append(f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>")
    return "\n".join(parts)
