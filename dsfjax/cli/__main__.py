"""``python -m dsfjax.cli``."""

import sys

from dsfjax.cli.entry import main

sys.exit(main())
