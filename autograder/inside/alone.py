"""One kernel without a sandbox: `python alone.py CONNECTION` (JSON)."""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bridge  # noqa: E402, F401  (the kernel finds it loaded)
import warm  # noqa: E402

application = warm.application(json.loads(sys.argv[1]))
application.start()
