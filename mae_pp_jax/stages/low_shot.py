"""Stage `low_shot`: classifiers from k labelled images per class on a frozen encoder (Singh et al. 2023, section 4.2).

`splits` independent draws of k images per class are trained side by side in one run, each with a head and, if wanted,
adapters of its own, and each at several learning rates (`lr_grid`), of which one is picked per draw on training images
that it was not drawn. Reported are mean and standard deviation over the draws.

Models are independent: none changes by what others there are. Their parameters have a leading axis `splits`, in which
the learning rates of a draw follow one another.

The head is linear, on features that are normalised as the sources do. VPT has no normalisation. AdaptFormer has a
BatchNorm without learned scale: in training over the model's batch; for evaluation its statistics are measured on the
draw's own images with the weights that are evaluated, where PyTorch takes running averages. Without adapters features
do not change, and their mean and variance are measured once. So they are with LoRA, for whose heads there is no source:
there they are no more than the scale in which the head learns, and merge into it.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import FROZEN, OptimConfig, PerModel
from mae_pp_jax.data import few_shot, fields, orders
from mae_pp_jax.data.source import Subset, digest, few_shot_indices, split_seeds
from mae_pp_jax.evaluation import chance
from mae_pp_jax.evaluation.classify import accuracy, restricted
from mae_pp_jax.evaluation.low_shot import OverSplits, Picker
from mae_pp_jax.models import adapters, vit
from mae_pp_jax.ops import losses
from mae_pp_jax.stages.shared import dealing, features
from mae_pp_jax.stages.shared.answers import ranking
from mae_pp_jax.stages.shared.image_config import FROZEN_ENCODER, ImageStageConfig
from mae_pp_jax.stages.shared.images import ImageStage


@dataclasses.dataclass(frozen=True)
class LowShotStageConfig(ImageStageConfig):
    """Keys of the stage. The paper's own protocol is in its appendix, which is not public; these are our choice."""

    optim: OptimConfig = section(OptimConfig, name="sgd", lr=0.1, weight_decay=1e-4)
    shots: int = key(5, "labelled images per class", low=1)
    small_classes: str = key(
        "refuse",
        "what of a class with fewer than `shots` images: the run is refused, or such a class gives all it has (as in "
        "iNaturalist's published protocol)",
        choices=("refuse", "all"),
        restart=True,
    )
    splits: int = key(5, "independent draws of the labelled images", low=1)
    splits_from: str = key(
        "", "folder of split files (5shot_0.txt or subsets1/5imgs_class.txt …) that say what is drawn; empty: by seed"
    )
    adapter: adapters.AdapterConfig = section(adapters.AdapterConfig)
    lr_grid: tuple[float, ...] = key((1.0,), "factors on the learning rate, each a model of every draw", low=0.0)
    select_images: int = key(
        1000, "training images, not drawn, on which a factor of lr_grid is picked for each draw", low=1
    )

    def __post_init__(self):
        if not self.lr_grid or len(set(self.lr_grid)) < len(self.lr_grid) or 0.0 in self.lr_grid:
            raise UserError(f"config.lr_grid: name factors above 0, each once; got {self.lr_grid}")

    def unused(self):
        found = {f"adapter.{name}": why for name, why in self.adapter.unused().items()}
        if len(self.lr_grid) == 1:
            found["select_images"] = "only a grid of learning rates (lr_grid) is picked from"
        if self.splits_from:
            found["small_classes"] = "splits_from says which images are drawn"
        found["data.resample"] = "each split reads all its images equally often"
        return super().unused() | FROZEN_ENCODER | found

    @classmethod
    def upgrade(cls, mapping):
        """In earlier versions small classes always gave all they have."""
        return {"small_classes": "all", **super().upgrade(mapping)}


class LowShotStage(ImageStage):
    """Parameters `encoder/…`, `heads/{kernel [models, width, classes], bias}`, with adapters `adapters/…` [models, …];
    where features are measured once (without adapters, LoRA) `feature_norm/{mean, variance}` [splits, width]."""

    Config: ClassVar = LowShotStageConfig
    config: LowShotStageConfig

    def __init__(self, config: LowShotStageConfig):
        super().__init__(config)
        if config.global_batch % config.splits:
            raise UserError(
                f"config.global_batch: {config.global_batch} does not divide over {config.splits} splits; "
                f"use a multiple of config.splits"
            )
        self.encoder = Model(lambda rngs: vit.Encoder(config.model, self.image_size, rngs=rngs))
        self.dims = vit.dimensions(config.model)
        self.handoff = self.encoder_handoff(head=r"(heads|feature_norm|adapters)/.*", frozen=True)
        self.factors = len(config.lr_grid)
        self.adapted = self.refers = config.adapter.kind != "none"
        self.batch_norm = config.adapter.kind == "adaptformer"
        self.measured_once = config.adapter.kind in ("none", "lora")
        self.divisible = not self.batch_norm
        self.dealt = config.splits if self.adapted else 1

    @functools.cached_property
    def drawn(self) -> list[np.ndarray]:
        """The records of each split, int64 [chosen]."""
        config, source = self.config, self.train_source
        labels, names = fields.labels(source), fields.names(source, "label")
        if not config.splits_from:
            judge = few_shot.tell_small_classes if config.small_classes == "all" else few_shot.check_small_classes
            judge(labels, config.shots, names)
            return [few_shot_indices(labels, config.shots, seed=seed) for seed in self._seeds()]
        found = []
        for split in range(config.splits):
            file = few_shot.split_file(config.splits_from, config.shots, split, config.splits)
            found.append(few_shot.read_split(file, source))
            few_shot.check_classes(labels, found[-1], names, file)
        return found

    @functools.cached_property
    def subsets(self) -> list[Subset]:
        """The labelled images of each split."""
        return [Subset(self.train_source, drawn) for drawn in self.drawn]

    @functools.cached_property
    def selection(self) -> list[Subset]:
        """For each split the images that its learning rate is picked on; they are of the training set and not drawn."""
        source, wanted = self.train_source, self.config.select_images
        left = len(source) - max(map(len, self.drawn))
        if left < wanted:
            raise UserError(
                f"config.select_images: {wanted:,} images are wanted to pick a learning rate of lr_grid on, and {left:,} "
                f"of {len(source):,} training images are left when a draw has taken its own; set "
                + (f"config.select_images={left} or " if left else "")
                + "a single config.lr_grid"
            )
        pairs = zip(self._seeds(), self.drawn, strict=True)
        return [Subset(source, few_shot.rest(len(source), drawn, wanted, seed)) for seed, drawn in pairs]

    def _seeds(self) -> list[int]:
        return split_seeds(self.config.seed, self.config.splits)

    @property
    def model_batch(self):
        return self.config.global_batch // self.config.splits

    @property
    def records(self):
        if self.config.declared.classes:
            return self.config.splits * self.config.shots * self.config.declared.classes
        return sum(map(len, self.subsets))

    @property
    def dataset(self):
        def of(subsets):
            return digest(*(subset.fingerprint for subset in subsets))

        found = {**super().dataset, "shots": self.config.shots, "splits": self.config.splits}
        selected = {"selected": of(self.selection)} if self.factors > 1 else {}
        return {**found, "drawn": of(self.subsets), **selected}

    def documents(self):
        """The images of each split by name, to be read again by `splits_from` or by others."""
        files = (f"splits/{few_shot.own_name(self.config.shots, split)}" for split in range(self.config.splits))
        return {name: few_shot.text_of(self.train_source, drawn) for name, drawn in zip(files, self.drawn, strict=True)}

    def targets(self):
        return {"label": ()}

    def init(self, key):
        splits, shape = self.config.splits, (self.dims.width, self.classes)
        params = {"encoder": self.encoder.init(key)}
        if self.measured_once:
            params["feature_norm"] = features.unit_norm(splits, self.dims.width)
        bias = jnp.zeros((splits * self.factors, self.classes))
        if not self.adapted:
            # All heads start at zero: the problem is convex, the draw of the images is what differs between splits.
            return {**params, "heads": {"kernel": jnp.zeros((splits * self.factors, *shape)), "bias": bias}}
        sizes = dict(depth=self.dims.depth, width=self.dims.width, mlp=self.dims.mlp, patch=self.dims.patch)
        key = jax.random.fold_in(key, 1)

        def of_split(split):
            head, own = jax.random.split(jax.random.fold_in(key, split))
            # Deviation of MAE's and AdaptFormer's heads; from zero the first step would not reach the adapters.
            return jax.random.normal(head, shape) / 100, adapters.init(self.config.adapter, own, **sizes)

        kernel, own = jax.tree.map(
            lambda leaf: jnp.repeat(leaf, self.factors, axis=0), jax.lax.map(of_split, jnp.arange(splits))
        )
        return {**params, "heads": {"kernel": kernel, "bias": bias}, "adapters": own}

    def prepare(self, params, mesh):
        if not self.measured_once:
            return params
        return {**params, "feature_norm": self._statistics(self._frozen, params, mesh)}

    def _statistics(self, function, params, mesh):
        """Mean and variance of features on each split's own images."""
        batches = -(-max(map(len, self.subsets)) // self.model_batch)
        return features.measure(function, params, self.train_batches(0), batches, mesh, self.config.splits)

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """The same number of images from each split, in turn; `group` names the split of an image."""
        streams = [
            self.batches_of(subset, orders.Shuffled(len(subset), seed), seed, start_step, share=self.config.splits)
            for seed, subset in zip(self._seeds(), self.subsets, strict=True)
        ]
        return dealing.deal(streams, ("image", "label", "unreadable"), self._in_a_row)

    def select_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """One pass over `selection`, dealt out as the training batches are; `mask` is 0 on padding."""
        crop = next(iter(self.config.evals.values()))
        streams = [
            self.eval_batches_of(subset, crop, self.example_spec(), self.model_batch) for subset in self.selection
        ]
        return dealing.deal(streams, ("image", "label", "mask"))

    @property
    def _in_a_row(self) -> int:
        """Images of one split that follow one another, so that each microbatch is dealt out alike."""
        return self.config.microbatches if self.adapted else 1

    def batch_spec(self):
        group = jax.ShapeDtypeStruct((self.config.global_batch,), jnp.int32)
        return {**super().batch_spec(), "group": group}

    def describe_batch(self, step):
        return f"step {step} of {self.config.splits} splits of {self.config.shots} images per class"

    def augment(self, batch, keys):
        # An example takes the key of its place in its own split: more splits change none of the others' numbers.
        return {**batch, "key": dealing.dealt_keys(keys, self.config.splits, self._in_a_row)}

    def _frozen(self, params, batch, keys=None):
        """Features of the encoder alone [batch, width]; images are flipped at random when keys [batch] are given."""
        pixels = self.pixels(batch, keys)
        return jax.lax.stop_gradient(self.encoder.apply(params["encoder"], pixels, method="features"))

    def _adapted(self, params, own, pixels, keys=None):
        """Features [batch, width] of one model with the adapters `own`; keys [batch] are for dropout."""
        ready = adapters.ready(self.config.adapter, own, keys)
        return self.encoder.apply(params["encoder"], pixels, method="features", adapters=ready)

    def _own_adapted(self, params, batch, keys=None):
        """Features of dealt images in the models of their own split, [batch / splits, splits, models, width]."""
        splits = self.config.splits
        pixels, keys = jax.tree.map(lambda x: x.reshape(-1, splits, *x.shape[1:]), (self.pixels(batch, keys), keys))
        one = functools.partial(self._adapted, params)
        of_split = jax.vmap(one, in_axes=(0, None, None))  # its learning rates see the same images
        own = dealing.by_split(params["adapters"], splits)
        return jax.vmap(of_split, in_axes=(0, 1, 1), out_axes=1)(own, pixels, keys).swapaxes(0, 2)

    def own_logits(self, params, batch, keys=None):
        """Logits of images in the models of their own split, [batch, models of a split, classes].

        Args:
          params: all parameters.
          batch: images dealt out to the splits.
          keys: [batch], for flips and dropout in training; None in evaluation.
        """
        heads = dealing.by_split(params["heads"], self.config.splits)
        if not self.adapted:
            x = features.normalize(params["feature_norm"], self._frozen(params, batch, keys))
            logits = jnp.einsum("bsd,sfdc->bsfc", x, heads["kernel"]) + heads["bias"]
            return jnp.einsum("bsfc,bs->bfc", logits, jax.nn.one_hot(batch["group"], self.config.splits))
        x = self._own_adapted(params, batch, keys)
        if self.batch_norm and keys is not None:
            x = features.batch_norm(x)
        elif "feature_norm" in params:
            x = features.normalized(params["feature_norm"], x, (0, 2))
        logits = jnp.einsum("bsfd,sfdc->bsfc", x, heads["kernel"]) + heads["bias"]
        return logits.reshape(-1, *logits.shape[2:])

    def logits(self, params, batch):
        """Logits of images in one model for each split, [batch, splits, classes]."""
        heads = params["heads"]
        if not self.adapted:
            x = features.normalize(params["feature_norm"], self._frozen(params, batch))
        else:
            pixels = self.pixels(batch)
            # One after another: an evaluation of many models needs the memory of one.
            x = jax.lax.map(lambda own: self._adapted(params, own, pixels), params["adapters"]).swapaxes(0, 1)
            if "feature_norm" in params:
                x = features.normalized(params["feature_norm"], x, (0,))
        return jnp.einsum("bsd,sdc->bsc", x, heads["kernel"]) + heads["bias"]

    def loss(self, params, batch, keys):
        del keys
        logits = self.own_logits(params, batch, batch["key"])
        labels = jnp.repeat(batch["label"], self.factors)
        logits = logits.reshape(-1, self.classes)
        loss = losses.softmax_cross_entropy(logits, jax.nn.one_hot(labels, self.classes))
        ones = jnp.ones_like(loss)
        # Models are independent: each one's gradient is that of the mean over its own images.
        metrics = {"loss": (jnp.sum(loss), jnp.sum(ones)), **accuracy(logits, labels, ones)}
        return (jnp.sum(loss), jnp.sum(ones) / (self.config.splits * self.factors)), metrics

    def evaluators(self):
        def test(params, batch):
            logits = restricted(self.logits(params, batch), batch)
            return jax.vmap(lambda split: accuracy(split, batch["label"], batch["mask"]), in_axes=1)(logits)

        picker = Picker(self.config.lr_grid, self._take, self._complete, self._select, self.select_batches)
        return [OverSplits(name, test, batches, picker) for name, batches in self.eval_passes().items()]

    def _take(self, params, choice):
        """Parameters of one model for each split, the `choice`-th (an index, or [splits]) of its learning rates."""
        index = np.arange(self.config.splits) * self.factors + choice
        models = {name: params[name] for name in ("heads", "adapters") if name in params}
        return {**params, **jax.tree.map(lambda leaf: leaf[index], models)} if self.factors > 1 else params

    def _complete(self, params, mesh):
        """With the statistics that a BatchNorm has in evaluation."""
        if not self.batch_norm:
            return params
        return {**params, "feature_norm": self._statistics(self._own_features, params, mesh)}

    def _own_features(self, params, batch):
        return self._own_adapted(params, batch).reshape(-1, self.dims.width)

    def _select(self, params, batch):
        """Accuracy and loss [splits] of one model for each split on images dealt out to them."""
        logits = self.own_logits(params, batch)[:, 0]
        losses_ = losses.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], self.classes))

        def of_split(logits, loss, label, mask):
            return {
                "loss": (jnp.sum(loss * mask), jnp.sum(mask)),
                "accuracy": accuracy(logits, label, mask)["accuracy"],
            }

        dealt = (
            x.reshape(-1, self.config.splits, *x.shape[1:]) for x in (logits, losses_, batch["label"], batch["mask"])
        )
        return jax.vmap(of_split, in_axes=1)(*dealt)

    def answers(self, names, most):
        if self.factors > 1:
            raise UserError(
                f"--workdir: this run holds models of {self.factors} learning rates for each draw (config.lr_grid); train "
                "one again with the picked factor (result.json), or merge LoRA by convert --merge"
            )
        return ranking(self, "label", names, most, self.logits, axis=(1,))

    def chance(self):
        found = chance.of_classes(self.classes, self.eval_labels(), self.eval_choices())
        return {name: level for name, level in found.items() if name == "train/loss" or name.endswith("/accuracy")}

    def train_flops_per_example(self):
        own, models = self.config.adapter, self.config.splits * self.factors
        head = 3 * 2.0 * self.dims.width * self.classes
        if not self.adapted:
            return vit.forward_flops(self.config.model, self.image_size) + head * models
        sizes = dict(depth=self.dims.depth, width=self.dims.width, mlp=self.dims.mlp)
        plain = int(np.prod(vit.grid(self.config.model, self.image_size))) + int(self.config.model.cls_token)
        tokens = plain + adapters.extra_tokens(own)
        # Gradients pass through the frozen products, which get none themselves.
        through = 2 * vit.forward_flops(self.config.model, self.image_size, tokens)
        return self.factors * (through + 3 * adapters.forward_flops(own, **sizes, tokens=tokens) + head)

    def parameter_axes(self):
        heads = ((r"heads/kernel", ("splits", None, None)), (r"(heads|feature_norm)/.*", ("splits", None)))
        own = tuple((f"adapters/{pattern}", ("splits", *axes)) for pattern, axes in adapters.PARAMETER_AXES)
        return (*heads, *own, *super().parameter_axes())

    def lr_rules(self):
        factors = PerModel(self.config.lr_grid * self.config.splits) if self.factors > 1 else self.config.lr_grid[0]
        return ((r"(encoder|feature_norm)/.*", FROZEN), (r".*", factors))
