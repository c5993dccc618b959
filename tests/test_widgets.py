"""What every widget promises: its names, its form without a kernel, and something for hands and ears."""

import html
import json
import re
import subprocess
import sys

import matplotlib.colors
import pytest
import traitlets
from widget_page import WidgetPage, listen

from kltutor import figures, widgets
from kltutor.widgets import page as page_module
from kltutor.widgets.base import HERE, IMPORT, Number, StateError, Widget, source, style

CLASSES = [getattr(widgets, name) for name in widgets.__all__]
NAMES = [widget.module_name for widget in CLASSES]
SHARED = {"kit", "page"}


def exported(text):
    return set(re.findall(r"^export (?:const|function) (\w+)", text, re.MULTILINE))


def own_source(name):
    return (HERE / f"{name}.js").read_text(encoding="utf-8")


# ---- names ---------------------------------------------------------------------------------------------


def test_every_module_has_a_class_and_every_class_a_module():
    assert {path.stem for path in HERE.glob("*.js")} == {*NAMES, *SHARED}
    assert {path.stem for path in HERE.glob("*.css")} <= {*NAMES, "kit"}
    assert widgets.__all__ == sorted(widgets.__all__)


@pytest.mark.parametrize("widget", CLASSES, ids=NAMES)
def test_numbers_are_declared_described_and_plain(widget):
    found = widget().numbers
    declared = {name for name, value in vars(widget).items() if isinstance(value, Number)}
    assert set(found) == declared
    assert all(len(vars(widget)[name].__doc__) > 3 for name in declared)
    assert json.dumps(found)
    for name in declared:
        assert getattr(widget(), name) == found[name]
        with pytest.raises(AttributeError, match=f"{name} follows from the state"):
            setattr(widget(), name, 0.0)


@pytest.mark.parametrize("widget", CLASSES, ids=NAMES)
def test_the_state_is_what_has_help_and_survives_json(widget):
    w = widget()
    assert all(len(trait.help) > 3 for trait in w.traits(state=True).values())
    w.state = json.loads(json.dumps(w.state))
    assert w.state == widget().state
    assert set(w.state) & set(w.numbers) == set()


@pytest.mark.parametrize("widget", CLASSES, ids=NAMES)
def test_a_misspelt_name_is_an_error(widget):
    first = next(iter(widget().state))
    with pytest.raises(AttributeError, match=f"has no '{first}x'"):
        setattr(widget(), f"{first}x", 1.0)
    with pytest.raises(TypeError, match=f"has no state '{first}x'"):
        widget(**{f"{first}x": 1.0})
    with pytest.raises(StateError, match=f"{first}x"):
        widget().state = {f"{first}x": 1.0}


# ---- the form without a kernel ---------------------------------------------------------------------------


@pytest.mark.parametrize("widget", CLASSES, ids=NAMES)
def test_the_output_has_a_live_view_and_a_form_that_never_changes(widget):
    data, _ = widget()._repr_mimebundle_()
    again, _ = widget()._repr_mimebundle_()
    live = "application/vnd.jupyter.widget-view+json"
    assert data.pop(live) != again.pop(live)  # two models
    assert data == again
    assert set(data) == {"text/html", "text/plain"}
    place = re.search(r'data-widget="(\w+)" data-state="([^"]*)"', data["text/html"])
    assert place[1] == widget.module_name
    assert json.loads(html.unescape(place[2])) == json.loads(json.dumps(widget().state))
    assert page_module.names(data["text/html"]) == [widget.module_name]
    assert eval(data["text/plain"], {widget.__name__: widget}).state == widget().state


@pytest.mark.parametrize("name", NAMES)
def test_a_module_takes_from_the_kit_what_the_kit_has_and_needs_nothing_else(name):
    (taken,) = IMPORT.findall(own_source(name))
    taken = {word.strip() for word in taken.split(",") if word.strip()}
    assert taken <= exported(own_source("kit"))
    assert {word for word in taken if len(re.findall(rf"\b{word}\b", own_source(name))) < 2} == set()
    joined = source(name)
    assert not re.search(
        r"^import|^export (?!function compute\b|default \{ render \};)", joined, re.MULTILINE
    )
    assert len(re.findall(r"^export", joined, re.MULTILINE)) == 2
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)|fetch\(|setInterval|innerHTML(?! = markup)", joined
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_style_names_colours_only_where_it_names_roles(name):
    own = style(name).removeprefix((HERE / "kit.css").read_text(encoding="utf-8"))
    named = r"#[0-9a-f]{3,8}\b|rgba?\(|animation|transition"
    assert not re.search(named, own + own_source(name), re.IGNORECASE)


def test_a_page_holds_each_source_once_and_one_without_widgets_nothing():
    assert page_module.markup("<p>no widget here</p>") == ""
    twice = page_module.markup(2 * "".join(widget().to_html() for widget in CLASSES))
    for name in NAMES:
        assert twice.count(f'id="kl-source-{name}"') == 1
    assert twice.count("max-width: 46rem") == 1
    assert len(twice) < 60_000 + 40_000 * len(NAMES)  # a page has one or two, and 2 MB


def test_a_source_that_would_end_its_script_is_an_error(monkeypatch):
    body = CLASSES[0]().to_html()
    for bad in ("const a = '</script>'", "// <!-- "):
        monkeypatch.setattr(page_module, "source", lambda name, bad=bad: bad)
        with pytest.raises(ValueError, match="cannot hold"):
            page_module.markup(body)


def test_importing_the_package_does_not_import_the_widgets():
    code = (
        "import sys, kltutor; assert not {'anywidget', 'kltutor.widgets'} & set(sys.modules); kltutor.widgets"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_anywidget_the_error_says_what_to_install():
    code = "import sys; sys.modules['anywidget'] = None; import kltutor; kltutor.widgets"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kltutor[book]'" in done.stderr


# ---- colours ---------------------------------------------------------------------------------------------


def luminance(color):
    """Relative luminance of WCAG 2.2."""
    rgb = matplotlib.colors.to_rgb(color)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def themes():
    text = (HERE / "kit.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--kl-([\w-]+): (#\w+);", rules)) for rules in text.split("}")[:2])
    return light, dark


def test_light_is_the_palette_of_the_figures_and_dark_has_the_same_names():
    light, dark = themes()
    assert set(light) == set(dark)
    for role, look in figures.ROLES.items():
        assert light[role].lower() == look["color"].lower()
        assert light[f"{role}-text"].lower() == figures.TEXT.get(role, look["color"]).lower()


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_have_four_and_a_half_to_one_and_shapes_three(theme):
    colours = themes()[theme]
    for name, colour in colours.items():
        if name in ("ink", "quiet", "accent") or name.endswith("-text"):
            assert contrast(colour, colours["ground"]) >= 4.5, name
        elif name not in ("ground", "faint"):
            assert contrast(colour, colours["ground"]) >= 3, name


# ---- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def screens(chromium, tmp_path_factory):
    """Every widget on the two screens of the book's tests."""
    folder = tmp_path_factory.mktemp("pages")
    opened = {}

    def get(widget, theme):
        if (widget, theme) not in opened:
            size = {"light": (740, 900), "dark": (390, 844)}[theme]
            opened[widget, theme] = WidgetPage(
                chromium, widget(), folder, width=size[0], height=size[1], theme=theme
            )
        return opened[widget, theme]

    yield get
    for page in opened.values():
        page.close()


both = pytest.mark.parametrize("theme", ["light", "dark"])
every = pytest.mark.parametrize("widget", CLASSES, ids=NAMES)


@both
@every
def test_it_mounts_fits_and_has_its_parts(screens, widget, theme):
    page = screens(widget, theme).page
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator(".kl-fallback").count() == 0
    assert page.locator(".kl-try li button").count() == 3
    assert page.locator("details.kl-table table").count() == 1
    assert page.locator(".kl-formula [data-number]").count() > 0
    assert screens(widget, theme).state == json.loads(json.dumps(widget().state))


@both
@every
def test_axe_finds_nothing_serious(screens, widget, theme):
    page = screens(widget, theme)
    page.page.locator("details.kl-table").evaluate("d => { d.open = true }")
    assert page.axe() == []


@every
def test_every_control_has_a_name_and_answers_to_keys(screens, widget):
    page = screens(widget, "light")
    controls = page.page.locator("[role=slider], input[type=range]")
    assert controls.count() > 0
    labels = set()
    for i in range(controls.count()):
        page.set(json.loads(json.dumps(widget().state)))
        control = controls.nth(i)
        label = control.evaluate("c => c.getAttribute('aria-label') ?? c.labels[0].textContent")
        assert label.strip()
        assert label not in labels
        labels.add(label)
        before = page.state
        control.focus()
        assert control.evaluate("c => document.activeElement === c && c.matches(':focus-visible')")
        for key in ("ArrowUp", "ArrowDown", "ArrowDown"):
            page.page.keyboard.press(key)
            if page.state != before:
                break
        else:
            raise AssertionError(f"{label!r} answers to no arrow key")
        assert control.evaluate("c => document.activeElement === c")  # a redraw keeps the focus
        assert control.get_attribute("aria-valuetext")
    page.set(json.loads(json.dumps(widget().state)))


@every
def test_each_experiment_sets_up_a_state_that_python_accepts(screens, widget):
    page = screens(widget, "light")
    seen = []
    for i in range(3):
        page.page.locator(".kl-try button").nth(i).click()
        seen.append(page.state)
        assert page.python(page.state)
    assert len({json.dumps(state) for state in seen}) == 3
    page.set(json.loads(json.dumps(widget().state)))


@every
def test_what_was_set_is_still_there_after_scrolling_away_and_back(screens, widget):
    page = screens(widget, "light")
    page.page.locator(".kl-try button").nth(1).click()
    before = page.state
    page.page.evaluate("document.body.style.paddingBottom = '5000px'")
    for top in (5000, 0):
        page.page.evaluate(f"scrollTo(0, {top})")
        page.page.wait_for_timeout(100)
    assert page.state == before
    page.page.evaluate("document.body.style.paddingBottom = ''")
    page.set(json.loads(json.dumps(widget().state)))


@every
def test_a_handle_that_is_dragged_leaves_the_rest_of_the_page_to_the_finger(screens, widget):
    page = screens(widget, "dark").page
    actions = page.locator(".kl-draggable").evaluate_all(
        "all => all.map(n => getComputedStyle(n).touchAction)"
    )
    assert set(actions) <= {"none"}
    assert page.evaluate("getComputedStyle(document.querySelector('.kl-chart')).touchAction") == "auto"
    sizes = page.locator(".kl-handle .kl-reach").evaluate_all(
        "all => all.map(n => n.getBoundingClientRect().width)"
    )
    assert all(size >= 24 for size in sizes)


@every
def test_without_javascript_and_in_print_it_gives_way_to_the_figure(chromium, widget, tmp_path):
    shown = WidgetPage(chromium, widget(), tmp_path)
    shown.page.emulate_media(media="print")
    assert not shown.page.locator(".kl-widget").is_visible()
    file = next(tmp_path.glob("*.html"))
    shown.close()
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".kl-fallback").is_visible()
    context.close()


def test_a_module_that_fails_leaves_the_words_and_says_so(chromium, tmp_path):
    body = CLASSES[0]().to_html()
    broken = page_module.markup(body).replace(
        "export default { render };", "export default { render: null };"
    )
    (tmp_path / "broken.html").write_text(
        f"<html lang='en'><body>{body}{broken}</body></html>", encoding="utf-8"
    )
    page = chromium.new_page()
    heard = listen(page)
    page.goto((tmp_path / "broken.html").as_uri())
    page.wait_for_timeout(300)
    assert page.locator(".kl-fallback").is_visible()
    assert any("widget" in words for words in heard)
    page.close()


# ---- the base class ----------------------------------------------------------------------------------------


def test_a_state_that_fails_leaves_the_old_one():
    w = widgets.BetaSweep()
    before = w.state
    with pytest.raises(StateError):
        w.state = {"beta": 3.0, "ref": [0.5, 0.4, 0.05, 0.03, 0.01]}
    with pytest.raises(StateError):
        w.state = {"beta": 3.0, "log_scale": 2}
    assert w.state == before
    assert issubclass(StateError, ValueError)
    assert issubclass(StateError, traitlets.TraitError)


def test_setting_a_trait_is_seen_by_observers_and_sent_once(monkeypatch):
    w, seen, sent = widgets.BetaSweep(), [], []
    w.observe(lambda change: seen.append((change["name"], change["new"])), ["beta", "reward"])
    monkeypatch.setattr(type(w), "send_state", lambda self, key=None: sent.append(set(key)))
    w.state = {"beta": 0.5, "reward": [0.1, 0.2, 0.3, 0.4, 0.5]}
    assert dict(seen) == {"beta": 0.5, "reward": (0.1, 0.2, 0.3, 0.4, 0.5)}
    assert sent == [{"beta", "reward"}]


def test_source_wants_exactly_one_import(tmp_path, monkeypatch):
    from kltutor.widgets import base

    monkeypatch.setattr(base, "HERE", tmp_path)
    (tmp_path / "kit.js").write_text("export const a = 1;\n", encoding="utf-8")
    (tmp_path / "x.js").write_text('import { a } from "./kit.js";\nexport default { a };\n', encoding="utf-8")
    assert source("x") == "const a = 1;\nexport default { a };\n"
    (tmp_path / "x.js").write_text('import { a } from "elsewhere";\n', encoding="utf-8")
    with pytest.raises(ValueError, match="must import once"):
        source("x")


def test_a_widget_without_numbers_says_so():
    with pytest.raises(NotImplementedError):
        _ = Widget.numbers.fget(None)
