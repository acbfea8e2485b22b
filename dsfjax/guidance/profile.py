"""What is known of a task before anything is trained on it."""

from dataclasses import dataclass
from typing import Any

from dsfjax import tasks
from dsfjax._util.names import choose
from dsfjax._util.words import count, listing
from dsfjax.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A task, by what an architecture has to cope with.

    Attributes:
        length: L, steps of a sequence.
        demands: What it takes, words of `dsfjax.tasks.demands`; at least one.
        task: Its registered name, whose own results then come first; "" where it has none.
        vocab_size: Token ids, or 0 for inputs that are values.
        channels: Values per step, or 0 for token ids.
        decode_memory: Bytes that the state of one sequence may take; None for any number.
        steps: Training steps that can be paid for; None for any number.
        tokens: Training tokens that can be paid for; None for any number.

    Raises:
        ValueError: If a word is unknown, with the nearest, or a size cannot be.

    Example:
        >>> str(Profile(length=4096, demands=("recall",), vocab_size=256))
        'recall, 4\u202f096 steps, vocabulary 256'
    """

    length: int
    demands: tuple[str, ...]
    task: str = ""
    vocab_size: int = 0
    channels: int = 0
    decode_memory: float | None = None
    steps: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        known = tasks.demands()
        for demand in self.demands:
            choose("demand", demand, known)
        if not self.demands:
            raise ValueError(f"expected what the task demands, one or more of {', '.join(known)}")
        if self.length < 1:
            raise ValueError(f"expected a length >= 1, got {self.length}")
        if (self.vocab_size > 0) == (self.channels > 0) or min(self.vocab_size, self.channels) < 0:
            raise ValueError(
                "expected a vocabulary (of token ids) or channels (of values), one of them, got "
                f"vocabulary {self.vocab_size} and {self.channels} channels"
            )
        for name in ("decode_memory", "steps", "tokens"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"expected {name.replace('_', ' ')} > 0, got {value:g}")

    @property
    def inputs(self) -> str:
        """The kind of its inputs: "token ids" or "values"."""
        return kind_of_inputs(self.vocab_size)

    def __str__(self) -> str:
        width = f"vocabulary {count(self.vocab_size)}"
        if self.channels:
            width = f"{self.channels} channel{'s' if self.channels > 1 else ''}"
        return f"{listing(list(self.demands))}, {count(self.length)} steps, {width}"


def kind_of_inputs(vocab_size: int) -> str:
    """What a task reads.

    Args:
        vocab_size: Its token ids, 0 if it has none.
    """
    return "token ids" if vocab_size else "values"


def profile_of(task: Task, **own: Any) -> Profile:
    """The profile of a task.

    Args:
        task: The task; its class says what it ``demands``.
        **own: What differs from the task, by name of the field.

    Raises:
        ValueError: If the task says nothing of what it demands, or something cannot be.

    Example:
        >>> name = tasks.names()[0]
        >>> profile_of(tasks.get(name), length=4096).length
        4096
    """
    name = next((name for name in tasks.names() if tasks.kind(name) is type(task)), "")
    given = {"task": name, "length": task.seq_len, "demands": tuple(task.demands)} | own
    if "vocab_size" not in own and "channels" not in own:
        given |= {"vocab_size": task.vocab_size, "channels": task.channels}
    return Profile(**given)
