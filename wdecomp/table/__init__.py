"""Result tables: schema, crash-safe writing, reading. The only thing that both halves know."""

from wdecomp.table.claim import refuse_busy
from wdecomp.table.folder import ResultsFolder, open_folder
from wdecomp.table.parts import ColumnGroup, Part
from wdecomp.table.results import Results, read_results
from wdecomp.table.schema import VERSION

__all__ = [
    "VERSION",
    "ColumnGroup",
    "Part",
    "Results",
    "ResultsFolder",
    "open_folder",
    "read_results",
    "refuse_busy",
]
