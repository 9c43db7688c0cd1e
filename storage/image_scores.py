"""The score of every image in a few bytes, as a measurement's `extra` keeps it.

Scores lie on a grid between the lowest and the highest: of two points where there are no others
(hits and misses), else of 65,536. So hits come back as they were, and any other score to within a
131,000th of the range.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

MOST_BYTES = 48 * 2**10
"""Of one measurement's scores: 24,576 images, or 393,216 that are hit or missed."""
MOST = 1e6
"""What lies further from zero is no score, as in the table of measurements."""


def packed(scores: Sequence[float]) -> dict[str, Any] | None:
    """Return finite scores, one or more, as JSON; None if they take more than MOST_BYTES."""
    low, high = min(scores), max(scores)
    bits = 1 if {*scores} == {low, high} else 16
    if bits * len(scores) > 8 * MOST_BYTES:
        return None
    step = (high - low) / (2**bits - 1) or 1.0
    places = [round((score - low) / step) for score in scores]
    if bits == 1:
        flags = sum(1 << number for number, place in enumerate(places) if place)
        data = flags.to_bytes(-(-len(places) // 8), "little")
    else:
        data = struct.pack(f"<{len(places)}H", *places)
    text = base64.b64encode(data).decode()
    return {"count": len(places), "low": low, "high": high, "bits": bits, "data": text}


def unpacked(stored: Mapping[str, Any]) -> list[float]:
    """Return the scores that `packed` made JSON of, in their order.

    ValueError if it is not what `packed` makes: a worker's role may write anything there.
    """
    match stored:
        case {
            "count": int() as count, "low": int() | float() as low, "high": int() | float() as high,
            "bits": 1 | 16 as bits, "data": str() as text,
        } if count > 0 and max(abs(low), abs(high)) <= MOST:  # fmt: skip
            data = base64.b64decode(text, validate=True)
            if len(data) != -(-count * bits // 8) or len(data) > MOST_BYTES:
                raise ValueError(f"{len(data)} bytes for {count} scores of {bits} bits")
        case _:
            raise ValueError("no scores of images")
    if bits == 1:
        return [
            float(high if data[number // 8] >> number % 8 & 1 else low) for number in range(count)
        ]
    step = (high - low) / (2**16 - 1)
    return [low + place * step for place in struct.unpack(f"<{count}H", data)]
