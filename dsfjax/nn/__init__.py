"""Floor 5: Flax NNX modules around systems, and `Model`, the same as plain functions."""

from dsfjax.nn.binding import bind as bind
from dsfjax.nn.binding import shapes_of as shapes_of
from dsfjax.nn.buildable import Buildable as Buildable
from dsfjax.nn.collect import Layers as Layers
from dsfjax.nn.collect import collect_systems as collect_systems
from dsfjax.nn.functional import Model as Model
from dsfjax.nn.functional import build as build
from dsfjax.nn.mixer import Mixer as Mixer
from dsfjax.nn.mixer import MixerState as MixerState
from dsfjax.nn.mixer import Surrounding as Surrounding
from dsfjax.nn.model import DecodeState as DecodeState
from dsfjax.nn.model import SequenceModel as SequenceModel
from dsfjax.nn.model_config import ModelConfig as ModelConfig
from dsfjax.nn.pieces import GLU as GLU
from dsfjax.nn.pieces import MLP as MLP
from dsfjax.nn.pieces import CausalConv as CausalConv
from dsfjax.nn.residual_block import Block as Block
from dsfjax.nn.residual_block import architecture as architecture
from dsfjax.nn.surroundings import surround as surround
