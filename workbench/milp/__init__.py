"""Mixed-integer linear models: build with named blocks, solve with any of four back-ends, explain infeasibility.

``min or max  c'x + c0   subject to   A x (<=, ==, >=) b,   l <= x <= u,   x_j integer for j in I``.

Symbols: x ``Variables`` (named blocks), A and b row blocks of ``Model.add``, l and u bounds, c'x + c0 the objective.
Back-ends: ``highs`` (SciPy's; the default), ``cbc`` (python-mip), ``gurobi`` (licence permitting), ``cpsat`` (OR-Tools,
integers only). Every returned point is checked against the model's own rows before anyone sees it.

A dual here is a shadow price: the *improvement* of the objective (down for min, up for max) per unit added to the
right-hand side; never negative for a ``<=`` row, never positive for a ``>=`` row.
"""

from workbench.milp.explain import Explanation, InfeasibleModel, explain_infeasible, require
from workbench.milp.expressions import Affine, Variables
from workbench.milp.model import Model, relax
from workbench.milp.solve import SOLVERS, Progress, Solution, missing_solvers, solve

__all__ = ["SOLVERS", "Affine", "Explanation", "InfeasibleModel", "Model", "Progress", "Solution", "Variables",
           "explain_infeasible", "missing_solvers", "relax", "require", "solve"]
