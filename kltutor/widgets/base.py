"""What every widget is in Python: traits that are set, numbers that follow from them, and one HTML form.

The numbers are computed here, by the package, and again in the browser by the widget's module, so that a
static page needs no kernel. Tests hold the two together.
"""

import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

HERE = Path(__file__).parent
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./kit\.js";\n', re.MULTILINE)


class StateError(traitlets.TraitError, ValueError):
    """A state that a widget cannot be in. The message names the trait, what came and what is expected."""


class Real(traitlets.TraitType[float, float]):
    """One finite number from `low` to `high`."""

    def __init__(self, default: float, low: float, high: float, **metadata: Any) -> None:
        """Give the trait its first value and its bounds."""
        self.low, self.high = low, high
        super().__init__(default, **metadata)
        self.tag(sync=True, state=True)

    def validate(self, obj: Any, value: Any) -> float:
        """Return the value as a float, or raise."""
        return real(self.name or "value", value, self.low, self.high)


class Whole(Real):
    """One whole number from `low` to `high`."""

    def validate(self, obj: Any, value: Any) -> int:
        """Return the value as an int, or raise."""
        number = super().validate(obj, value)
        if not number.is_integer():
            raise StateError(f"{self.name} is {value!r}; a whole number is expected.")
        return int(number)


class Reals(traitlets.TraitType[tuple[float, ...], Sequence[float]]):
    """A tuple of finite numbers from `low` to `high`; a tuple, so that changing one entry is not silent."""

    def __init__(self, default: Sequence[float], low: float, high: float, **metadata: Any) -> None:
        """Give the trait its first value and the bounds of every entry."""
        self.low, self.high = low, high
        super().__init__(tuple(default), **metadata)
        self.tag(sync=True, state=True)

    def validate(self, obj: Any, value: Any) -> tuple[float, ...]:
        """Return the values as a tuple of floats, or raise."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise StateError(f"{self.name} is {value!r}; a list of numbers is expected.")
        return tuple(real(f"{self.name}[{i}]", x, self.low, self.high) for i, x in enumerate(value))


class Words(traitlets.TraitType[tuple[str, ...], Sequence[str]]):
    """A tuple of names, to be shown."""

    def __init__(self, default: Sequence[str], **metadata: Any) -> None:
        """Give the trait its first value."""
        super().__init__(tuple(default), **metadata)
        self.tag(sync=True, state=True)

    def validate(self, obj: Any, value: Any) -> tuple[str, ...]:
        """Return the names as a tuple, or raise."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise StateError(f"{self.name} is {value!r}; a list of names is expected.")
        if not all(isinstance(word, str) for word in value):
            raise StateError(f"{self.name} is {value!r}; names are expected.")
        return tuple(value)


class Choice(traitlets.TraitType[str, str]):
    """One of a few names."""

    def __init__(self, default: str, options: Sequence[str], **metadata: Any) -> None:
        """Give the trait its first value and all that it may have."""
        self.options = tuple(options)
        super().__init__(default, **metadata)
        self.tag(sync=True, state=True)

    def validate(self, obj: Any, value: Any) -> str:
        """Return the name, or raise."""
        if not isinstance(value, str) or value not in self.options:
            raise StateError(f"{self.name} is {value!r}; expected one of {', '.join(self.options)}.")
        return value


class Flag(traitlets.TraitType[bool, bool]):
    """True or False."""

    def __init__(self, default: bool, **metadata: Any) -> None:
        """Give the trait its first value."""
        super().__init__(default, **metadata)
        self.tag(sync=True, state=True)

    def validate(self, obj: Any, value: Any) -> bool:
        """Return the value, or raise."""
        if not isinstance(value, bool):
            raise StateError(f"{self.name} is {value!r}; True or False is expected.")
        return value


class Number:
    """A number that follows from the state: `widget.kl` is `widget.numbers["kl"]`, and cannot be set."""

    def __init__(self, says: str) -> None:
        """Say what the number is, and its unit."""
        self.__doc__ = says

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the name."""
        self.name = name

    def __get__(self, widget: Any, owner: type) -> Any:
        """Compute it."""
        return self if widget is None else widget.numbers[self.name]

    def __set__(self, widget: Any, value: object) -> None:
        """Refuse."""
        names = ", ".join(widget.state)
        raise AttributeError(f"{self.name} follows from the state and cannot be set; set one of {names}.")


class Widget(anywidget.AnyWidget):
    """A widget whose module is the JavaScript file beside its Python file.

    In a running notebook it is live. In a built page the same module runs without a kernel, from the state
    that its HTML form carries.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class its module and its style."""
        if "_esm" not in cls.__dict__:  # anywidget derives once more, to make traits of the two
            cls.module_name = cls.__module__.rpartition(".")[2]
            cls._esm, cls._css = source(cls.module_name), style(cls.module_name)
        super().__init_subclass__(**kwargs)

    module_name: str

    def __init__(self, **state: Any) -> None:
        """Start from the default state, less what is given."""
        known = sorted(self.class_trait_names(state=True))
        for name in state:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__} has no state {name!r}; expected some of {', '.join(known)}."
                )
        super().__init__(**state)
        self.check()

    def __setattr__(self, name: str, value: object) -> None:
        """Set a trait; a misspelt one is an error."""
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}; set one of {', '.join(self.state)}."
            )
        super().__setattr__(name, value)

    def check(self) -> None:
        """Raise StateError where single values are fine and do not go together."""

    @property
    def state(self) -> dict[str, Any]:
        """Everything the widget shows follows from this; JSON can hold it."""
        return {name: getattr(self, name) for name in sorted(self.trait_names(state=True))}

    @state.setter
    def state(self, values: dict[str, Any]) -> None:
        """Set several traits at once, or none if they do not go together."""
        unknown = sorted(set(values) - set(self.state))
        if unknown:
            raise StateError(f"state has {', '.join(unknown)}; expected some of {', '.join(self.state)}.")
        before = self.state
        with self.hold_sync(), self.hold_trait_notifications():
            try:
                for name, value in values.items():
                    setattr(self, name, value)
                self.check()
            except StateError:
                for name, value in before.items():
                    setattr(self, name, value)
                raise

    @property
    def numbers(self) -> dict[str, Any]:
        """What follows from the state, computed by the package: floats and lists of floats."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Name the class and the state."""
        state = ", ".join(f"{name}={value!r}" for name, value in self.state.items())
        return f"{type(self).__name__}({state})"

    def to_html(self) -> str:
        """Return the form that a page without a kernel shows; `page.markup` makes it run there."""
        state = html.escape(json.dumps(self.state, ensure_ascii=False))
        return (
            f'<div class="kl-widget" data-widget="{self.module_name}" data-state="{state}">'
            '<p class="kl-fallback">This can be played with in the built book and, once its cell has run, '
            "in a notebook. The figure below shows its first state.</p></div>"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the live view and, for whoever cannot have it, the HTML form."""
        live, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**live, "text/plain": repr(self), "text/html": self.to_html()}, metadata


def real(name: str, value: Any, low: float, high: float) -> float:
    """Return a finite number from low to high as a float, or raise StateError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise StateError(f"{name} is {value!r}; a number from {low:g} to {high:g} is expected.")
    return float(value)


def source(name: str) -> str:
    """Return a widget's JavaScript as one module: what all share, then its own file."""
    own = (HERE / f"{name}.js").read_text(encoding="utf-8")
    if len(IMPORT.findall(own)) != 1:
        raise ValueError(f'{name}.js must import once from "./kit.js", as import {{ … }} from "./kit.js";')
    shared = (HERE / "kit.js").read_text(encoding="utf-8")
    return re.sub(r"^export ", "", shared, flags=re.MULTILINE) + IMPORT.sub("", own)


def style(name: str) -> str:
    """Return the style that all share and, where there is a file for it, a widget's own."""
    own = HERE / f"{name}.css"
    shared = (HERE / "kit.css").read_text(encoding="utf-8")
    return shared + (own.read_text(encoding="utf-8") if own.exists() else "")
