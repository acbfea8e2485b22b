"""What a model is, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Literal, get_args

from dsfjax import systems
from dsfjax._util.fields import convert_fields
from dsfjax._util.names import choose, unknown
from dsfjax.core import Precision
from dsfjax.engines import ENGINES, Method
from dsfjax.nn.pattern import Layer, layers_of, name_of

BlockName = Literal["prenorm", "transformer", "mamba"]
HeadName = Literal["tied", "untied", "classifier", "values", "decoder"]
Surroundings = Literal["paper", "authors", "practice"]


@dataclass(frozen=True)
class ModelConfig:
    """A sequence model around one architecture, or around several in turn.

    Attributes:
        mixer: Name of an architecture (`dsfjax.systems.names`), or a pattern of layers that repeats
            until there are ``num_layers``: "3xgated_deltanet+softmax_attention" (or
            "gated_deltanet*3+…") for three layers of one and one of the other,
            "ssd&softmax_attention" for layers with both, whose outputs are added
            (`dsfjax.nn.pattern`).
        vocab_size: Token ids; 0 for inputs that are values (``channels``).
        d_model: d, width of the residual stream.
        num_layers: Blocks.
        d_state: n, state expansion per head; None for the architecture's own default. Ignored by
            an architecture without state expansion.
        num_heads: H; None for the architecture's own default. Ignored by one without heads.
        options: Further keywords of the architecture, as pairs: (("normalizer", "softplus"),). In a
            pattern they are for those that have them; ("ssd.num_groups", 2) is for one alone and
            comes before ("num_groups", 1). Either comes before ``d_state`` and ``num_heads`` here.
            Where there are ``layer`` and ``num_layers``, each layer is told its own.
        surroundings: What stands around the recurrence (`dsfjax.nn.Surrounding`): "paper" as in the
            paper's experiments (attention, S6 and SSD bare, gate and convolution for the RNNs),
            "authors" as in their code (attention's output map has a bias, the rest as "paper"), or
            "practice" as in the models in use (Mamba, Mamba-2, Griffin; convolved q, k, v).
        block: "prenorm" (mixer, then MLP), "mamba" (mixer only) or "transformer" (the authors'
            Transformer block without MLP; see `dsfjax.nn.Block`).
        mlp_ratio: Hidden width of the MLP over d.
        norm: "layer" or "rms".
        max_length: Number of learned positions; 0 for none.
        head: "tied" to the embedding, "untied", "classifier" (pooled features), or "values"
            (``num_outputs`` numbers at every step), or "decoder" (``num_decoded`` tokens from the
            features of the last step, `dsfjax.nn.pieces.Decoder`).
        num_classes: Outputs of the classifier.
        pooling: Of the classifier, "mean" or "last".
        embed_dropout: Rate after the embedding, in training.
        residual_dropout: Rate on what the other layers add to the residual stream.
        attention_dropout: Rate on the attention matrix; attention mixers only.
        init: "published" or "authors" (whose model overwrites every linear map with N(0, 0.02²)).
        method: Engine of `dsfjax.scan`.
        channels: Values per step of inputs (L, channels), mapped linearly; 0 for token ids.
        precision: "float32", "bfloat16" (activations and operands of products in bfloat16; states,
            sums, logits and master weights in float32) or "tf32" (products of float32 in TF32 where
            the device has it); see `dsfjax.Precision.named`.
        num_outputs: Numbers that the head "values" gives at every step.
        num_decoded: Tokens that the head "decoder" makes of a sequence.
        num_documents: Documents in a sequence that the classifier reads: 1, or 2 for a class of the
            pair (`dsfjax.nn.model.pair_features`).
        bidirectional: Whether every block also has a mixer of its own for the reversed sequence,
            whose outputs are added. Such a model reads whole sequences; it cannot continue one.
        remat: Whether the backward pass computes every block again instead of keeping what is
            inside: the memory of one block instead of all, for about a third more time, on GPUs and
            TPUs. XLA's CPU compiler merges the second computation with the first, so that on a CPU
            it saves nothing.
        mlp: "gelu", W₂ gelu(W₁ x) with biases, or "swiglu", W₂ (silu(W₁ x) ⊙ W₃ x) without
            (arXiv:2002.05202).
        embed_scale: Multiplies what the embedding gives (√d in Gemma).
        residual_scale: Multiplies what mixers and MLPs add to the residual stream (Granite).
        logit_scale: Multiplies the head's outputs.
        logit_cap: c of the soft cap c · tanh(x / c) on them (Gemma 2); 0 for none.

    Raises:
        ValueError: For unknown names, with the nearest, and for sizes that cannot be.

    Example:
        >>> ModelConfig("sdd", vocab_size=64)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: unknown mixer 'sdd'; did you mean 'ssd'? Known: softmax_attention, ...
    """

    mixer: str
    vocab_size: int
    d_model: int = 64
    num_layers: int = 2
    d_state: int | None = None
    num_heads: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    surroundings: Surroundings = "paper"
    block: BlockName = "prenorm"
    mlp_ratio: int = 4
    norm: Literal["layer", "rms"] = "layer"
    max_length: int = 0
    head: HeadName = "tied"
    num_classes: int = 0
    pooling: Literal["mean", "last"] = "mean"
    embed_dropout: float = 0.0
    residual_dropout: float = 0.0
    attention_dropout: float = 0.0
    init: Literal["published", "authors"] = "published"
    method: Method = "auto"
    # "later": written into a run's config only where it is not the default, as older ones lack it.
    channels: int = field(default=0, metadata={"later": True})
    precision: Literal["float32", "bfloat16", "tf32"] = field(
        default="float32", metadata={"later": True}
    )
    num_outputs: int = field(default=0, metadata={"later": True})
    num_decoded: int = field(default=0, metadata={"later": True})
    num_documents: int = field(default=1, metadata={"later": True})
    bidirectional: bool = field(default=False, metadata={"later": True})
    remat: bool = field(default=False, metadata={"later": True})
    mlp: Literal["gelu", "swiglu"] = field(default="gelu", metadata={"later": True})
    embed_scale: float = field(default=1.0, metadata={"later": True})
    residual_scale: float = field(default=1.0, metadata={"later": True})
    logit_scale: float = field(default=1.0, metadata={"later": True})
    logit_cap: float = field(default=0.0, metadata={"later": True})

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The mixers of every layer."""
        return tuple(islice(cycle(layers_of(self.mixer)), self.num_layers))

    @property
    def num_systems(self) -> int:
        """Systems of the model: one per mixer of a layer, twice as many of a bidirectional one."""
        return sum(map(len, self.layers)) * (2 if self.bidirectional else 1)

    def __post_init__(self) -> None:
        convert_fields(self)
        pattern = layers_of(self.mixer)
        object.__setattr__(self, "mixer", name_of(pattern))
        names = tuple(dict.fromkeys(name for layer in pattern for name in layer))
        for name in names:
            choose("mixer", name, systems.names())
        for option, _ in self.options:
            whose, _, own = option.rpartition(".")
            if whose:
                choose("mixer of this model", whose, names)
            elif len(names) > 1 and not any(own in systems.options(name) for name in names):
                known = dict.fromkeys(own for name in names for own in systems.options(name))
                raise ValueError(unknown(f"{self.mixer} has no option", own, known))
        choose("surroundings", self.surroundings, get_args(Surroundings))
        choose("block", self.block, get_args(BlockName))
        choose("norm", self.norm, ("layer", "rms"))
        choose("head", self.head, get_args(HeadName))
        choose("pooling", self.pooling, ("mean", "last"))
        choose("mlp", self.mlp, ("gelu", "swiglu"))
        for name in ("embed_scale", "residual_scale", "logit_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}")
        if not 0 <= self.logit_cap < float("inf"):
            raise ValueError(f"expected logit_cap > 0, or 0 for none, got {self.logit_cap}")
        choose("init", self.init, ("published", "authors"))
        Precision.named(self.precision)
        choose("method", self.method, ("auto", *ENGINES))
        if self.channels and (self.vocab_size or self.head == "tied"):
            raise ValueError(
                f"expected inputs of {self.channels} channels to have vocab_size = 0 and a head of "
                f"their own, got vocab_size = {self.vocab_size} and head = {self.head!r}; with "
                "channels = 0 inputs are token ids"
            )
        if not self.channels and self.vocab_size < 1:
            raise ValueError(f"expected vocab_size >= 1, got {self.vocab_size}")
        for name in ("d_model", "num_layers", "mlp_ratio", "d_state", "num_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
        for name in ("max_length", "num_classes", "num_outputs", "num_decoded", "channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} >= 0, got {getattr(self, name)}")
        if len(set(pattern)) > 1 and self.num_layers < len(pattern):
            raise ValueError(
                f"expected num_layers >= {len(pattern)}, one for every layer of the pattern "
                f"{self.mixer}, got {self.num_layers}"
            )
        if self.vocab_size >= 2**31:
            raise ValueError(f"expected vocab_size < 2^31 (ids are int32), got {self.vocab_size}")
        if (self.head == "classifier") != (self.num_classes > 0):
            raise ValueError(
                f"head = {self.head!r} and num_classes = {self.num_classes} do not fit: a "
                "classifier needs num_classes > 0, and only a classifier has classes"
            )
        if (self.head == "values") != (self.num_outputs > 0):
            raise ValueError(
                f"head = {self.head!r} and num_outputs = {self.num_outputs} do not fit: the head "
                "'values' needs num_outputs > 0, and only it has them"
            )
        if (self.head == "decoder") != (self.num_decoded > 0):
            raise ValueError(
                f"head = {self.head!r} and num_decoded = {self.num_decoded} do not fit: the head "
                "'decoder' needs num_decoded > 0, and only it has them"
            )
        if self.num_documents not in ((1, 2) if self.head == "classifier" else (1,)):
            raise ValueError(
                "expected num_documents of 1, or 2 for a classifier of pairs, got "
                f"{self.num_documents} with head = {self.head!r}"
            )
        for name in ("embed_dropout", "residual_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected 0 <= {name} < 1, got {getattr(self, name)}")
        if self.attention_dropout and self.method not in ("auto", "materialized"):
            raise ValueError(
                f"attention_dropout needs the attention matrix, which method = {self.method!r} "
                "never forms; use method = 'materialized' or 'auto', or attention_dropout = 0"
            )
