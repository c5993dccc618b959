"""The atlas of placements: where the mean gradient of each points, and how much one sample of it scatters.

A placement says which estimator acts, in the reward or in the loss, on each token or on the whole
sequence, on whose samples, and how stale samples are corrected. The true direction is that of
∇KL(policy ‖ ref) of the sequence. Everything is a sum over all completions; nothing is sampled.
"""

from kltutor.atlas.landmarks import Landmarks, landmarks, name_gradient, name_value
from kltutor.atlas.placements import PLACEMENTS, Placement, angle, field, mean_field, row_losses
from kltutor.atlas.readings import Reading, survey

__all__ = [
    "PLACEMENTS",
    "Landmarks",
    "Placement",
    "Reading",
    "angle",
    "field",
    "landmarks",
    "mean_field",
    "name_gradient",
    "name_value",
    "row_losses",
    "survey",
]
