"""`python -m loralab.measure`: the measuring program where the rest of the course is not."""

import sys

from loralab.measure.command import main

sys.exit(main())
