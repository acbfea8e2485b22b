"""Data sets on the user's disk: what the files are, how they are read, and what is made of them.

The package carries no data set but the digits. A user has a folder of them, given by ``--data-dir``
or the environment variable ``DSFJAX_DATA``; ``dsfjax data list`` says which are there.

* `DataSet` and `DataFile` declare the files: path in the folder, checksum, licence, citation.
  `declare` adds a data set of one's own.
* `read` gives the bytes of a file, decompressed and checked; `text`, `rows` and `arrays_of` parse
  them, with errors that name file, place and remedy.
* `Preparation` makes NumPy arrays of files once and keeps them in the cache (``DSFJAX_CACHE``),
  from where they are mapped into memory. `register` makes ``dsfjax data prepare`` know it.

A task declares ``data_sets`` and calls its preparation in ``arrays``.
"""

from dsfjax.tasks.data.cache import cache_dir as cache_dir
from dsfjax.tasks.data.cache import cached as cached
from dsfjax.tasks.data.declared import DATA_SETS as DATA_SETS
from dsfjax.tasks.data.declared import DataFile as DataFile
from dsfjax.tasks.data.declared import DataSet as DataSet
from dsfjax.tasks.data.declared import declare as declare
from dsfjax.tasks.data.declared import file_of as file_of
from dsfjax.tasks.data.declared import get as get
from dsfjax.tasks.data.declared import provenance as provenance
from dsfjax.tasks.data.declared import set_of as set_of
from dsfjax.tasks.data.preparation import FILES as FILES
from dsfjax.tasks.data.preparation import PREPARATIONS as PREPARATIONS
from dsfjax.tasks.data.preparation import TFDS as TFDS
from dsfjax.tasks.data.preparation import Preparation as Preparation
from dsfjax.tasks.data.preparation import register as register
from dsfjax.tasks.data.reading import DataError as DataError
from dsfjax.tasks.data.reading import MissingDataError as MissingDataError
from dsfjax.tasks.data.reading import Read as Read
from dsfjax.tasks.data.reading import arrays_of as arrays_of
from dsfjax.tasks.data.reading import data_dir as data_dir
from dsfjax.tasks.data.reading import expect as expect
from dsfjax.tasks.data.reading import find as find
from dsfjax.tasks.data.reading import lines as lines
from dsfjax.tasks.data.reading import read as read
from dsfjax.tasks.data.reading import rows as rows
from dsfjax.tasks.data.reading import text as text
from dsfjax.tasks.data.records import Records as Records
from dsfjax.tasks.data.records import download as download
