"""Floor 4: what a `System` tells about itself. Reads systems only, never modules."""

from dsfjax.analysis.spectra import eigenvalues as eigenvalues
