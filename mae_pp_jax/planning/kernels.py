"""FLOPs of the custom (Pallas) kernels of a train step, counted from their source; the compiler does not know them."""

import math
from collections.abc import Mapping

from jax.extend import core as jax_core

Shapes = tuple[tuple[int, ...], ...]  # of a call's operands and then its results: what source and program share


def flops(traced: jax_core.ClosedJaxpr) -> dict[Shapes, float]:
    """FLOPs of the matrix products in one call of each Pallas kernel of a program, by the shapes it is called with.

    Every branch of a kernel counts, on every cell of its grid, so this is an upper bound; a loop whose length is not
    known when it is traced counts once. Kernels called with the same shapes count as the largest of them.
    """
    found: dict[Shapes, float] = {}
    _find(traced.jaxpr, found)
    return found


def _find(jaxpr, found: dict[Shapes, float]) -> None:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            shapes = tuple(tuple(v.aval.shape) for v in (*equation.invars, *equation.outvars))
            cells = math.prod(equation.params["grid_mapping"].grid)
            found[shapes] = max(found.get(shapes, 0.0), cells * _dots(equation.params["jaxpr"]))
        for inner in _inner(equation.params):
            _find(inner, found)


def _dots(jaxpr) -> float:
    """FLOPs of the matrix products of a jaxpr; loops count as often as they run, all branches together."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(_dots(inner) for inner in _inner(equation.params))
    return total


def _inner(params: Mapping):
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jax_core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jax_core.Jaxpr):
                yield item
