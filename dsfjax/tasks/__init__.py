"""Floor 4: tasks that sequence models are trained and compared on, by name or of one's own.

`Task` says what a task is and how to write one. Each is one file or folder:

* `dsfjax.tasks.mqar`: multi-query associative recall.
* `dsfjax.tasks.selective_copying`: repeat tokens without the noise between them.
* `dsfjax.tasks.digits`: real images, read pixel by pixel, to be classified.
* `dsfjax.tasks.image`: CIFAR-10 in grey and MNIST, pixel by pixel.
* `dsfjax.tasks.copying`: repeat a string, also beyond the training length.
* `dsfjax.tasks.automata`: continue words of a random automaton (RegBench).
* `dsfjax.tasks.text`: IMDB reviews, by characters and by bytes.
* `dsfjax.tasks.retrieval`: pairs of texts: AAN, and reviews of the same film.
* `dsfjax.tasks.speech`: spoken digits, raw sound.
* `dsfjax.tasks.mad`: the six tasks of MAD: recall, copying, compression, memorization.
* `dsfjax.tasks.state_tracking`: parity, modular arithmetic, words of groups.
* `dsfjax.tasks.listops`: the value of nested operations on lists (Long Range Arena).
* `dsfjax.tasks.pathfinder`: are two points the ends of one dashed line (Long Range Arena).
* `dsfjax.tasks.time_series`: the next values of several series.
* `dsfjax.tasks.language_modelling`: the next token of a text.

`dsfjax.tasks.data` reads the data sets that users have on their disk.
"""

from dsfjax.tasks import automata as automata
from dsfjax.tasks import copying as copying
from dsfjax.tasks import data as data
from dsfjax.tasks import digits as digits
from dsfjax.tasks import image as image
from dsfjax.tasks import language_modelling as language_modelling
from dsfjax.tasks import listops as listops
from dsfjax.tasks import mad as mad
from dsfjax.tasks import mqar as mqar
from dsfjax.tasks import pathfinder as pathfinder
from dsfjax.tasks import retrieval as retrieval
from dsfjax.tasks import selective_copying as selective_copying
from dsfjax.tasks import speech as speech
from dsfjax.tasks import state_tracking as state_tracking
from dsfjax.tasks import text as text
from dsfjax.tasks import time_series as time_series
from dsfjax.tasks.catalogue import demands as demands
from dsfjax.tasks.catalogue import get as get
from dsfjax.tasks.catalogue import kind as kind
from dsfjax.tasks.catalogue import name_in as name_in
from dsfjax.tasks.catalogue import name_of as name_of
from dsfjax.tasks.catalogue import named as named
from dsfjax.tasks.catalogue import names as names
from dsfjax.tasks.catalogue import options as options
from dsfjax.tasks.catalogue import register as register
from dsfjax.tasks.metric import ACCURACY as ACCURACY
from dsfjax.tasks.metric import BITS_PER_BYTE as BITS_PER_BYTE
from dsfjax.tasks.metric import MAE as MAE
from dsfjax.tasks.metric import MSE as MSE
from dsfjax.tasks.metric import PERPLEXITY as PERPLEXITY
from dsfjax.tasks.metric import Baseline as Baseline
from dsfjax.tasks.metric import Metric as Metric
from dsfjax.tasks.protocol import DEMANDS as DEMANDS
from dsfjax.tasks.protocol import HELD_OUT as HELD_OUT
from dsfjax.tasks.protocol import TRAIN as TRAIN
from dsfjax.tasks.protocol import Example as Example
from dsfjax.tasks.protocol import Preset as Preset
from dsfjax.tasks.protocol import Task as Task
from dsfjax.tasks.protocol import cross_entropy as cross_entropy
from dsfjax.tasks.protocol import option as option
from dsfjax.tasks.supply import Generated as Generated
from dsfjax.tasks.supply import Resident as Resident
from dsfjax.tasks.supply import Windows as Windows
from dsfjax.tasks.supply import examples as examples
