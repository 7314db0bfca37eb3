"""Pictures that evaluators return beside numbers: a PNG file in the run's folder, also shown in TensorBoard."""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Picture:
    """uint8 RGB [height, width, 3]; a `core.stage.Drawing`."""

    pixels: np.ndarray

    def file(self, name: str, step: int) -> tuple[str, bytes]:
        """(`pictures/NAME_STEP.png`, its content); slashes in the name become underscores."""
        _, content = cv2.imencode(".png", cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR))
        return f"pictures/{name.replace('/', '_')}_{step}.png", content.tobytes()

    def show(self, writer, name: str, step: int) -> None:
        writer.write_images(step, {name: self.pixels[None]})
