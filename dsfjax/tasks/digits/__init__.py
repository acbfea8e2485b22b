"""Handwritten digits as sequences of pixels: a small data set that needs no network.

The 1,797 images of 8 × 8 pixels are the test part of the "Optical Recognition of Handwritten
Digits" data set: 43 people wrote, 32 × 32 bitmaps were divided into blocks of 4 × 4, and a pixel is
the number of black ones in its block, 0 to 16. The package carries a compressed copy (40 kB), made
from scikit-learn's by ``dsfjax/tasks/digits/make.py`` and checked by its sha256 when it is read.

Licence: Creative Commons Attribution 4.0 (CC BY 4.0).

References:
    E. Alpaydin and C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine
    Learning Repository. doi:10.24432/C50P49.
"""

from dsfjax.tasks.digits.pixels import Digits as Digits
