"""Keep library noise that means nothing to a student off the screen."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, warnings and log lines of the model libraries inside the block.

    Errors pass through untouched.
    """
    from transformers.utils import logging as transformers_logging

    level = logging.root.manager.disable
    bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.disable(level)
            if bars:
                transformers_logging.enable_progress_bar()
