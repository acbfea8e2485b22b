"""The command line: ``dsfjax train | compare | sweep | results | systems | explain | …``.

Options are typed dataclasses (:mod:`dsfjax.cli.options`); what a command does is in the module of
its name, which is imported only when the command runs, so that ``--help`` is quick.
"""

from dsfjax.cli.entry import main as main
