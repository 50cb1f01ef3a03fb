"""Step sizes and bounds of the theorems, one function each, the theorem in its docstring.

Tags say where a formula comes from: *stated* in the paper; *read in code* of the authors;
*reconstructed* from the proofs and checked numerically; *derived here*, in no paper we know;
*from memory*: check it before you cite it.
"""

from fedef.theory.an_gd import (
    AnGdRate,
    an_gd_descent,
    an_gd_iterations,
    an_gd_rate,
    an_gd_stationary_step_size,
    an_gd_step_size,
)
from fedef.theory.compression import error_ratio, participating_alpha
from fedef.theory.ef21 import (
    ef21_bound,
    ef21_pp_best_step_size,
    ef21_pp_step_size,
    ef21_step_size,
)
from fedef.theory.norm_ef21 import (
    norm_ef21_bound,
    norm_ef21_constant,
    norm_ef21_descent,
    norm_ef21_gamma0,
    norm_ef21_lyapunov,
    norm_ef21_pp_bound,
    norm_ef21_pp_gamma0,
    norm_ef21_single_node_bound,
    norm_ef21_single_node_step,
)
from fedef.theory.norm_sgdm import NormSgdm, norm_sgdm_gamma0, norm_sgdm_parameters

__all__ = [
    "AnGdRate",
    "NormSgdm",
    "an_gd_descent",
    "an_gd_iterations",
    "an_gd_rate",
    "an_gd_stationary_step_size",
    "an_gd_step_size",
    "ef21_bound",
    "ef21_pp_best_step_size",
    "ef21_pp_step_size",
    "ef21_step_size",
    "error_ratio",
    "norm_ef21_bound",
    "norm_ef21_constant",
    "norm_ef21_descent",
    "norm_ef21_gamma0",
    "norm_ef21_lyapunov",
    "norm_ef21_pp_bound",
    "norm_ef21_pp_gamma0",
    "norm_ef21_single_node_bound",
    "norm_ef21_single_node_step",
    "norm_sgdm_gamma0",
    "norm_sgdm_parameters",
    "participating_alpha",
]
