"""Published settings, as data: the preset "paper" of a task (``--preset paper``).

Nothing here was tuned with this package, and little of it fits a machine without an accelerator.
Every number is from one of these repositories, at the commit that was read:

* **S5**: github.com/lindermanlab/S5 @ 3c18fdb, ``bin/run_experiments/*.sh`` (arXiv 2208.04933).
* **S4**: github.com/state-spaces/s4 @ e757cef, ``README.md`` and ``configs`` (arXiv 2111.00396).
* **LRA**: github.com/google-research/long-range-arena @ cd31e5c, ``lra_benchmarks/*/configs``
  (arXiv 2011.04006).
* **Eigenvalues**: github.com/IntelligentControlSystems/
  Task-Level-Insights-from-Eigenvalues-across-Sequence-Models @ 67d8254, ``configs/iclr2026``
  (arXiv 2510.09379), by the authors of the paper (arXiv 2405.15731).
* **mad-lab**: github.com/athms/mad-lab @ 0f49a45, ``mad/configs.py``, ``configs`` (arXiv
  2403.17844).
* **State tracking**: github.com/automl/unlocking_state_tracking @ df8f840,
  ``xlstm/experiments/*.yaml`` (arXiv 2411.12537); github.com/jopetty/word-problem @ 8f910f9,
  ``run*.sh``, ``launch*.slurm``, ``src/main.py`` (arXiv 2404.08819).
* **Copying**: github.com/sjelassi/transformers_ssm_copy @ 1188c47, ``synthetic_exps`` (arXiv
  2402.01032).
* **RegBench**: github.com/berlino/seq_icl @ 9b9223d, ``configs`` (arXiv 2401.12973).

``docs/tasks.md`` says where a preset differs from its source.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsfjax.tasks.protocol import Preset

Settings = dict[str, Any]

ATTENTION = ("softmax_attention", "linear_attention", "normalized_attention")
MIXERS = (*ATTENTION, "s6", "ssd")
"""The architectures of the paper's experiments beyond recall, and Mamba-2's, its follow-up's."""

MAMBA: Mapping[str, Any] = {"block": "mamba", "surroundings": "practice"}
"""Mamba and Mamba-2 as they are used: short convolution and gate inside, and no MLP."""
TRANSFORMER: Mapping[str, Any] = {"block": "prenorm", "surroundings": "paper"}


def epochs(examples: int, batch_size: int, count: int, warmup: int = 0) -> Settings:
    """Steps of so many epochs, whose last, incomplete batch is left out; one evaluation each.

    Args:
        examples: Examples of the training set.
        batch_size: Examples of a batch.
        count: Epochs.
        warmup: Epochs of warm-up.

    Example:
        >>> epochs(45_000, 50, 250, warmup=1)
        {'batch_size': 50, 'steps': 225000, 'eval_every': 900, 'warmup_steps': 900}
    """
    each = examples // batch_size
    return {
        "batch_size": batch_size,
        "steps": count * each,
        "eval_every": each,
        "warmup_steps": warmup * each,
    }


class _StateSpace(NamedTuple):
    """A state space model of S5 or S4. Parameters of the recurrence have a rate of their own."""

    d_model: int
    num_layers: int
    rate: float
    dynamics: float
    weight_decay: float
    dropout: float
    batch_size: int
    epochs: int
    warmup: int
    bidirectional: bool = True

    def settings(self, examples: int) -> Settings:
        return {
            **MAMBA,
            "d_model": self.d_model,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "residual_dropout": self.dropout,
            "learning_rates": (self.rate,),
            "dynamics_rate": self.dynamics / self.rate,
            "weight_decay": self.weight_decay,
            "decay_all": False,
            **epochs(examples, self.batch_size, self.epochs, self.warmup),
        }


class _Transformer(NamedTuple):
    """A Transformer of LRA. Its ``qkv_dim`` is that of queries and keys over all heads."""

    d_model: int
    num_layers: int
    num_heads: int
    qkv_dim: int
    mlp_dim: int
    dropout: float

    def settings(self, length: int) -> Settings:
        return {
            **TRANSFORMER,
            "d_model": self.d_model,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "d_state": self.qkv_dim // self.num_heads,
            "mlp_ratio": self.mlp_dim // self.d_model,
            "max_length": length,
            "bidirectional": True,
            "embed_dropout": self.dropout,
            "residual_dropout": self.dropout,
            "dynamics_rate": 1.0,
            "decay_all": True,
            "b2": 0.98,
            "eps": 1e-9,
        }


class _Mamba2(NamedTuple):
    """A Mamba-2 model of the paper's authors: 4 heads, a state of 64, and no expansion."""

    d_model: int
    num_layers: int
    rate: float
    weight_decay: float
    batch_size: int
    epochs: int

    def settings(self, examples: int) -> Settings:
        return {
            "d_model": self.d_model,
            "num_layers": self.num_layers,
            "num_heads": 4,
            "d_state": 64,
            "options": (("d_inner", self.d_model),),
            "bidirectional": False,
            "residual_dropout": 0.0,
            "learning_rates": (self.rate,),
            "dynamics_rate": 1.0,
            "weight_decay": self.weight_decay,
            "decay_all": True,
            "clip": 1.0,
            **epochs(examples, self.batch_size, self.epochs, warmup=5),
        }


def _rsqrt(rate: float, weight_decay: float, steps: int, warmup: int, every: int) -> Settings:
    """LRA's text tasks: batches of 32, and ``rate`` over the root of the step, from warm-up on.

    The peak is that at the end of the warm-up, or of the run where it ends before.
    """
    last = min(warmup, steps)
    return {
        "learning_rates": (rate * last / warmup / warmup**0.5,),
        "weight_decay": weight_decay,
        "batch_size": 32,
        "steps": steps,
        "warmup_steps": min(warmup, steps - 1),
        "eval_every": every,
    }


def _cosine(rate: float, examples: int, batch_size: int) -> Settings:
    """LRA's image tasks: 200 epochs, the first of them warm-up, and no weight decay."""
    return {
        "learning_rates": (rate,),
        "weight_decay": 0.0,
        **epochs(examples, batch_size, 200, warmup=1),
    }


def _lra(
    examples: int,
    held_out: int,
    length: int,
    recurrent: _StateSpace,
    attention: _Transformer,
    trained: Settings,
    *,
    mamba2: _Mamba2 | None = None,
    linear: _Transformer | None = None,
) -> Preset:
    """A task of Long Range Arena, or one like it.

    Args:
        examples: Examples of the training set.
        held_out: Examples that models are judged on, all of them.
        length: Steps of a sequence.
        recurrent: Every architecture but attention; a published one of S4 or S5.
        attention: Attention, of all kinds; LRA's.
        trained: How attention is trained.
        mamba2: SSD, where the paper's authors published it.
        linear: Linear attention, where LRA's differs.
    """
    own = {mixer: {**attention.settings(length), **trained} for mixer in ATTENTION}
    if linear is not None:
        own["linear_attention"] |= linear.settings(length)
    own["ssd"] = {"num_heads": 4} if mamba2 is None else mamba2.settings(examples)
    settings = recurrent.settings(examples)
    settings |= {"eval_examples": held_out, "pooling": "mean", "norm": "layer", "seeds": (0, 1, 2)}
    return Preset("the literature's sizes and rates: needs an accelerator", settings, MIXERS, own)


# S5: run_lra_imdb.sh. LRA: text_classification/configs/base_tc_config.py, whose models have the
# dropout of models/transformer/transformer.py. Eigenvalues: imdb/imdb-mamba2.yaml.
_TEXT = (
    _StateSpace(256, 6, 4e-3, 1e-3, 0.07, 0.1, 50, 35, 0),
    _Transformer(256, 4, 4, 256, 1024, 0.1),
    _rsqrt(0.05, 0.1, 20_000, 8_000, 1_000),
)
_TEXT_MAMBA2 = _Mamba2(128, 4, 5e-4, 0.01, 6, 30)
# LRA: image/configs/cifar10/{base_cifar10_config,transformer_base,linear_transformer_base}.py.
_PIXELS = _Transformer(128, 1, 8, 64, 128, 0.3)

LRA: Mapping[str, Preset] = {
    # S5: run_lra_listops.sh. LRA: listops/configs/base_listops_config.py. Eigenvalues:
    # listops/listops-mamba2.yaml.
    "listops": _lra(
        96_000,
        2_000,
        2048,
        _StateSpace(128, 8, 3e-3, 1e-3, 0.04, 0.0, 50, 40, 1),
        _Transformer(512, 4, 8, 512, 1024, 0.1),
        _rsqrt(0.05, 0.1, 5_000, 1_000, 500),
        mamba2=_Mamba2(128, 6, 5e-4, 0.01, 50, 50),
    ),
    "imdb": _lra(25_000, 25_000, 4096, *_TEXT, mamba2=_TEXT_MAMBA2),
    "imdb_bytes": _lra(25_000, 25_000, 1000, *_TEXT, mamba2=_TEXT_MAMBA2),
    # S5: run_lra_aan.sh. LRA: matching/configs/base_match_config.py.
    "aan": _lra(
        147_086,
        17_437,
        8000,
        _StateSpace(128, 6, 2e-3, 1e-3, 0.05, 0.0, 32, 20, 1),
        _Transformer(128, 4, 4, 128, 512, 0.1),
        _rsqrt(0.05, 0.1, 5_000, 8_000, 500),
    ),
    # S5: run_lra_cifar.sh. Eigenvalues: cifar/cifar-mamba2.yaml.
    "cifar10": _lra(
        45_000,
        10_000,
        1024,
        _StateSpace(512, 6, 4.5e-3, 1e-3, 0.07, 0.1, 50, 250, 1),
        _PIXELS,
        _cosine(5e-4, 45_000, 256),
        mamba2=_Mamba2(512, 6, 2e-4, 0.0, 50, 50),
    ),
    # S5: run_lra_pathfinder.sh. LRA: image/configs/pathfinder32/*.py.
    "pathfinder": _lra(
        160_000,
        20_000,
        1024,
        _StateSpace(192, 6, 4.5e-3, 9e-4, 0.03, 0.05, 64, 200, 1),
        _Transformer(32, 4, 4, 16, 32, 0.2),
        _cosine(1e-3, 160_000, 512),
        linear=_Transformer(128, 1, 2, 64, 128, 0.2),
    ),
    # Not in LRA. S4: the example of README.md, configs/pipeline/mnist.yaml, configs/model/s4.yaml.
    "mnist": _lra(
        60_000,
        10_000,
        784,
        _StateSpace(128, 3, 1e-3, 1e-3, 0.0, 0.0, 50, 200, 0, bidirectional=False),
        _PIXELS,
        _cosine(5e-4, 60_000, 256),
    ),
}
"""Task to its preset."""

# Eigenvalues: wikitext/wikitext-103-*.yaml, and train.py for the clipping. The widths, of the paper
# only the total of about 70 million parameters is known: those of github.com/EleutherAI/pythia,
# models/70M/pythia-70m.yml (arXiv 2304.01373), with the vocabulary of GPT-2.
LANGUAGE = Preset(
    "the paper's language models of 70 million parameters on WikiText-103",
    {
        "corpus": "wikitext103",
        "tokens": "bpe",
        "seq_len": 1024,
        "streamed": True,
        **TRANSFORMER,
        "head": "untied",
        "d_model": 512,
        "num_layers": 6,
        "num_heads": 8,
        "d_state": 64,
        "mlp_ratio": 4,
        "learning_rates": (1e-3,),
        "weight_decay": 0.1,
        "b1": 0.9,
        "b2": 0.95,
        "clip": 1.0,
        "warmup_steps": 3_000,
        "batch_size": 8,
        "steps": 130_000,
        "eval_every": 1_000,
        "eval_examples": 288,  # all windows of the test text
        "stop_at": None,
    },
    MIXERS,
    {
        **{mixer: {"max_length": 1024} for mixer in ATTENTION},
        "linear_attention": {"max_length": 1024, "learning_rates": (5e-4,)},
        # Layers without an MLP are as many as give the same number of parameters.
        "s6": {**MAMBA, "num_layers": 11, "d_state": 16},
        "ssd": {**MAMBA, "num_layers": 12, "num_heads": 16},
        # Trained as the authors' recurrent networks (wikitext-103-lru.yaml).
        "rg_lru": {"warmup_steps": 13_000},
        "qlstm": {"block": "mamba", "num_layers": 3, "warmup_steps": 13_000},
        "qlstm_reversed": {"block": "mamba", "num_layers": 3, "warmup_steps": 13_000},
        "lstm": {"block": "mamba", "num_layers": 8, "warmup_steps": 13_000},
        "gru": {"block": "mamba", "num_layers": 10, "warmup_steps": 13_000},
    },
)
"""The preset of language modelling."""

MAD_EXAMPLES, MAD_MEMORIZED = 12_800, 256
"""Examples of the training sets of the benchmark, and of that of memorization."""


def mad(examples: int = MAD_EXAMPLES) -> Preset:
    """mad-lab's run on a training set of so many examples: 200 epochs of batches of 128.

    Args:
        examples: Examples of the training set, seen in every epoch.

    Example:
        >>> mad().settings["steps"], mad(800).settings["steps"]
        (20000, 1400)
    """
    each = -(-examples // 128)
    settings = {
        "train_examples": examples,
        "eval_examples": 1_280,
        # Layers by turns, a mixer and a SwiGLU: two blocks of both.
        **TRANSFORMER,
        "d_model": 128,
        "num_layers": 2,
        # mh-attention.yml and mh-linear-attention.yml: 16 heads, so that linear attention has a
        # state of 16 · 8 · 8 = 1,024 numbers, as mamba.yml has with 256 channels of 4.
        "num_heads": 16,
        "d_state": 8,
        "schedule": "cosine_per_epoch",
        "steps_per_epoch": each,
        "batch_size": 128,
        "steps": 200 * each,
        "eval_every": each,
        # The best of the six runs counts.
        "learning_rates": (1e-4, 5e-4, 1e-3),
        "weight_decays": (0.0, 0.1),
    }
    mamba = {"surroundings": "practice", "d_state": 4}
    own = {"softmax_attention": {"max_length": 1280}, "s6": mamba, "ssd": mamba}
    return Preset("mad-lab's models, training set and grid", settings, MIXERS, own)


_TRACKING = (*MIXERS, "rg_lru", "qlstm")


def _two_layers(steps: int, warmup: int, weight_decay: float) -> Preset:
    """Two layers of width 128, as in the experiments of arXiv 2411.12537 on formal languages."""
    settings = {
        **MAMBA,
        "d_model": 128,
        "num_layers": 2,
        "head": "untied",
        "learning_rates": (1e-3,),
        "weight_decay": weight_decay,
        "decay_all": False,
        "batch_size": 256,
        "steps": steps,
        "warmup_steps": warmup,
        "eval_every": 200,
        "eval_examples": 8192,
    }
    own = {mixer: {**TRANSFORMER, "num_heads": 4, "d_state": 32} for mixer in ATTENTION}
    own["ssd"] = {"num_heads": 4}
    return Preset("arXiv 2411.12537: two layers, lengths 3 to 40", settings, _TRACKING, own)


PARITY = _two_layers(20_000, 2_000, 0.0)  # parity_*.yaml
MODULAR_ARITHMETIC = _two_layers(100_000, 10_000, 0.1)  # mod_arithmetic_*.yaml

# run-mamba.sh, launch-mamba.slurm; run.sh, launch.slurm for Transformers. 80 % of 1,000,000 words.
WORD_PROBLEM = Preset(
    "arXiv 2404.08819: words of 20 elements of A5, three layers",
    {
        "group": "A5",
        "seq_len": 20,
        "min_length": 20,
        **MAMBA,
        "d_model": 698,
        "num_layers": 3,
        "head": "untied",
        "schedule": "constant",
        "learning_rates": (1e-4,),
        "weight_decay": 0.01,
        **epochs(800_000, 512, 500),
        "train_examples": 800_000,
        "eval_examples": 8192,
        "stop_at": 0.99,
    },
    _TRACKING,
    {
        **{
            mixer: {
                **TRANSFORMER,
                "d_model": 512,
                "num_heads": 8,
                "d_state": 64,
                "max_length": 20,
                "learning_rates": (5e-5,),
            }
            for mixer in ATTENTION
        },
        "ssd": {"num_heads": 4},
        "rg_lru": {"d_model": 512},
        "qlstm": {"d_model": 512},
    },
)

# main.py (defaults), model_utils.py and train_utils.py.
COPYING = Preset(
    "arXiv 2402.01032: strings of 5 to 20 letters, twelve layers of width 1,024",
    {
        **TRANSFORMER,
        "d_model": 1024,
        "num_layers": 12,
        "num_heads": 16,
        "d_state": 64,
        "learning_rates": (1e-5,),
        "weight_decay": 0.1,
        "clip": 1.0,
        "batch_size": 8,
        "steps": 2_000,
        "warmup_steps": 100,
        "eval_every": 200,
        "eval_examples": 1_024,
    },
    MIXERS,
    {"s6": {**MAMBA, "d_state": 32}, "ssd": {**MAMBA, "d_state": 32}},
)

# experiment/dfa/{base,transformer,linear_transformer,mamba}.yaml, dataset/icl_dfa.yaml.
AUTOMATA = Preset(
    "arXiv 2401.12973: 5,000 automata, width 128",
    {
        **TRANSFORMER,
        "d_model": 128,
        "num_layers": 8,
        "num_heads": 2,
        "d_state": 64,
        "embed_dropout": 0.1,
        "train_examples": 5_000,
        "learning_rates": (5e-4,),
        "weight_decay": 0.1,
        "batch_size": 32,
        # An epoch has an incomplete batch: 157 steps.
        "steps": 31_400,
        "warmup_steps": 3_140,
        "eval_every": 157,
        "eval_examples": 500,
    },
    MIXERS,
    {
        **{mixer: {"max_length": 1024} for mixer in ATTENTION[:2]},
        "s6": {**MAMBA, "num_layers": 4},
        "ssd": {**MAMBA, "num_layers": 4},
    },
)
