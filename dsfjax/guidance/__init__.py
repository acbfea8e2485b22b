"""Floor 8: which architecture for a task that nobody has run yet, from the results that there are.

* `dsfjax.guidance.profile`: what is known of the task: its length, its inputs, what it demands.
* `dsfjax.guidance.evidence`: results as records: those of this project, and the user's own.
* `dsfjax.guidance.ranking`: the nearest tasks with a demand, who did best on them, and how thin
  that is.
* `dsfjax.guidance.advice`: all of it together, with what the architectures cost at that length.
"""

from dsfjax.guidance.advice import Advice as Advice
from dsfjax.guidance.advice import recommend as recommend
from dsfjax.guidance.evidence import Evidence as Evidence
from dsfjax.guidance.evidence import of_folder as of_folder
from dsfjax.guidance.evidence import shipped as shipped
from dsfjax.guidance.profile import Profile as Profile
from dsfjax.guidance.profile import profile_of as profile_of
