"""Training: one program for all learning rates and seeds, on disk and resumable.

``train(config, run_dir)`` trains one program, ``sweep(configs, run_dir)`` several; both are built
from the pure :func:`~dsfjax.training.step.train_step` and the loop of
:mod:`dsfjax.training.loop`. The run directory is described in :mod:`dsfjax.training.runs`, that of
a sweep in :mod:`dsfjax.training.sweeps`.
"""

from dsfjax.training.compilation import MemoryShortage as MemoryShortage
from dsfjax.training.config import TrainConfig as TrainConfig
from dsfjax.training.config import from_json as from_json
from dsfjax.training.config import to_json as to_json
from dsfjax.training.evaluation import score as score
from dsfjax.training.generalisation import LengthScore as LengthScore
from dsfjax.training.generalisation import score_lengths as score_lengths
from dsfjax.training.objective import full_loss as full_loss
from dsfjax.training.objective import query_loss as query_loss
from dsfjax.training.optimizer import OptimizerConfig as OptimizerConfig
from dsfjax.training.runs import Listener as Listener
from dsfjax.training.runs import Loaded as Loaded
from dsfjax.training.runs import Resources as Resources
from dsfjax.training.runs import load as load
from dsfjax.training.runs import train as train
from dsfjax.training.step import TrainState as TrainState
from dsfjax.training.step import init_state as init_state
from dsfjax.training.step import train_step as train_step
from dsfjax.training.storage.folder import RunError as RunError
from dsfjax.training.storage.record import MemberResult as MemberResult
from dsfjax.training.storage.store import read_results as read_results
from dsfjax.training.sweeps import sweep as sweep
