"""How the pages write numbers, times, values and mathematics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup


def format_number(value: float | None) -> str:
    """Return a number as a reader wants it: four digits, whole numbers in full, small ones as 1e-12.

    >>> [format_number(x) for x in (0.0123456, 4.57e-4, 1e-12, 20123, 9594010.0, float("nan"), None, True)]
    ['0.01235', '4.57e-4', '1e-12', '20\\u202f123', '9\\u202f594\\u202f010', 'NaN', '–', 'yes']
    """
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    if size < 1e15 and (value == int(value) or 1e4 <= size < 1e7):
        return f"{value:,.0f}".replace(",", "\u202f") if size >= 9_999.5 else f"{value:.0f}"
    if 1e-3 <= size < 9_999.5:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_seconds(seconds: float | None) -> str:
    """Return a time as a reader says it.

    >>> [format_seconds(s) for s in (0.012, 14.83, 200, 7500, None)]
    ['0.0 s', '14.8 s', '3 min 20 s', '2 h 05 min', '–']
    """
    if seconds is None or not math.isfinite(seconds):
        return format_number(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_estimate(seconds: float) -> str:
    """Return an estimated time, in two digits.

    >>> [format_estimate(s) for s in (0.52, 85, 680, 11_000, 123_456, 2e7)]
    ['≈ 0.52 s', '≈ 85 s', '≈ 11 min', '≈ 3.1 h', '≈ 34 h', '≈ 230 days']
    """
    longer = ("h", 3600) if seconds < 360_000 else ("days", 86_400)
    unit, size = ("s", 1) if seconds < 90 else ("min", 60) if seconds < 5400 else longer
    return f"≈ {float(f'{seconds / size:.2g}'):g} {unit}"


def format_value(value: Any) -> str:
    """Return any JSON value as one line of text; of a long list its ends.

    >>> format_value([1, 0.25, "x"]), format_value({"sizes": [2, 3]})
    ('1, 0.25, x', 'sizes: 2, 3')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {format_value(item)}" for key, item in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        items = [f"({format_value(item)})" if isinstance(item, list) else format_value(item) for item in value]
        if len(items) > 12:
            items = [*items[:6], "…", *items[-2:]]
            return f"{', '.join(items)} ({len(value)} values)"
        return ", ".join(items) or "–"
    return format_number(value)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return names as a list in a sentence; of many the first.

    >>> listed(["a", "b", "c"]), listed(["a", "b", "c", "d"], most=2), listed(["x, y", "z"])
    ('a, b and c', 'a, b and 2 more', 'x, y; z')
    """
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    if any("," in name for name in names):
        return "; ".join(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """Return text that begins and ends as a sentence does.

    >>> sentence("no data folder; pass --data-dir"), sentence("D_l is known.")
    ('No data folder; pass --data-dir.', 'D_l is known.')
    """
    text = text.strip()
    # A name such as sts_benchmark stays as it is.
    first = re.match(r"[a-z]+(?![\w\u0300-\u036f])", text)
    text = text[:1].upper() + text[1:] if first else text
    return text if not text or text[-1] in ".!?…" else f"{text}."


def prose(text: str) -> Markup:
    """Return escaped text with subscripts (W_l, W_{L:1}) and superscripts (n^{1/L}) set as such.

    No line breaks inside a number such as 1e-12.

    >>> print(prose("D_{l+1} < 1e-3"))
    D<sub>l+1</sub> &lt; <span class="whole">1e-3</span>
    >>> print(prose("(4n)^{1/L}"))
    (4n)<sup>1/L</sup>
    """
    from markupsafe import Markup, escape

    safe = re.sub(r"\d[\d.]*e-\d+", r'<span class="whole">\g<0></span>', str(escape(text)), flags=re.ASCII)
    safe = re.sub(r"\^\{([^{}<>&]+)\}", r"<sup>\1</sup>", safe)
    # One letter before the underscore: names such as init_scale stay as they are.
    return Markup(re.sub(r"(?<!\w)([^\W\d_]\u0303?|‖)_(?:\{([^{}<>&]+)\}|([^\W_ᵀ]+))", r"\1<sub>\2\3</sub>", safe))


def script_safe(text: str) -> Markup:
    r"""Return JSON text in which nothing ends a script element or a line of JavaScript.

    >>> print(script_safe('"</script>&"'))
    "\u003c/script\u003e\u0026"
    """
    from markupsafe import Markup

    return Markup(text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}))


def printable(text: str) -> str:
    r"""Return ``text`` in which nothing commands the terminal.

    >>> printable("layer\x1b[31m")
    'layer\\x1b[31m'
    """
    return text if text.isprintable() else ascii(text)[1:-1]
