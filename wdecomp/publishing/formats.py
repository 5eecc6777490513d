r"""CSV, JSON, Parquet, Markdown and LaTeX from tables that come in pieces.

Names come from strangers' files. In CSV no text is a formula for a spreadsheet; in Markdown no
text is markup, a link or HTML; in LaTeX no text is a command.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from wdecomp.charts.words import printable

Frames = Iterable[pd.DataFrame]
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
PLAIN = re.compile(r"(?!www\.)[A-Za-z0-9 ._-]+")
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
}
DIGITS = 4  # in tables for people
SCHEMA = 1


def write_csv(frames: Frames, stream: BinaryIO, name: str) -> None:
    """Comma-separated UTF-8; a text that a spreadsheet would compute has ' before it.

    Control characters are shown as escapes, shapes as 4096x11008.
    """
    for i, frame in enumerate(frames):
        texts = {str(name): frame[name].map(_inert) for name in frame if _is_text(frame[name])}
        text = frame.assign(**texts).to_csv(index=False, header=i == 0, lineterminator="\n")
        stream.write(text.encode())


def write_json(frames: Frames, stream: BinaryIO, name: str) -> None:
    """One object: schema, the table's name, and its rows as objects; NaN is null."""
    head = json.dumps({"schema": SCHEMA, "table": name})
    stream.write(f'{head[:-1]}, "rows": ['.encode())
    comma = ""
    for frame in frames:
        for row in frame.to_dict("records"):
            values = {str(key): _json(value) for key, value in row.items()}
            stream.write(f"{comma}\n{json.dumps(values, allow_nan=False)}".encode())
            comma = ","
    stream.write(b"\n]}\n")


def write_parquet(frames: Frames, stream: BinaryIO, name: str) -> None:
    """Parquet with the types of the results folder."""
    writer: pq.ParquetWriter | None = None
    for frame in frames:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if writer is None:
            writer = pq.ParquetWriter(stream, table.schema, compression="zstd")
        writer.write_table(table.cast(writer.schema))
    if writer is not None:
        writer.close()


def write_markdown(frames: Frames, stream: BinaryIO, name: str) -> None:
    """A table as GitHub draws it, numbers to the right with four digits."""
    for i, frame in enumerate(frames):
        if i == 0:
            marks = ["---" if _is_text(frame[column]) else "---:" for column in frame]
            stream.write(_line(frame.columns) + _line(marks))
        for row in _cells(frame, _markdown):
            stream.write(_line(row))


def write_latex(frames: Frames, stream: BinaryIO, name: str) -> None:
    """A tabular with the rules of booktabs, numbers with four digits."""
    for i, frame in enumerate(frames):
        if i == 0:
            places = "".join("l" if _is_text(frame[column]) else "r" for column in frame)
            heads = " & ".join(_latex(str(column)) for column in frame)
            top = f"\\begin{{tabular}}{{{places}}}\n\\toprule\n{heads} \\\\\n\\midrule\n"
            stream.write(top.encode())
        for row in _cells(frame, _latex):
            stream.write(f"{' & '.join(row)} \\\\\n".encode())
    stream.write(b"\\bottomrule\n\\end{tabular}\n")


Writer = Callable[[Frames, BinaryIO, str], None]
FORMATS: Mapping[str, Writer] = {
    "csv": write_csv,
    "json": write_json,
    "parquet": write_parquet,
    "md": write_markdown,
    "latex": write_latex,
}


def _is_text(column: "pd.Series[Any]") -> bool:
    return not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _inert(value: Any) -> Any:
    """A cell that no spreadsheet computes and no terminal obeys; numbers stay what they are.

    >>> _inert("=HYPERLINK(1)"), _inert("q_proj"), _inert(-1.5)
    ("'=HYPERLINK(1)", 'q_proj', -1.5)
    """
    if isinstance(value, list | tuple | np.ndarray):
        return "x".join(str(int(size)) for size in value)
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if FORMULA.match(shown) else shown


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray | list | tuple):
        return [_json(each) for each in value]
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _cells(frame: pd.DataFrame, escaped: Callable[[str], str]) -> Iterable[list[str]]:
    for row in frame.itertuples(index=False):
        yield [_shown(value, escaped) for value in row]


def _shown(value: Any, escaped: Callable[[str], str]) -> str:
    if isinstance(value, np.ndarray | list | tuple):
        return "×".join(str(int(size)) for size in value)
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return escaped(str(value)) if isinstance(value, str) else str(value)


def _markdown(text: str) -> str:
    r"""Text that stays text: in a code span, unless there is nothing in it to obey.

    >>> _markdown("model.layers.0"), _markdown("![x](http://host)"), _markdown("a`b|c")
    ('model.layers.0', '`![x](http://host)`', '`` a`b\\|c ``')
    """
    shown = printable(text)
    if PLAIN.fullmatch(shown):
        return shown
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{shown}{space}{fence}".replace("|", "\\|")


def _latex(text: str) -> str:
    r"""Text that TeX sets as it is.

    >>> _latex("q_proj"), _latex(r"\input{x}")
    ('q\\_proj', '\\textbackslash{}input\\{x\\}')
    """
    return "".join(LATEX.get(c, c) for c in printable(text))


def _line(cells: Iterable[object]) -> bytes:
    return f"| {' | '.join(str(cell) for cell in cells)} |\n".encode()
