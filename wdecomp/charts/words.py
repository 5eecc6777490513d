"""Names in pictures: they come from strangers' files, so nothing in them is obeyed."""

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def printable(text: str) -> str:
    r"""Text whose control and direction characters are shown as escapes.

    >>> printable("a\x1b[2Jb"), printable("q\u202eproj")
    ('a\\x1b[2Jb', 'q\\u202eproj')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def literal(text: str) -> str:
    """Text in which a browser finds no markup; plotly reads entities, too.

    >>> literal("<b>q</b>")
    '&lt;b&gt;q&lt;/b&gt;'
    """
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace('"', "&#34;").replace("'", "&#39;")


def power(value: float) -> str:
    """A number for a logarithmic axis.

    >>> power(0.001), power(0.00025), power(1.0), power(20.0)
    ('10⁻³', '2.5·10⁻⁴', '1', '20')
    """
    if 0.1 <= abs(value) < 1000 or not value:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    raised = str(int(exponent)).translate(RAISED)
    digits = f"{float(mantissa):g}"
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"


def short(text: str, most: int = 32) -> str:
    """Text for a heading: the middle of a long name is left out.

    >>> short("a-very-long-name-of-a-run", 11)
    'a-ver…a-run'
    """
    shown = printable(text)
    half = (most - 1) // 2
    return shown if len(shown) <= most else f"{shown[: most - 1 - half]}…{shown[-half:]}"
