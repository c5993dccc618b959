"""KL regularisation in RLHF, checked against exact ground truth.

The numerics load at once. Symbolic derivations, the claims ledger and figures load when first used.
"""

from importlib import import_module
from types import ModuleType

from jaxtyping import install_import_hook

# Signatures state shapes; this enforces them in every module loaded after it. An int may pass as a float.
install_import_hook("kltutor", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from kltutor import exact, tasks
from kltutor.divergences import alpha_divergence, chi2, gaussian_kl, hellinger2, jeffreys, js, kl, tv
from kltutor.estimators import control_variate, full_vocab_kl, k1, k2, k3
from kltutor.fits import GaussianFit, fit_alpha, fit_forward, fit_reverse, mixture_logp
from kltutor.masking import last_action, masked_mean, masked_sum, reduce, token_logps
from kltutor.moments import Moments, estimator_moments, gaussian_moments, optimal_coef
from kltutor.optimum import optimal_policy
from kltutor.tasks import TabularPolicy, Task

__version__ = "0.1.0"

__all__ = [
    "GaussianFit",
    "Moments",
    "TabularPolicy",
    "Task",
    "alpha_divergence",
    "chi2",
    "claims",
    "control_variate",
    "derivations",
    "estimator_moments",
    "exact",
    "figures",
    "fit_alpha",
    "fit_forward",
    "fit_reverse",
    "full_vocab_kl",
    "gaussian_kl",
    "gaussian_moments",
    "hellinger2",
    "jeffreys",
    "js",
    "k1",
    "k2",
    "k3",
    "kl",
    "last_action",
    "masked_mean",
    "masked_sum",
    "mixture_logp",
    "optimal_coef",
    "optimal_policy",
    "reduce",
    "tasks",
    "token_logps",
    "tv",
]


def __getattr__(name: str) -> ModuleType:
    """Load the parts that need sympy or matplotlib when they are first asked for."""
    if name in ("claims", "derivations", "figures"):
        return import_module(f"kltutor.{name}")
    raise AttributeError(f"module 'kltutor' has no attribute {name!r}")
