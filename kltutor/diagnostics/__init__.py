"""What went wrong in a training run, from what it logged: read a log, diagnose it, draw the evidence."""

from kltutor.diagnostics.diagnosis import diagnose
from kltutor.diagnostics.log import COLUMNS, Log
from kltutor.diagnostics.picture import plot
from kltutor.diagnostics.presets import PRESETS
from kltutor.diagnostics.reading import read_log
from kltutor.diagnostics.remedies import HEALTHY, MODES
from kltutor.diagnostics.report import Finding, Report

__all__ = [
    "COLUMNS",
    "HEALTHY",
    "MODES",
    "PRESETS",
    "Finding",
    "Log",
    "Report",
    "diagnose",
    "plot",
    "read_log",
]
