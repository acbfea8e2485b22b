"""What a command line says of a run: its options, its ``--mixer-option`` and its file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dsfjax import systems
from dsfjax._util.fields import parse
from dsfjax._util.names import choose, unknown
from dsfjax.cli import options
from dsfjax.nn import pattern
from dsfjax.training import presets
from dsfjax.training.config import AXES
from dsfjax.training.storage import serial

DECAY = ("all", "matrices")
"""What weight decay may shrink: every parameter, or those that a model labels "decay"."""


def given_by(command: options.Training) -> dict[str, Any]:
    """The settings that the options give, in place of the preset's and the file's.

    Args:
        command: The options.

    Returns:
        Setting to value; ``decay`` ("all" or "matrices") says what ``decay_all`` is, and values of
        an axis are under its field of ``TrainConfig``.

    Raises:
        ValueError: If ``decay`` is neither.
    """
    given = {k: v for k, v in dataclasses.asdict(command).items() if v not in (None, ())}
    given.pop("imports", None)  # those of the file count too
    given.pop("data_dir", None)  # a run does not depend on where files are
    given.pop("layers", None)  # a way to write the mixer
    if "decay" in given:
        given["decay_all"] = choose("decay", given["decay"], DECAY) == "all"
    one = isinstance(command, options.Train)
    for axis in AXES:
        if (values := given.pop(axis.one if one else axis.flag, None)) is None:
            continue
        values = (values,) if one else values
        if axis.absent and len(values) == 1 and not isinstance(command, options.Sweep):
            given[axis.absent] = values[0]  # the same for all members
        else:
            given[axis.field] = values
    return given


def from_file(command: options.Training, task: str) -> dict[str, Any]:
    """The settings that the file of ``--config`` gives, and the modules of ``--import``.

    Args:
        command: The options.
        task: Name of the task.

    Returns:
        Setting to value; ``mixer`` among them if the file names one.

    Raises:
        ValueError: If there is no such file, it has an unknown key, or is of another task.
        TypeError: If a value has the wrong type.
    """
    found: dict[str, Any] = {}
    if command.config is not None:
        found = presets.settings_of(presets.read_file(command.config), task)
    if imports := dict.fromkeys((*found.get("imports", ()), *command.imports)):
        found["imports"] = tuple(imports)
    return found


def mixer_options(
    mixers: Sequence[str], words: Sequence[str], written: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The options of each architecture, typed as its function declares them.

    Args:
        mixers: The architectures.
        words: ``OPTION=VALUE`` for all of them, or ``MIXER.OPTION=VALUE`` for one.
        written: The settings of the file, whose ``options`` come first.

    Returns:
        Mixer to the setting ``options``; nothing of one without any.

    Raises:
        ValueError: If a word has another form, or names a mixer or an option that there is not; the
            nearest is named.
        TypeError: If a value has the wrong type.

    Example:
        >>> mixer_options(["s6", "ssd"], ["s6.dt_rank=2"], {})
        {'s6': {'options': (('dt_rank', 2),)}}
    """
    found: dict[str, dict[str, Any]] = {mixer: {} for mixer in mixers}
    for mixer, own in found.items():
        for name, value in written.get("options", ()):
            hint = _hint(mixer, name)
            own[name] = serial.value_of(hint, value, f"option {name} of {mixer}")
    # What is of one mixer comes after what is of all of them, wherever it stands.
    for word in sorted(words, key=lambda word: "." in word.partition("=")[0]):
        path, equals, text = word.partition("=")
        whose, _, name = path.rpartition(".")
        if not equals or not name:
            raise ValueError(
                f"expected --mixer-option OPTION=VALUE or MIXER.OPTION=VALUE, got {word!r}"
            )
        if whose and whose not in mixers:
            choose("mixer of this command", whose, [x for mixer in mixers for x in names_in(mixer)])
        for mixer in mixers:
            if whose in ("", mixer):
                found[mixer][name] = parse(_hint(mixer, name), text, f"option {name} of {mixer}")
            elif whose in names_in(mixer):  # of one mixer of a pattern
                found[mixer][path] = parse(_hint(whose, name), text, f"option {name} of {whose}")
    return {mixer: {"options": tuple(sorted(own.items()))} for mixer, own in found.items() if own}


def names_in(mixer: str) -> tuple[str, ...]:
    """The architectures of a pattern of layers, which may be a single one.

    Args:
        mixer: The pattern (`dsfjax.nn.pattern`).

    Returns:
        Their names.

    Raises:
        ValueError: If one is not known, with the nearest.

    Example:
        >>> names_in("ssd*3+softmax_attention")
        ('ssd', 'softmax_attention')
    """
    names = dict.fromkeys(name for layer in pattern.layers_of(mixer) for name in layer)
    return tuple(choose("mixer", name, systems.names()) for name in names)


def _hint(mixer: str, name: str) -> Any:
    known: dict[str, Any] = {}
    for part in names_in(mixer):
        known = systems.option_types(part) | known
    known.pop("d_model")  # of the model, and always given
    if name not in known:
        raise ValueError(unknown(f"{mixer} has no option", name, known))
    return known[name]
