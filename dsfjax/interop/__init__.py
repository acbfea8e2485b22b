"""Floor 8: modules and checkpoints of other projects, running on ours.

`reference` gives a module of another project as a differentiable function of its own weights, under
their own names and layouts. `language_model` turns a checkpoint of the paper's code into a
`dsfjax.nn.Model`, to be decoded, analysed or trained further.
"""

from dsfjax.interop.language import LanguageModel as LanguageModel
from dsfjax.interop.language import language_model as language_model
from dsfjax.interop.reference import Reference as Reference
from dsfjax.interop.reference import modules as modules
from dsfjax.interop.reference import reference as reference
