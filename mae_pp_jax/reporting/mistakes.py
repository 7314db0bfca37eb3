"""A page of a classifier's most confident mistakes: the picture as the model saw it, what it is, what was answered."""

import base64
import dataclasses
import html
from collections.abc import Sequence

import cv2
import numpy as np

from mae_pp_jax.reporting import page

_LEAST_SIDE = 128  # smaller pictures are enlarged to at least this many pixels, so that people can see them


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrong answer.

    Attributes:
      picture: uint8 RGB [height, width, 3].
      record: which record it is of.
      truth: name of its class.
      answers: (name of a class, its probability), the most probable first.
    """

    picture: np.ndarray
    record: str
    truth: str
    answers: Sequence[tuple[str, float]]


def render(title: str, mistakes: Sequence[Mistake], wrong: int, measured: int) -> str:
    """The text of an HTML file that needs nothing else.

    Args:
      title: of the page.
      mistakes: those to show, in this order.
      wrong: number of all mistakes.
      measured: number of images that were answered.
    """
    share = f" ({wrong / measured:.1%})" if measured else ""
    shown = f"The {len(mistakes):,} with the most confident answers:" if mistakes else "There is nothing to show."
    head = f"<h1>{html.escape(title)}</h1>\n<p>{wrong:,} of {measured:,} images{share} got a wrong answer. {shown}</p>"
    return page.document(title, [head, '<div class="panels pictures">', *map(_figure, mistakes), "</div>"])


def _figure(mistake: Mistake) -> str:
    scale = max(1, -(-_LEAST_SIDE // min(mistake.picture.shape[:2])))
    big = cv2.resize(mistake.picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    _, content = cv2.imencode(".png", cv2.cvtColor(big, cv2.COLOR_RGB2BGR))
    answers = "<br>".join(f"{probability:.1%} {html.escape(name)}" for name, probability in mistake.answers)
    truth, record = html.escape(mistake.truth), html.escape(mistake.record)
    return (
        f'<figure><img src="data:image/png;base64,{base64.b64encode(content.tobytes()).decode()}" alt="{truth}" '
        f'title="{record}"><figcaption>is <b>{truth}</b><br>{answers}<br><small>{record}</small></figcaption></figure>'
    )
