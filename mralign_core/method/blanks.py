"""Characters that show nothing: blanks of every script, controls, and characters that only steer what is shown."""

from __future__ import annotations

LINE_ENDS = "\n\u0085\u2028\u2029"
"""What ends a line by itself. A carriage return does so only before one of these, and is a blank here."""
# Unicode's white space and controls, its Default_Ignorable_Code_Point, and three signs that are drawn empty.
_RANGES = (
    (0x00, 0x20),
    (0x7F, 0xA0),
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x1680, 0x1680),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2000, 0x200F),
    (0x2028, 0x202F),
    (0x205F, 0x206F),
    (0x2800, 0x2800),
    (0x3000, 0x3000),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFC),
    (0x1BCA0, 0x1BCA3),
    (0x1D159, 0x1D159),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
BLANKS = frozenset(chr(code) for first, last in _RANGES for code in range(first, last + 1))
_IN_A_ROW = "".join(sorted(BLANKS))
BLANK_CLASS = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in _RANGES)
"""The same for a character class of a regular expression."""


def is_blank(text: str) -> bool:
    r"""Whether a text shows nothing.

    >>> is_blank("\u200b\u3164 "), is_blank("\u200bA")
    (True, False)
    """
    return all(char in BLANKS for char in text)


def strip_blanks(text: str) -> str:
    r"""The text without blanks at its ends.

    >>> strip_blanks("\ufeff\u00a0Who?\u200b\n")
    'Who?'
    """
    return text.strip(_IN_A_ROW)
