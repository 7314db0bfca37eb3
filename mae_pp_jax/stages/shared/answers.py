"""What a classifier says of a new image: names with their probabilities."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.data.class_names import with_words
from mae_pp_jax.data.evals import NAMED
from mae_pp_jax.evaluation.classify import restricted

log = logging.getLogger(__name__)

_DIGITS = 6  # of a probability that is told
_KINDS = {"label": "class", "hashtags": "hashtag"}  # field → what one of its names is called


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The most probable classes (or hashtags) of an image; see `core.stage.Answers`.

    Attributes:
      columns: "class" or "hashtag", and "probability".
      names: of the outputs, in order.
      most: how many of them are told.
      logits: (params, batch) → [batch, …, outputs]; traceable.
      axis: of independent models among the axes of the logits, whose probabilities are averaged.
      load: the bytes of a file → the arrays that `logits` reads, of one image.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    most: int
    logits: Callable
    axis: tuple[int, ...]
    load: Callable[[bytes], dict[str, np.ndarray]]

    def compute(self, params, batch) -> tuple[jax.Array, jax.Array]:
        """(probabilities, numbers of the outputs), each [batch, told], the most probable first.

        A batch of an evaluation set may have `allowed`, as `evaluation.classify.restricted` takes it.
        """
        logits = restricted(self.logits(params, batch), batch)
        shares = jax.nn.softmax(logits).mean(self.axis)
        # Logits tell outputs apart whose probabilities are rounded to the same.
        _, outputs = jax.lax.top_k(shares if self.axis else logits, min(self.most, len(self.names)))
        return jnp.take_along_axis(shares, outputs, axis=-1), outputs

    def tell(self, values: tuple[np.ndarray, np.ndarray]) -> list[tuple]:
        shares, outputs = (array.tolist() for array in values)
        return [(self.names[output], float(f"{share:.{_DIGITS}g}")) for share, output in zip(shares, outputs)]


def ranking(
    stage, field: str, names: Mapping[str, Sequence[str]], most: int, logits: Callable, axis: tuple[int, ...] = ()
) -> Ranking:
    """Answers of a stage on single images by the softmax of its logits.

    Args:
      stage: the stage.
      field: of the records, whose numbers the outputs are.
      names: as for `Stage.answers`; where it does not have the field, numbers stand for the outputs. WordNet ids are
        told with their words.
      most: likewise.
      logits: (params, batch) → [batch, …, outputs]; traceable.
      axis: of independent models among the axes of the logits, whose probabilities are averaged.
    """
    own = tuple(map(with_words, names.get(field, ())))
    if not own:
        own = tuple(map(str, range(stage.fact(NAMED[field]))))
        log.warning(
            "the checkpoint does not name its %s %s: numbers stand for them, in the order of the model's outputs",
            *(f"{len(own):,}", NAMED[field]),
        )

    def load(content: bytes) -> dict[str, np.ndarray]:
        return {"image": stage.shown(content)}

    return Ranking((_KINDS[field], "probability"), own, most, logits, axis, load)
