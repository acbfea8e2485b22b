"""Make ``digits.xz`` from scikit-learn's copy of the data: ``python -m dsfjax.tasks.digits.make``.

It needs scikit-learn, which the package does not. The file has 65 rows of 1,797 bytes, one per
pixel and the last one the labels: column by column the bytes of a pixel compress better.
"""

import hashlib
import lzma
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Write the file and print what ``pixels.py`` must say of it."""
    from sklearn.datasets import load_digits  # type: ignore[import-not-found]

    found: Any = load_digits()
    rows = np.concatenate([found.data, found.target[:, None]], axis=1)
    raw = rows.astype(np.uint8)
    assert (raw == rows).all()
    data = raw.T.tobytes()
    path = Path(__file__).with_name("digits.xz")
    path.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    digest = hashlib.sha256(data).hexdigest()
    print(f"{path}: {path.stat().st_size} bytes; sha256 of the data: {digest}")


if __name__ == "__main__":
    main()
