"""Optional reports of a training to TensorBoard or trackio, through the Trainer's own integrations."""

import importlib.util
import os
from pathlib import Path

from transformers import TrainerCallback

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}


def reporters(report_to: str, folder: Path | None) -> list[TrainerCallback]:
    """The Trainer's callback for `tensorboard` or `trackio`, with its files in `folder`; none for `none`.

    Raises ImportError when the package is not installed.
    """
    if report_to == "none":
        return []
    if not any(importlib.util.find_spec(name) for name in PACKAGES[report_to]):
        raise ImportError(
            f"resources.train.report_to: {report_to} needs the package {PACKAGES[report_to][0]};"
            f" install it (pip install {PACKAGES[report_to][0]}) or set it to none"
        )
    return [REPORTERS[report_to]((folder or Path()).absolute())]


def _tensorboard(folder: Path) -> TrainerCallback:
    from transformers.integrations import TensorBoardCallback

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    return TensorBoardCallback()


def _trackio(folder: Path) -> TrainerCallback:
    os.environ["TRACKIO_DIR"] = str(folder)  # read when the package is imported
    from transformers.integrations import TrackioCallback

    return TrackioCallback()


REPORTERS = {"tensorboard": _tensorboard, "trackio": _trackio}
