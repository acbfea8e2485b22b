"""The families of published models, a file per group; each registers its ``model_type``."""

from dsfjax.interop.published.families import attention_models as attention_models
from dsfjax.interop.published.families import fla_models as fla_models
from dsfjax.interop.published.families import gemma_models as gemma_models
from dsfjax.interop.published.families import gpt2_models as gpt2_models
from dsfjax.interop.published.families import mamba_models as mamba_models
from dsfjax.interop.published.families import rwkv_models as rwkv_models
from dsfjax.interop.published.families import xlstm_models as xlstm_models
