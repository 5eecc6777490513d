"""Result tables: schema, crash-safe writing, reading. The only thing that both halves know."""

from wdecomp.table.anywhere import (
    are_results,
    copy_of,
    folder_of,
    join_results,
    open_results,
    refuse_place,
    share_results,
)
from wdecomp.table.claim import refuse_busy
from wdecomp.table.columns import ColumnGroup, ColumnsOf
from wdecomp.table.folder import ResultsFolder, join_folder, open_folder, share_folder
from wdecomp.table.parts import Part
from wdecomp.table.results import Results, read_results
from wdecomp.table.schema import FIGURES, VERSION
from wdecomp.table.shares import Share, refuse_taken, shares_of

__all__ = [
    "FIGURES",
    "VERSION",
    "ColumnGroup",
    "ColumnsOf",
    "Part",
    "Results",
    "ResultsFolder",
    "Share",
    "are_results",
    "copy_of",
    "folder_of",
    "join_folder",
    "join_results",
    "open_folder",
    "open_results",
    "read_results",
    "refuse_busy",
    "refuse_place",
    "refuse_taken",
    "share_folder",
    "share_results",
    "shares_of",
]
