"""The families of published models, a file per group; each registers its ``model_type``."""

from dsfjax.interop.published.families import attention_models as attention_models
from dsfjax.interop.published.families import fla_models as fla_models
from dsfjax.interop.published.families import gemma_models as gemma_models
from dsfjax.interop.published.families import gpt2_models as gpt2_models
from dsfjax.interop.published.families import granite_models as granite_models
from dsfjax.interop.published.families import jamba_models as jamba_models
from dsfjax.interop.published.families import kimi_models as kimi_models
from dsfjax.interop.published.families import lfm_models as lfm_models
from dsfjax.interop.published.families import mamba2_models as mamba2_models
from dsfjax.interop.published.families import mamba_models as mamba_models
from dsfjax.interop.published.families import minimax_models as minimax_models
from dsfjax.interop.published.families import nemotron_models as nemotron_models
from dsfjax.interop.published.families import olmo_models as olmo_models
from dsfjax.interop.published.families import qwen_hybrid_models as qwen_hybrid_models
from dsfjax.interop.published.families import rwkv_models as rwkv_models
from dsfjax.interop.published.families import xlstm_models as xlstm_models
from dsfjax.interop.published.families import zamba_models as zamba_models
