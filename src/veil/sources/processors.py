"""What turns pictures into a vision-language model's inputs, from the same place as the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from veil.errors import one_line
from veil.sources.offline import without_hub
from veil.sources.quiet import quiet

if TYPE_CHECKING:
    from veil.typing import Processor

_MOST_SIDE = 4096
"""Longest side to which a processor may blow a picture up; its settings may be a stranger's."""

_log = logging.getLogger("veil.sources")


def processor_in(place: str | Path, config: object) -> Processor | None:
    """The processor in a folder or of a hub id, for a model of this configuration; None where the model sees nothing.

    None too, and a warning, where it cannot be loaded: the model still answers texts.
    """
    if not hasattr(config, "vision_config"):
        return None
    from transformers import AutoProcessor

    local = Path(place).is_dir()
    try:
        with quiet(), without_hub() if local else nullcontext():
            processor = AutoProcessor.from_pretrained(str(place), local_files_only=local, trust_remote_code=False)
    except Exception as error:  # damaged files surface as errors of every kind
        remedy = "" if find_spec("torchvision") else "; some, Qwen-VL's for one, need `pip install torchvision`"
        _log.warning("%s takes texts only: its processor cannot be loaded (%s)%s", place, one_line(error), remedy)
        return None
    images = getattr(processor, "image_processor", None)
    if images is None or not hasattr(processor, "tokenizer"):
        return None
    largest = max([0, *_sides(getattr(images, "size", None)), *_sides(getattr(images, "crop_size", None))])
    if largest > _MOST_SIDE:
        _log.warning("%s takes texts only: its processor makes pictures of %s pixels a side", place, largest)
        return None
    found: Processor = processor
    return found


def _sides(size: Mapping[str, object] | None) -> list[int]:
    """The sides that a processor's setting names; a number of pixels counts by its root."""
    named = dict(size) if size is not None else {}
    return [
        int(value**0.5) if key.endswith("pixels") else int(value)
        for key, value in named.items()
        if isinstance(value, int | float)
    ]
