"""KL regularisation in RLHF, checked against exact ground truth.

The numerics load at once. Symbolic derivations, the claims ledger, figures and widgets load when first used.
"""

from importlib import import_module
from types import ModuleType

from jaxtyping import install_import_hook

# Signatures state shapes; this enforces them in every module loaded after it. An int may pass as a float.
install_import_hook("kltutor", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from kltutor import atlas, exact, tasks
from kltutor.audit import Verdict, check
from kltutor.controllers import PIDBeta, PPOPenaltyBeta, UnreachableTargetWarning, ZieglerBeta
from kltutor.divergences import alpha_divergence, chi2, gaussian_kl, hellinger2, jeffreys, js, kl, tv
from kltutor.estimators import control_variate, full_vocab_kl, k1, k2, k3
from kltutor.fits import GaussianFit, fit_alpha, fit_forward, fit_reverse, mixture_logp
from kltutor.masking import last_action, masked_mean, masked_sum, reduce, token_logps
from kltutor.model import GPTShape, TinyGPT, ValueHead
from kltutor.moments import Moments, estimator_moments, gaussian_moments, optimal_coef
from kltutor.optimum import (
    frontier,
    implicit_reward,
    optimal_policy,
    rational_tilt,
    regularised_value,
)
from kltutor.overoptimization import GoldCurve, OveroptimizationMonitor, fit_gold
from kltutor.pairs import all_pairs, sample_pairs
from kltutor.placement import gae, importance_weight, kl_in_reward, kl_loss, kl_terms
from kltutor.policy_gradient import (
    dr_grpo_advantages,
    group_advantages,
    grpo_loss,
    ppo_clip_loss,
    reinforce,
    rloo_advantages,
)
from kltutor.preference import (
    bradley_terry,
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    preference_metrics,
    simpo_loss,
)
from kltutor.proxy import fit_proxy
from kltutor.sampling import Sample, completion_logps, sample
from kltutor.schedules import AnnealedBeta, Controller, FixedBeta
from kltutor.selection import best_of_n, best_of_n_kl, best_of_n_kl_bound
from kltutor.tasks import TabularPolicy, Task

__version__ = "0.1.0"

__all__ = [
    "AnnealedBeta",
    "Controller",
    "FixedBeta",
    "GPTShape",
    "GaussianFit",
    "GoldCurve",
    "Moments",
    "OveroptimizationMonitor",
    "PIDBeta",
    "PPOPenaltyBeta",
    "Sample",
    "TabularPolicy",
    "Task",
    "TinyGPT",
    "UnreachableTargetWarning",
    "ValueHead",
    "Verdict",
    "ZieglerBeta",
    "all_pairs",
    "alpha_divergence",
    "atlas",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_kl_bound",
    "bradley_terry",
    "bugs",
    "check",
    "chi2",
    "claims",
    "completion_logps",
    "control_variate",
    "derivations",
    "dpo_loss",
    "dr_grpo_advantages",
    "estimator_moments",
    "exact",
    "figures",
    "fit_alpha",
    "fit_forward",
    "fit_gold",
    "fit_proxy",
    "fit_reverse",
    "frontier",
    "full_vocab_kl",
    "gae",
    "gaussian_kl",
    "gaussian_moments",
    "group_advantages",
    "grpo_loss",
    "hellinger2",
    "implicit_reward",
    "importance_weight",
    "interview",
    "ipo_loss",
    "jeffreys",
    "js",
    "k1",
    "k2",
    "k3",
    "katas",
    "kl",
    "kl_in_reward",
    "kl_loss",
    "kl_terms",
    "kto_loss",
    "kto_reference_point",
    "last_action",
    "masked_mean",
    "masked_sum",
    "mixture_logp",
    "optimal_coef",
    "optimal_policy",
    "orpo_loss",
    "ppo_clip_loss",
    "preference_metrics",
    "rational_tilt",
    "reduce",
    "regularised_value",
    "reinforce",
    "rloo_advantages",
    "sample",
    "sample_pairs",
    "simpo_loss",
    "tasks",
    "token_logps",
    "tv",
]


def __getattr__(name: str) -> ModuleType:
    """Load the parts that need sympy, matplotlib or anywidget when they are first asked for."""
    if name in ("bugs", "claims", "derivations", "figures", "interview", "katas", "widgets"):
        return import_module(f"kltutor.{name}")
    raise AttributeError(f"module 'kltutor' has no attribute {name!r}")
