"""Numbers in words, for the page and the terminal."""

import math


def percent(value: float) -> str:
    r"""A fraction as a percentage, one decimal and a blank that does not break.

    Example:
        >>> percent(0.98765)
        '98.8\xa0%'
    """
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def capitalized(text: str) -> str:
    """A text with a capital letter at its beginning.

    Example:
        >>> capitalized("bits per byte"), capitalized("mean over Q")
        ('Bits per byte', 'Mean over Q')
    """
    return text[:1].upper() + text[1:]


def count(value: int | float | None) -> str:
    """A whole number with thin spaces between thousands; a dash for None.

    Example:
        >>> count(123456.4), count(None)
        ('123\u202f456', '–')
    """
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def rate(value: float) -> str:
    """A learning rate to three digits.

    Example:
        >>> rate(0.0031622), rate(1e-4), rate(0.01)
        ('0.00316', '0.0001', '0.01')
    """
    return f"{value:.3g}"


def listing(names: list[str]) -> str:
    """Names joined as in a sentence.

    Example:
        >>> listing(["a", "b", "c"])
        'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def steps(value: float) -> str:
    """A number of steps to three digits.

    Example:
        >>> steps(12.3456), steps(float("inf")), steps(1.0)
        ('12.3 steps', 'no number of steps', '1 step')
    """
    if math.isinf(value):
        return "no number of steps"
    return f"{value:.3g} step{'' if value == 1 else 's'}"


def factor(value: float | None) -> str:
    """A factor to two digits; a dash where there is none.

    Example:
        >>> factor(0.2345), factor(18.2), factor(None), factor(1e-7)
        ('0.23×', '18×', '–', '1e-07×')
    """
    return "–" if value is None or math.isnan(value) else f"{value:.2g}×"


def binary(size: int | float) -> str:
    """Bytes to three digits, in the units of memory.

    Example:
        >>> binary(512), binary(10 * 2**20), binary(1.5 * 2**30), binary(1012 * 2**20)
        ('512 B', '10 MiB', '1.5 GiB', '1,012 MiB')
    """
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1023.5 and len(units) > 1:
        size /= 1024
        units.pop(0)
    unit = units[0]
    return f"{size:,.0f} {unit}" if size >= 999.5 else f"{size:.3g} {unit}"


def number(value: float | None, digits: int = 3) -> str:
    """A number to some digits; a dash where there is none, ∞ as such.

    Example:
        >>> number(12.3456), number(float("inf")), number(float("nan")), number(-0.5)
        ('12.3', '∞', '–', '−0.5')
    """
    if value is None or math.isnan(value):
        return "–"
    text = "∞" if math.isinf(value) else f"{abs(value):.{digits}g}"
    return f"−{text}" if value < 0 else text


def unit(value: int | float, name: str = "") -> str:
    """A number with three digits, a decimal prefix and what it counts.

    Example:
        >>> unit(4_198_934, "B"), unit(12, "B"), unit(2e6)
        ('4.2 MB', '12 B', '2 M')
    """
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}{name}".rstrip()
        value /= 1000
    return f"{value:.3g} P{name}"
