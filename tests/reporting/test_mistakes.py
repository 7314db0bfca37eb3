"""The page of a classifier's mistakes."""

import base64
import re

import cv2
import numpy as np

from mae_pp_jax.reporting import mistakes


def test_the_page_shows_each_picture_with_its_class_and_the_answers():
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :8, 0] = 255  # the left half red
    shown = mistakes.Mistake(picture, "photos/1.png", "<cat>", [("dog", 0.75), ("<cat>", 0.2)])
    text = mistakes.render("Mistakes & more", [shown], wrong=3, measured=12)
    assert "3 of 12 images (25.0%)" in text and "Mistakes &amp; more" in text
    assert "is <b>&lt;cat&gt;</b><br>75.0% dog<br>20.0% &lt;cat&gt;" in text and "<cat>" not in text
    (content,) = re.findall(r"data:image/png;base64,([^\"]+)", text)
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == (128, 256, 3) and (drawn[:, 127] == (0, 0, 255)).all() and not drawn[:, 128:].any()


def test_nothing_measured_and_nothing_wrong_are_said():
    assert "0 of 0 images got a wrong answer. There is nothing to show." in mistakes.render("None", [], 0, 0)
