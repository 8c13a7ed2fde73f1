"""LoRA Lab: what the course's notebooks import."""

import logging
import os
import warnings

# No telemetry and no noise, set before any library reads its environment.
# A user's own setting wins.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# Two remarks that no student can act on: bitsandbytes on an optional kernel, and PEFT's use of a
# name that transformers renames.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

__version__ = "0.1.0"
