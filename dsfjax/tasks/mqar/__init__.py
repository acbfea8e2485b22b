r"""Multi-query associative recall (MQAR).

A sequence shows ``n`` key-value pairs and asks later for the value of every key:

.. math:: k_1\, v_1\, k_2\, v_2 \dots k_n\, v_n\;\; 0 \dots k_3\, 0 \dots k_1\, 0 \dots

The target at each second appearance of a key is its value; nothing else is predicted. Keys are
distinct and from the lower half of the vocabulary, values distinct and from the upper half, and the
distance of a query follows a power law.

* :func:`sample` and :func:`batch` draw on the device, inside ``jit`` and ``vmap``.
* :func:`reference_examples` repeats the published data sets bit for bit.

References:
    Arora et al. (2024), arXiv:2312.04927. Sieber et al. (2024), arXiv:2405.15731.
"""

from dsfjax.tasks.mqar.examples import IGNORED as IGNORED
from dsfjax.tasks.mqar.examples import from_labels as from_labels
from dsfjax.tasks.mqar.examples import labels as labels
from dsfjax.tasks.mqar.numpy_generator import reference_examples as reference_examples
from dsfjax.tasks.mqar.numpy_generator import segment_seeds as segment_seeds
from dsfjax.tasks.mqar.recall import MQARConfig as MQARConfig
from dsfjax.tasks.mqar.recall import batch as batch
from dsfjax.tasks.mqar.recall import sample as sample
