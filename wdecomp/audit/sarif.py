"""Findings as SARIF 2.1.0, which code hosts and editors show (OASIS standard, 2020)."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wdecomp.audit.finding import Finding, Rule
from wdecomp.audit.rules import RULES
from wdecomp.audit.telling import SHOWN, number

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_sarif(found: Sequence[Finding]) -> dict[str, Any]:
    """One run of one tool; a finding is a result, its tensors are logical locations."""
    driver = {
        "name": "wdecomp",
        "version": version("wdecomp"),
        "rules": [_rule(rule) for rule in RULES],
    }
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [_result(each) for each in found]}],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": _sentence(rule.title)},
        "help": {"text": rule.advice},
    }


def _result(each: Finding) -> dict[str, Any]:
    names = [{"fullyQualifiedName": name, "kind": "tensor"} for name in each.tensors[:SHOWN]]
    location = ({"physicalLocation": {"artifactLocation": {"uri": _uri(each.path)}}}
                if each.path else {}) | ({"logicalLocations": names} if names else {})  # fmt: skip
    return {
        "ruleId": each.rule.id,
        "ruleIndex": [rule.id for rule in RULES].index(each.rule.id),
        "level": each.severity,
        "message": {"text": f"{each.where}: {each.message}."},
        "locations": [location] if location else [],
        "partialFingerprints": {"ruleAndRun/v1": f"{each.rule.id}:{each.run}"},
        "properties": {
            "run": each.run,
            "steps": list(each.steps),
            "tensorCount": len(each.tensors),
            "evidence": {key: number(value) for key, value in each.evidence.items()},
        },
    }


def _uri(path: str) -> str:
    return Path(path).as_uri() if Path(path).is_absolute() else quote(path)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
