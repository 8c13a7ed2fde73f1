"""What a model and its training really hold, in bytes.

Notebooks count and follow models that they have made (`held`, `peak`, ...). `loralab measure`
makes the model that a prediction of `loralab.memory` is about, trains it for a few steps, and
writes down what it took: `loralab.measure.run`.
"""

from loralab.measure.counting import constants_of, held, saved_for_backward, trainable
from loralab.measure.following import Peak, held_after_step, peak, training_step_peak

__all__ = [
    "Peak", "constants_of", "held", "held_after_step", "peak", "saved_for_backward", "trainable",
    "training_step_peak",
]  # fmt: skip
