"""The families of published models, a file per group; each registers its ``model_type``."""

from dsfjax.interop.published.families import attention_models as attention_models
from dsfjax.interop.published.families import kimi_models as kimi_models
from dsfjax.interop.published.families import lfm_models as lfm_models
from dsfjax.interop.published.families import mamba_models as mamba_models
from dsfjax.interop.published.families import minimax_models as minimax_models
from dsfjax.interop.published.families import olmo_models as olmo_models
from dsfjax.interop.published.families import qwen_hybrid_models as qwen_hybrid_models
