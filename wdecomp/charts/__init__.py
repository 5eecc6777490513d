"""Pictures of result tables: a `Chart` from tables alone, drawn by plotly or by matplotlib.

`chart_of` makes any figure of a results folder; `interactive.figure_of` and `static.write_picture`
draw it.
"""

from wdecomp.charts.chart import Chart
from wdecomp.charts.panels import Panel, panels
from wdecomp.charts.pictures import interactive_scatter, static_scatter
from wdecomp.charts.views import View, chart_of

__all__ = [
    "Chart",
    "Panel",
    "View",
    "chart_of",
    "interactive_scatter",
    "panels",
    "static_scatter",
]
