"""Pictures say what they were drawn of, and are drawn again when that changes."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from flows.reporting.figures import Picture, _scores


def test_a_picture_is_drawn_again_when_its_data_change(tmp_path: Path) -> None:
    file, labels = tmp_path / "scores.png", np.array([0.0, 1.0, 2.0])
    Picture(_scores, labels, labels).write(file)
    assert imread(file).shape[2] == 4, "a whole picture, comment and all"
    first = file.read_bytes()
    Picture(_scores, labels, labels).write(file)
    assert file.read_bytes() == first
    Picture(_scores, labels, labels + 1).write(file)
    assert file.read_bytes() != first


def test_a_damaged_picture_is_drawn_again(tmp_path: Path) -> None:
    file, labels = tmp_path / "scores.png", np.array([0.0, 1.0, 2.0])
    Picture(_scores, labels, labels).write(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    Picture(_scores, labels, labels).write(file)
    assert file.read_bytes() == whole
