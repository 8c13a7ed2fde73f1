"""How nbgrader's Validate button runs a student's notebook."""

from loralab.execution import configure

configure(get_config())  # noqa: F821  (nbgrader defines it when it reads this file)
