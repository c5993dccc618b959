"""Widgets: pictures to play with, live in a notebook and without a kernel in the built book.

Each is a Python file and a JavaScript file of one name. Set its traits, read its numbers:

    w = kltutor.widgets.BetaSweep()
    w.beta = 0.1
    w.kl
"""

try:
    import anywidget as _  # noqa: F401
except ImportError as error:
    raise ImportError("kltutor.widgets needs anywidget; pip install 'kltutor[book]' brings it.") from error

from kltutor.widgets.beta_sweep import BetaSweep
from kltutor.widgets.controller_lab import ControllerLab
from kltutor.widgets.estimator_playground import EstimatorPlayground
from kltutor.widgets.kl_fit import KLFit
from kltutor.widgets.over_optimization import Overoptimization
from kltutor.widgets.placement_explorer import PlacementExplorer

__all__ = [
    "BetaSweep",
    "ControllerLab",
    "EstimatorPlayground",
    "KLFit",
    "Overoptimization",
    "PlacementExplorer",
]
