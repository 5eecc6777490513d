"""Pictures of result tables: static by matplotlib, interactive by plotly."""

from wdecomp.charts.interactive import interactive_scatter
from wdecomp.charts.scatter import Panel, panels
from wdecomp.charts.static import static_scatter

__all__ = ["Panel", "interactive_scatter", "panels", "static_scatter"]
