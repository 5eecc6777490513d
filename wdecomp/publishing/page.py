"""`wdecomp report`: one HTML file that needs neither network nor server.

plotly's script is in the file, compressed, as the installed package has it. The page's own policy
forbids every request and every script but these two, which it knows by their digests.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from wdecomp.audit import Finding
from wdecomp.charts.files import commit_bytes
from wdecomp.charts.interactive import CONFIG
from wdecomp.publishing import sections
from wdecomp.publishing.figures import SAID, drawn, variants
from wdecomp.publishing.html import section, text
from wdecomp.stats import Conclusion
from wdecomp.table import Results


def write_report(
    results: Results,
    file: Path,
    findings: Sequence[Finding] = (),
    conclusions: Sequence[Conclusion] = (),
) -> None:
    """Writes the page; the same results give the same file.

    Args:
        results: of a comparison.
        file: its name.
        findings: what the audit has to say.
        conclusions: what the statistics allow to be said.

    Raises:
        ResultsError: a table cannot be read, or the file cannot be written.
    """
    commit_bytes(file, page(results, findings, conclusions).encode())


def page(results: Results, findings: Sequence[Finding], conclusions: Sequence[Conclusion]) -> str:
    """The page as text."""
    figures = drawn(results, variants(results))
    parts = [
        *([("conclusions", "What can be said", sections.said(conclusions))] if conclusions else []),
        *([("findings", "Findings", sections.found(findings))] if findings else []),
        ("summary", "Summary", sections.summary(results)),
        *((name, SAID[name][0], body) for name, body in figures.bodies.items()),
        ("data", "What was compared", sections.compared(results)),
    ]
    links = "".join(f'<a href="#{name}">{text(title)}</a>' for name, title, _ in parts)
    body = "".join(section(*part, figure=part[0] in figures.bodies) for part in parts)
    plotly, own = _plotly(), _file("report.js")
    title = f"What fine-tuning did: {sections.title(results)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(plotly, own)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{text(title)}</title>
<style>{_file("report.css")}{figures.styles}</style></head>
<body><header><h1>{text(title)}</h1>{sections.lead(results)}<nav>{links}</nav></header>
<main>{body}</main>
<footer>{sections.footer(results)}</footer>
<script type="application/octet-stream" id="payload">{_packed(figures.payload, plotly)}</script>
<script type="application/json" id="config">{json.dumps(CONFIG)}</script>
<script>{own}</script></body></html>
"""


def _policy(*scripts: str) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    known = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {known}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _plotly() -> str:
    return (files("plotly") / "package_data/plotly.min.js").read_text(encoding="utf-8")


def _file(name: str) -> str:
    return (files("wdecomp.publishing") / name).read_text(encoding="utf-8")


def _packed(figures: dict[str, Any], plotly: str) -> str:
    """Figures in one line, then plotly's script; compressed, five letters for four bytes.

    The letters are RFC 1924's, with a comma for "<", so that they are no markup.
    """
    line = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    packed = gzip.compress(f"{line}\n{plotly}".encode(), 9, mtime=0)
    return base64.b85encode(packed).replace(b"<", b",").decode()
