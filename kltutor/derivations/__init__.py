"""Sympy derivations, proved step by step each time they are built. `engine` says what counts as a proof."""

from kltutor.derivations.basics import (
    chain_rule,
    fisher_hessians,
    gibbs_inequality,
    log_tangent,
    pinsker_bernoulli,
)
from kltutor.derivations.engine import Derivation, DerivationError
from kltutor.derivations.estimators import (
    covariance_with_control_variate,
    k3_is_nonnegative,
    k3_is_unbiased,
    only_coef_one_is_nonnegative,
    taylor_orders,
    variance_of_k3,
)
from kltutor.derivations.gaussian import gaussian_moments

__all__ = [
    "Derivation",
    "DerivationError",
    "chain_rule",
    "covariance_with_control_variate",
    "fisher_hessians",
    "gaussian_moments",
    "gibbs_inequality",
    "k3_is_nonnegative",
    "k3_is_unbiased",
    "log_tangent",
    "only_coef_one_is_nonnegative",
    "pinsker_bernoulli",
    "taylor_orders",
    "variance_of_k3",
]
