"""Keep other libraries' log lines, warnings and progress bars off the terminal while they work for us."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import huggingface_hub.utils.logging as hub_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet(*, silence_streams: bool = False) -> Iterator[None]:
    """Silence transformers and huggingface_hub inside the block, then put back what was set before.

    With ``silence_streams`` standard output and error are dropped as well: some progress bars have no switch.
    """
    level, hub_level = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if silence_streams:
                with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                    yield
            else:
                yield
    finally:
        transformers_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()
