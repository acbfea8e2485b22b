"""Pathfinder: are two marked points in an image the ends of one dashed line?

* `dsfjax.tasks.pathfinder.drawing`: how the dashes ("paddles") and the markers look.
* `dsfjax.tasks.pathfinder.snakes`: random images by the law of Long Range Arena's 32 × 32 set.
* `dsfjax.tasks.pathfinder.contours`: the data set and the task.

References:
    Linsley et al. (2018), arXiv:1805.08315. Tay et al. (2020), arXiv:2011.04006 (Long Range
    Arena). The code is written from a description of the law, and agrees with 20,000 images of the
    original program.
"""

from dsfjax.tasks.pathfinder.contours import Pathfinder as Pathfinder
