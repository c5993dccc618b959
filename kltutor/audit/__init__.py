"""The KL auditor: what a function of log-probabilities estimates, and which gradient it gives as a loss.

It is called with all completions of worlds small enough to list, and what it gives on average is compared
with what is known. Nothing is sampled, and nothing is read from its name.
"""

from kltutor.audit.checking import check
from kltutor.audit.padding import Padding
from kltutor.audit.profile import Profile
from kltutor.audit.verdict import GRADIENTS, VALUES, Counterexample, Reading, Verdict

__all__ = ["GRADIENTS", "VALUES", "Counterexample", "Padding", "Profile", "Reading", "Verdict", "check"]
