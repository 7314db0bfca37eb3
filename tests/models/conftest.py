"""Parameters for tests of models, and quick compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import functional
from mae_pp_jax.models import positions


@pytest.fixture(scope="session")
def random_params():
    """Draws parameters of a model away from their initial zeros and ones; position tables stay sin-cos, of a square
    `grid` where none is given.

    Drawn in NumPy, because compiling a random draw for each shape would take longer than the tests.
    """

    def draw(model, seed=0, grid=None):
        rng = np.random.default_rng(seed)

        def leaf(path, shape):
            if path.endswith("pos_embed"):
                rows, columns = grid or (int(shape[0] ** 0.5),) * 2
                return positions.sincos_2d(shape[1], rows, columns, cls=shape[0] > rows * columns)
            noise = rng.normal(size=shape) * (0.25 if path.endswith("kernel") else 0.1)
            return (noise + path.endswith("scale")).astype(np.float32)

        shapes = functional.flatten(model.shapes())
        return functional.unflatten({path: jnp.asarray(leaf(path, spec.shape)) for path, spec in shapes.items()})

    return draw


@pytest.fixture(scope="session")
def quick():
    """`jax.jit` without LLVM's optimisations: programs of tests run once, and compiling them is what takes long."""
    return functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def run(quick):
    """`run(model, params, *args, **kwargs)` is a compiled `model.apply`, compiled once for each model and shape."""

    def call(model, *args, **kwargs):
        return quick(model.apply, static_argnames=("method", "train", "pool"))(*args, **kwargs)

    return call
