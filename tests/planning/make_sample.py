"""Makes `sample_v5e_2x2.hlo`, the compiled program that the tests of the cost parser read. Needs the extra [tpu].

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m tests.planning.make_sample > tests/planning/sample_v5e_2x2.hlo

Three scanned layers, in each a loop of five matrix products [128, 256] × [256, 256] on a device (parameters are spread
over two devices, the batch over four), then a Pallas kernel that says its cost and one that does not, then a sort. Of
the backend's settings only cycle and cost estimates are kept, and no kernel's code; the rest is as the compiler says.
"""

import re

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mae_pp_jax.planning import slices

LAYERS, REPEATS, BATCH, WIDTH = 3, 5, 512, 256
KERNEL_FLOPS = 2 * (BATCH // 4) * WIDTH * WIDTH
KEPT = r'"(?:estimated_cycles|flops|transcendentals|bytes_accessed)":"?\d+"?'


def square(x_ref, out_ref):
    ones = jnp.ones((WIDTH, WIDTH), x_ref.dtype)
    out_ref[...] = jnp.dot(x_ref[...], ones, preferred_element_type=jnp.float32).astype(x_ref.dtype)


def kernel(name: str, cost: pl.CostEstimate | None):
    """A matrix product of one device's rows."""
    shape = jax.ShapeDtypeStruct((BATCH // 4, WIDTH), jnp.bfloat16)
    return pl.pallas_call(square, out_shape=shape, name=name, cost_estimate=cost)


def program(weights, x):
    """weights [layers, width, width], x [batch, width] → sorted sums [batch]."""

    def layer(x, w):
        x = jax.lax.fori_loop(0, REPEATS, lambda _, x: jnp.tanh(x @ w), x)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"))), None

    x, _ = jax.lax.scan(layer, x, weights)
    cost = pl.CostEstimate(flops=KERNEL_FLOPS, bytes_accessed=4 * BATCH * WIDTH, transcendentals=0)
    rows = PartitionSpec(("data", "fsdp"))
    for call in (kernel("said", cost), kernel("silent", None)):
        x = jax.shard_map(call, in_specs=rows, out_specs=rows, check_vma=False)(x)
    return jnp.sort(jnp.sum(x.astype(jnp.float32), axis=1))


def main() -> None:
    devices = slices.devices(slices.parse("v5e:2x2"))
    mesh = Mesh([devices[:2], devices[2:]], ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    weights = jax.ShapeDtypeStruct(
        (LAYERS, WIDTH, WIDTH), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct(
        (BATCH, WIDTH), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    )
    with jax.set_mesh(mesh):
        text = jax.jit(program).lower(weights, x).compile().as_text()
    text = re.sub(r"backend_config=\{.*\}(?=$|, )", _shorten, text, flags=re.M)
    print(re.sub(r'"/[^"]*/((?:tests|site-packages)/[^"]*)"', r'"\1"', text))


def _shorten(match: re.Match) -> str:
    kept = ",".join(re.findall(KEPT, match[0]))
    return "backend_config={" + ('"cost_estimate":{' + kept + "}" if "cost_estimate" in match[0] else kept) + "}"


if __name__ == "__main__":
    main()
