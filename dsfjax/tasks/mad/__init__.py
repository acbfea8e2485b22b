"""MAD, mechanistic architecture design: six small tasks, each for one skill of a language model.

* `InContextRecall`: name the value that a key had before in the sequence.
* `NoisyRecall`: the same, with tokens in between that mean nothing.
* `FuzzyRecall`: the same, keys and values being motifs of one to three tokens.
* `BlankCopying`: repeat the tokens of a sequence, in order, without the blanks between them.
* `Compression`: put a whole sequence into the features of its last token.
* `Memorization`: know a fixed map from keys to values, which is in no sequence.

`difficulties` lists the 66 settings of the benchmark: each task's baseline, and what is changed of
it one thing at a time. A model's score is the mean over settings of its best test accuracy.

References:
    Poli et al. (2024), arXiv:2403.17844.
"""

from dsfjax.tasks.mad.autoencoder import Compression as Compression
from dsfjax.tasks.mad.blanks import BlankCopying as BlankCopying
from dsfjax.tasks.mad.difficulty import Difficulty as Difficulty
from dsfjax.tasks.mad.difficulty import difficulties as difficulties
from dsfjax.tasks.mad.in_context import InContextRecall as InContextRecall
from dsfjax.tasks.mad.in_context import NoisyRecall as NoisyRecall
from dsfjax.tasks.mad.memorized import Memorization as Memorization
from dsfjax.tasks.mad.motifs import FuzzyRecall as FuzzyRecall
