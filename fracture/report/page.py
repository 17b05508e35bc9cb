"""The report of a run: one HTML file that needs nothing else, its Markdown twin, and the figures as files."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from typing import Any

from markupsafe import Markup

from analysis.errors import InputError
from analysis.partners import TIER_NAMES
from analysis.runs import REPORT, REPORT_MARKDOWN, STUDY, Run
from analysis.statistics import MIN_PROMPTS
from fracture import catalogue
from fracture.evidence import NEITHER
from fracture.report.accounts import Account, measure_accounts, prompt_accounts, table
from fracture.report.details import measures_tables
from fracture.report.evidence import STANCES, apart_table, evidence_table, findings
from fracture.report.features import features
from fracture.report.figures import drawn
from fracture.report.rendering import html, markdown, source
from fracture.report.tables import TOO_SMALL, whose
from fracture.report.trace_viewer import embedded, legend, notes, viewer_data
from fracture.report.trajectory import trajectory
from fracture.report.verdicts import cards, sham_warnings
from fracture.trajectory import trajectory_files


def outputs(run: Run) -> dict[str, bytes]:
    """The report's files, path in the run → bytes: figures as PNG and PDF, `report.html`, `report.md`, and of a
    trajectory its table.

    The same run gives the same bytes; nothing of `run.json`, and not the run's place, enters them.

    Raises:
        InputError: if a file of the run is damaged.
    """
    files, inlined = drawn(run)
    contents = {**_contents(run), "figures": inlined, "features": features(run)}
    for path, text in ((REPORT, _html(run, contents)), (REPORT_MARKDOWN, markdown("report.md.j2", contents))):
        files[path] = text.encode()
    return files | trajectory_files(run)


def _html(run: Run, contents: dict[str, Any]) -> str:
    # Read as it is; its own bytes are what the policy in the head lets run, and nothing else is.
    script = source("viewer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = viewer_data(run)
    return html(
        "report.html.j2",
        {
            **contents,
            "traces": {"intro": _intro(data, whose(run)), "notes": notes(run), "legend": legend(run)},
            "trace_data": Markup(embedded(data)),
            "script": Markup(script),
            "script_hash": Markup(f"sha256-{digest}"),
        },
    )


def _contents(run: Run) -> dict[str, Any]:
    """What both forms of the report say."""
    summary = run.summary
    study = summary["study"]
    verdicts = cards(run)
    return {
        "title": ", ".join(run.readers) if len(run.variants) <= 4 else f"base and {len(run.variants)} variants",
        "warnings": sham_warnings(run),
        "setup": _setup(run),
        "overview": _overview(run),
        "trajectory": trajectory(run),
        "cards": verdicts,
        "stances": STANCES,
        "margin": f"{study['margin']:g}",
        "evidence": evidence_table(run),
        "findings": {name: _by_stance(run, name) for name in run.variants},
        "apart": apart_table(run),
        "too_small": TOO_SMALL,
        "min_prompts": MIN_PROMPTS,
        "measures": measures_tables(run),
        "prompts": table(
            "Prompts and chains",
            "Chains: of the prompts in the file. Partners: of the prompts whose chain can be read by all.",
            {"": prompt_accounts(run)},
            "what",
        ),
        "accounts": [_account(name, accounts) for name, accounts in measure_accounts(run).items()],
        "digest": _digest(run),
        "schema_version": summary["schema_version"],
        # Where a run is put decides nothing about it.
        "settings": [(name, _setting(value)) for name, value in study.items() if name != "out"],
    }


def _setup(run: Run) -> str:
    study, prompts = run.summary["study"], run.summary["prompts"]
    described = prompts["partners"].get(TIER_NAMES[3], 0)
    partners = f"{sum(prompts['partners'].values()) - described} with a counterfactual partner"
    if described:
        partners += f" and {described} with another prompt in its place, for description only"
    return (
        f"Base {study['base']}; {len(run.variants)} {_plural('variant', len(run.variants))}; "
        f"{prompts['read']} {_plural('prompt', prompts['read'])} of {study['prompts']}, {partners}; all models read "
        f"the {whose(run)} chains. Margin {study['margin']:g}."
    )


def _overview(run: Run) -> str:
    counts = Counter(run.verdicts.values())
    said = ", ".join(f"{n} {label}" for label, n in counts.items())
    return f"Of {len(run.variants)} {_plural('variant', len(run.variants))}: {said}."


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def _by_stance(run: Run, name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {stance: [] for stance in STANCES}
    for item in findings(run, name):
        found.get(item["stance"], found[NEITHER]).append(item["text"])
    return found


def _account(name: str, accounts: list[Account]) -> dict[str, Any]:
    title = catalogue.measure(name).title
    whole = all(item.scored == item.read for item in accounts)
    counts = sorted({item.scored for item in accounts})
    shown = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"
    line = f"{shown} {_plural('prompt', counts[-1] if counts else 0)} scored, {'none' if whole else 'some'} left out"
    scored = table(f"Prompts scored by {name.replace('_', ' ')}", "", {"": accounts}, "model")
    return {"name": name, "title": title, "line": line, "table": scored}


def _intro(data: dict[str, Any], whose: str) -> str:
    shown, total = len(data["prompts"]), data["total"]
    what = f"{_plural('prompt', total)} with the {whose} chain that all models read, the base beside a variant."
    return (
        f"All {total} {what}" if shown == total else f"The first {shown}, in the order of the file, of {total} {what}"
    )


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _digest(run: Run) -> str:
    """The digest of the settings that decided the results, as the run's own study file holds it."""
    import yaml

    where = f"run {run.directory}: {STUDY}"
    try:
        digest = yaml.safe_load((run.directory / STUDY).read_text(encoding="utf-8"))["digest"]
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(f"{where} holds no digest; it was not written by a study") from None
    return str(digest)
