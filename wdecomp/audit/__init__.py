"""What is wrong with tuned checkpoints, told from the tables of a comparison alone."""

from wdecomp.audit.bases import BaseFit, base_findings, base_fits
from wdecomp.audit.finding import SEVERITIES, Finding, Rule, Severity
from wdecomp.audit.rules import RULES, findings, refusal
from wdecomp.audit.sarif import as_sarif
from wdecomp.audit.telling import as_json, as_text

__all__ = [
    "RULES",
    "SEVERITIES",
    "BaseFit",
    "Finding",
    "Rule",
    "Severity",
    "as_json",
    "as_sarif",
    "as_text",
    "base_findings",
    "base_fits",
    "findings",
    "refusal",
]
