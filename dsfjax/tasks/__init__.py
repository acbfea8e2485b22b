"""Tasks that sequence models are trained and compared on.

Each task is one module with a frozen config, a generator and the batches it makes:

* :mod:`dsfjax.tasks.mqar`: multi-query associative recall.
"""

from dsfjax.tasks import mqar as mqar
