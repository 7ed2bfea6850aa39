"""Parameter shapes on a command line: 8*1048576+256*8x1024 is eight vectors and 256 matrices of 8 × 1024.

Shapes are joined by plus signs, since Hydra takes commas for a sweep; nothing in it needs quotes but the shell's own.
"""

import re

from optimeter.conf import Refused

Counted = list[tuple[int, list[int]]]  # (how many, [rows, columns …])
PART = re.compile(r"(?:([1-9]\d*)\*)?([1-9]\d*(?:x[1-9]\d*)*)")
MOST = 100_000  # tensors


def parse_shapes(text: object) -> Counted:
    """(count, dimensions) of each part of `text`; raises Refused with the form where it is another."""
    whole = isinstance(text, (str, int)) and not isinstance(text, bool)
    parts = [PART.fullmatch(part.strip()) for part in str(text).split("+")] if whole else [None]
    found = [part for part in parts if part]
    counted: Counted = [(int(part[1] or 1), [int(n) for n in part[2].split("x")]) for part in found]
    if len(counted) < len(parts):
        raise Refused(
            f"measure.shapes must be shapes joined by +, each with a count in front or none, as in "
            f"'measure.shapes=8*1048576+256*8x1024', not {text!r}"
        )
    if (count := sum(count for count, _ in counted)) > MOST:
        raise Refused(f"measure.shapes asks for {count:,} tensors; {MOST:,} are the most")
    return counted
