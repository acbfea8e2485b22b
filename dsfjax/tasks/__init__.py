"""Floor 4: tasks that sequence models are trained and compared on, by name or of one's own.

`Task` says what a task is and how to write one. Each is one file or folder:

* `dsfjax.tasks.mqar`: multi-query associative recall.
* `dsfjax.tasks.selective_copying`: repeat tokens without the noise between them.
* `dsfjax.tasks.digits`: real images, read pixel by pixel, to be classified.
"""

from dsfjax.tasks import digits as digits
from dsfjax.tasks import mqar as mqar
from dsfjax.tasks import selective_copying as selective_copying
from dsfjax.tasks.registry import get as get
from dsfjax.tasks.registry import kind as kind
from dsfjax.tasks.registry import name_in as name_in
from dsfjax.tasks.registry import name_of as name_of
from dsfjax.tasks.registry import named as named
from dsfjax.tasks.registry import names as names
from dsfjax.tasks.registry import options as options
from dsfjax.tasks.registry import register as register
from dsfjax.tasks.task import HELD_OUT as HELD_OUT
from dsfjax.tasks.task import TRAIN as TRAIN
from dsfjax.tasks.task import Baseline as Baseline
from dsfjax.tasks.task import Example as Example
from dsfjax.tasks.task import Generated as Generated
from dsfjax.tasks.task import Metric as Metric
from dsfjax.tasks.task import Preset as Preset
from dsfjax.tasks.task import Resident as Resident
from dsfjax.tasks.task import Task as Task
from dsfjax.tasks.task import cross_entropy as cross_entropy
from dsfjax.tasks.task import examples as examples
from dsfjax.tasks.task import option as option
