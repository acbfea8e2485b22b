"""ListOps: the value of a nested expression of operations on lists of digits, up to 2,000 long.

* `dsfjax.tasks.listops.expressions`: the language, its token ids and what an expression is worth.
* `dsfjax.tasks.listops.trees`: random expressions by the law of Long Range Arena.
* `dsfjax.tasks.listops.lists`: the data set and the task.

References:
    Nangia and Bowman (2018), arXiv:1804.06028. Tay et al. (2020), arXiv:2011.04006 (Long Range
    Arena). The code is written from a description of the law.
"""

from dsfjax.tasks.listops.expressions import SYMBOLS as SYMBOLS
from dsfjax.tasks.listops.expressions import decode as decode
from dsfjax.tasks.listops.expressions import encode as encode
from dsfjax.tasks.listops.expressions import evaluate as evaluate
from dsfjax.tasks.listops.expressions import tokens as tokens
from dsfjax.tasks.listops.lists import ListOps as ListOps
