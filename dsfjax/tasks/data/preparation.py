"""How arrays are made of the files of a data set, once."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from dsfjax._util.names import choose
from dsfjax.tasks.data.cache import cached, is_cached
from dsfjax.tasks.data.declared import described, file_of
from dsfjax.tasks.data.reading import MissingDataError, Read, find, read
from dsfjax.tasks.data.records import Records, records, version_of

FILES, TFDS = "files", "tfds"
"""Sources of a data set: declared files in the data folder, or what tensorflow-datasets wrote."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Arrays made of files, kept in the cache.

    They should not depend on a task's options, so that several tasks share them, and be of small
    dtypes (pixels and bytes as uint8): they become arguments of the compiled program.

    Attributes:
        name: A word for a folder's name.
        data_set: The data set that it belongs to.
        files: Paths of the files that it reads; () if it generates its arrays.
        make: Makes the arrays; it is given a function from path to content.
        version: Raised when ``make`` changes what it makes.
        known: What the arrays depend on beside these, such as the checksum of a file of the user's.
        from_tfds: Makes the same arrays of what tensorflow-datasets has; it is given a function
            from the name of a split to its examples. None where that is not supported.
    """

    name: str
    data_set: str
    files: tuple[str, ...]
    make: Callable[[Read], Mapping[str, np.ndarray]]
    version: int = 1
    known: tuple[str, ...] = ()
    from_tfds: Callable[[Records], Mapping[str, np.ndarray]] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """What it can make the arrays of."""
        return (FILES,) if self.from_tfds is None else (FILES, TFDS)

    def arrays(self, source: str = FILES) -> dict[str, np.ndarray]:
        """The arrays, from the cache or made; read-only and mapped into memory.

        Args:
            source: `FILES` or `TFDS`.

        Raises:
            MissingDataError: If they are not in the cache and the data are not there.
            DataError: If the data are damaged.
            ValueError: For another source.
        """
        return cached(self.name, self.key(source), lambda: self._made(source))

    def ready(self, source: str = FILES) -> bool:
        """Whether the arrays are in the cache.

        Args:
            source: `FILES` or `TFDS`.
        """
        try:
            return source in self.sources and is_cached(self.name, self.key(source))
        except MissingDataError:
            return False

    def key(self, source: str = FILES) -> tuple[object, ...]:
        """All that the arrays depend on.

        A file with a declared checksum need not be there: what was made of it once is enough. One
        of the user's own is known by its size and time.

        Args:
            source: `FILES` or `TFDS`.

        Raises:
            MissingDataError: If it depends on data that are not there.
            ValueError: For another source.
        """
        if choose("source of data", source, self.sources) == TFDS:
            return (self.version, *self.known, version_of(self.data_set))
        return (
            self.version,
            *self.known,
            *(file_of(path).sha256 or _stamp(path) for path in self.files),
        )

    def provenance(self, source: str = FILES) -> str:
        """Which data the arrays are made of, for the record of a result.

        Args:
            source: `FILES` or `TFDS`.
        """
        if source == TFDS:
            return f"tfds {version_of(self.data_set)}"
        return described(file_of(path) for path in self.files)

    def _made(self, source: str) -> Mapping[str, np.ndarray]:
        if source == TFDS:
            assert self.from_tfds is not None  # `key` has refused it
            return self.from_tfds(records(self.data_set))
        return self.make(read)


def _stamp(path: str) -> str:
    found = find(path)
    if found is None:
        read(path)  # says what is missing
    assert found is not None
    return f"{path} {found.stat().st_size} {found.stat().st_mtime_ns}"


PREPARATIONS: dict[str, Preparation] = {}
"""Name to preparation: those that ``dsfjax data prepare`` runs."""


def register(preparation: Preparation) -> Preparation:
    """Make a preparation known to ``dsfjax data``.

    Args:
        preparation: The preparation; it replaces one of the same name.

    Returns:
        The preparation.
    """
    PREPARATIONS[preparation.name] = preparation
    return preparation
