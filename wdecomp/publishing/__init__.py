"""Results for others: one HTML file, and tables in the formats that other programs read."""

from wdecomp.publishing.export import TABLES, Selection, export
from wdecomp.publishing.formats import FORMATS
from wdecomp.publishing.page import write_report

__all__ = ["FORMATS", "TABLES", "Selection", "export", "write_report"]
