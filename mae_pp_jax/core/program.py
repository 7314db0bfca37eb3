"""The train step of a stage on a mesh, and the layout of its state. It compiles without data or weights at hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mae_pp_jax.core import memory, metrics, optim, partition, schedule
from mae_pp_jax.core import state as state_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.core.state import TrainState


@dataclasses.dataclass(frozen=True)
class Lengths:
    """All lengths of a run in steps."""

    total: int
    log: int
    evaluate: int
    save: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A stage's train step on a mesh, with the layout of its state."""

    stage: Stage
    mesh: Mesh
    optimizer: optim.Optimizer
    shapes: TrainState  # ShapeDtypeStructs with shardings
    lengths: Lengths

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    def averaged(self, state: TrainState):
        """The parameters to evaluate and hand on: averages where they are kept, else as trained."""
        return state.params if state.ema is None else optim.merge(state.ema, self.optimizer.split(state.params)[1])

    def first_state(self, params) -> TrainState:
        """The state before the first update; pure."""
        names, counts = list(self.shapes.metrics), tuple(self.shapes.counts)
        return _first_state(self.stage.config, self.optimizer, names, counts, params)

    def step(self, state: TrainState, batch) -> TrainState:
        """One update; pure."""
        keys = jax.random.split(state_lib.step_key(state), self.stage.config.global_batch)
        trainable, frozen = self.optimizer.split(state.params)
        counts = self.stage.counts(batch)
        batch = self.stage.augment(batch, keys)
        grads, (total, weight), values = self._gradients(trainable, frozen, batch, keys)
        weight = jnp.maximum(weight, 1.0)
        loss = total / weight
        # Of the sums, before they are divided: on CPUs XLA else writes all squares to memory before it adds them.
        norms = self.optimizer.norms(grads) / weight
        grads = jax.tree.map(lambda g: g / weight, grads)
        trainable, opt_state = self.optimizer.update(grads, state.opt_state, trainable)
        params = optim.merge(trainable, frozen)
        finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(norms))
        decay = self.stage.config.optim.ema
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=None
            if state.ema is None
            else jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, trainable),
            rng=state.rng,
            metrics=metrics.add(state.metrics, {**values, "gradient_norm": (jnp.mean(norms), jnp.ones(()))}),
            counts={name: state.counts[name] + new for name, new in counts.items()},
            bad_step=jnp.where(finite | (state.bad_step >= 0), state.bad_step, state.step),
        )

    def _gradients(self, trainable, frozen, batch, keys):
        """(gradients of the summed loss, (sum, weight), metrics) of a global batch, one microbatch after another."""

        def of_slice(piece):
            def objective(trainable):
                (total, weight), values = self.stage.loss(optim.merge(trainable, frozen), *piece)
                return total, (weight, values)

            (total, (weight, values)), grads = jax.value_and_grad(objective, has_aux=True)(trainable)
            return grads, (total, weight), values

        count = self.stage.config.microbatches
        if count == 1:
            return of_slice((batch, keys))
        shardings = self.optimizer.split(self.shardings.params)[0]

        def add(sums, piece):
            grads, *rest = jax.tree.map(jnp.add, sums, of_slice(piece))
            return (jax.lax.with_sharding_constraint(grads, shardings), *rest), None

        pieces = partition.microbatches((batch, keys), count)
        first = jax.tree.map(lambda x: x[0], pieces)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of_slice, first))
        return jax.lax.scan(add, zeros, pieces)[0]

    def lower(self):
        """The step traced for the mesh, with the state donated."""
        batch = {
            name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=partition.batch_sharding(self.mesh))
            for name, spec in self.stage.batch_spec().items()
        }
        with jax.set_mesh(self.mesh):
            return jax.jit(self.step, donate_argnums=0, out_shardings=self.shardings).lower(self.shapes, batch)

    def compile(self):
        """The step compiled for the mesh."""
        with jax.set_mesh(self.mesh):
            return self.lower().compile()

    def compile_to_run(self):
        """As `compile`, if the devices of this process can run it."""
        compiled = self.compile()
        memory.check_program(compiled, self.mesh)
        return compiled


def make(stage: Stage, mesh: Mesh) -> Program:
    """Lays out the train state of a stage on a mesh.

    Raises:
      UserError: the batch does not split over the mesh, a length cannot be read, a parameter is not covered by rules.
    """
    config = stage.config
    if config.microbatches > 1 and not stage.divisible:
        raise UserError(
            f"config.microbatches: {config.microbatches}, but the loss of stage '{config.stage}' compares each example "
            "with the whole batch and cannot be cut; use 1, and save memory with more devices or rematerialisation"
        )
    partition.check_batch(config.global_batch, mesh, config.microbatches, stage.dealt)
    total = steps_of(stage, "train_for") if stage.trained else 0
    lengths = Lengths(
        total=total,
        log=steps_of(stage, "log_every", total),
        evaluate=steps_of(stage, "eval_every", total),
        save=steps_of(stage, "checkpoint.every", total),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(stage.init, key)
    axes = partition.axes_of(stage.parameter_axes(), flatten(params))
    optimizer = optim.make(
        config.optim,
        params,
        axes=axes,
        model_batch=stage.model_batch,
        lr_rules=stage.lr_rules(),
        decay_rules=stage.decay_rules(),
        total=lengths.total,
        records=stage.records,
        global_batch=config.global_batch,
        example=stage.example,
    )
    names, counts = _measured(stage, params) if stage.trained else ([], ())
    state = jax.eval_shape(functools.partial(_first_state, config, optimizer, names, counts), params)
    placed = partition.shardings(state, axes, config.mesh.rules, mesh)
    shapes = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), state, placed)
    return Program(stage, mesh, optimizer, shapes, lengths)


def _measured(stage: Stage, params) -> tuple[list[str], tuple[str, ...]]:
    """Names of the metrics of a training step, and of what is counted over the whole run."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), stage.config.global_batch))
    batch = jax.eval_shape(stage.augment, stage.batch_spec(), keys)
    names = [*jax.eval_shape(stage.loss, params, batch, keys)[1], "gradient_norm"]
    return names, tuple(jax.eval_shape(stage.counts, stage.batch_spec()))


def make_to_run(stage: Stage, mesh: Mesh) -> Program:
    """As `make`, if the devices of this process can hold the state."""
    program = make(stage, mesh)
    memory.check_state(program.shapes, mesh)
    return program


def steps_of(stage: Stage, field: str, total: int | None = None) -> int:
    """A length key of a stage's config in steps."""
    value = stage.config
    for name in field.split("."):
        value = getattr(value, name)
    return schedule.steps(
        value,
        field=f"config.{field}",
        records=stage.records,
        global_batch=stage.config.global_batch,
        total=total,
        example=stage.example,
    )


def _first_state(config, optimizer: optim.Optimizer, names, counts, params) -> TrainState:
    return state_lib.create(
        params,
        optimizer.init(params),
        seed=config.seed,
        averaged=optimizer.split(params)[0] if config.optim.ema else None,
        metrics=metrics.zeros(names),
        counts=counts,
    )
