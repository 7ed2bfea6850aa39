"""What ends a job before it is made: it is refused, or it is not supported here; and the hint that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class Refused(Exception):
    """Bad input: one line that names what is wrong and the fix. Nothing has been written."""


class Unsupported(Exception):
    """This run cannot be made here, and why: a missing package, gradients of the other kind."""


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean …?` where one of `words` is close, else the list if it is short."""
    words = sorted(words)
    close = get_close_matches(word, words, 1, 0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(words)}" if 0 < len(words) <= 12 else ""
