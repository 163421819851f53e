"""JSON that is safe inside a script, whatever strings a data set put in it."""

import json
import math
import re
from typing import Any

_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
"""What could end a script element, end a JavaScript line or fail to encode as UTF-8."""


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def embedded_fast(value: Any) -> str:
    """As `embedded`, for much that is whole: no broken Unicode and no NaN in it."""
    import orjson

    text = orjson.dumps(value).decode()
    for unsafe in "<>&\u2028\u2029":
        text = text.replace(unsafe, f"\\u{ord(unsafe):04x}")
    return text


def plain(value: Any) -> Any:
    """`value` with short floats, and null for those that JSON cannot say."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return short(value, 6) if isinstance(value, float) else value


def short(value: float | None, digits: int = 4) -> float | None:
    """`value` to so many significant digits: the page shows no more."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
