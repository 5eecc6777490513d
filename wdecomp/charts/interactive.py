"""ΔM against ΔD in a browser: hover for layer, step and the full name."""

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from wdecomp.charts.scatter import X_TITLE, Y_TITLE, Panel

CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,  # else plotly offers to upload the figure
    "toImageButtonOptions": {"format": "svg"},
}
SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "star", "cross", "x"]


def interactive_scatter(rows: dict[str, list[Panel]], title: str, file: Path) -> None:
    """Writes a grid of panels as one HTML file that needs no network."""
    columns = max(len(row) for row in rows.values())
    titles = [
        f"{name} · {panel.caption}" if panel else ""
        for name, row in rows.items()
        for panel in [*row, *[None] * (columns - len(row))]
    ]
    figure = make_subplots(len(rows), columns, subplot_titles=titles, vertical_spacing=0.15)
    for i, row in enumerate(rows.values(), start=1):
        for j, panel in enumerate(row, start=1):
            for trace in _traces(panel):
                figure.add_trace(trace, i, j)
    figure.update_xaxes(title=X_TITLE, exponentformat="power")
    figure.update_yaxes(title=Y_TITLE, exponentformat="power")
    figure.update_layout(title=title, showlegend=False, height=430 * len(rows) + 80)
    file.write_text(
        figure.to_html(include_plotlyjs=True, full_html=True, config=CONFIG), encoding="utf-8"
    )


def _traces(panel: Panel) -> list[go.Scatter]:
    points = panel.points
    steps = {step: i for i, step in enumerate(points["step"].unique())}
    names = points["parameter"].map(_literal)
    hover = [
        f"{name}<br>layer {layer}, step {step}"
        for name, layer, step in zip(names, points["layer"], points["step"], strict=True)
    ]
    dots = go.Scatter(
        x=points["delta_direction"].to_numpy(),
        y=points["delta_magnitude"].to_numpy(),
        mode="markers",
        text=hover,
        hovertemplate="%{text}<br>ΔD %{x:.3g}<br>ΔM %{y:.3g}<extra></extra>",
        marker={
            "color": points["layer"].astype(float).to_numpy(),
            "colorscale": "Viridis",
            "symbol": [SYMBOLS[steps[step] % len(SYMBOLS)] for step in points["step"]],
            "size": 9,
            "line": {"width": 1, "color": "#777777"},
        },
    )
    ends = np.array([points["delta_direction"].min(), points["delta_direction"].max()])
    line = go.Scatter(
        x=ends,
        y=panel.intercept + panel.slope * ends,
        mode="lines",
        line={"color": panel.colour, "width": 2},
        hoverinfo="skip",
    )
    return [dots, line] if np.isfinite(panel.slope) else [dots]


def _literal(name: str) -> str:
    """A name from a checkpoint, so that nothing in it is markup."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
