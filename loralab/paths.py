"""Where things are: the course's folder, the student's work, the per-user cache."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).parent
PROJECT = PACKAGE.parent
NOTEBOOKS = PROJECT / "notebooks"
WORK = PROJECT / "work"
RECORDED = PACKAGE / "recorded"


def cache() -> Path:
    """The per-user cache: the converted base model, trained runs, Jupyter's own files.

    `LORALAB_CACHE` moves it. It can be deleted at any time: everything in it is made again.
    """
    chosen = os.environ.get("LORALAB_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("loralab", appauthor=False)
