"""What tests of causal use found: in words, as a table, and as files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import InputError
from analysis.files import parquet_bytes, plain, write_whole
from analysis.statistics import Estimate
from analysis.store import MANIFEST, sha256
from fracture.probing.places import ERASE, UseSettings
from fracture.probing.training import Source, file_name
from fracture.probing.use import HERE, Finding
from probes.illusion import SubspaceCheck
from probes.scores import LABELS
from probes.targets import Target

TABLE, PROMPTS, JSON = "use.parquet", "use_prompts.parquet", "use.json"


def output(source: Source, target: Target, out: Path | None) -> Path:
    """The directory for the results.

    Raises:
        InputError: if a file is there.
    """
    directory = out or source.out / file_name(f"{target.name}.use.{source.label}")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"output {directory}: is a file; give a directory")
    return directory


def write(directory: Path, findings: Sequence[Finding], source: Source, target: Target, settings: UseSettings) -> None:
    """Writes the table, a line a place and method; the prompts that were run at each; and all of it as JSON, with the
    settings, the mean effect of each control and the reasons for what was left out."""
    table = pd.DataFrame([line(finding) for finding in findings])
    prompts = [
        finding.used.table.assign(hook=finding.place.hook.name, position=finding.place.position, method=finding.method)
        for finding in findings
    ]
    lines = [
        {key: plain(value) for key, value in line(finding).items()}
        | {
            "controls": finding.used.controls.tolist(),
            "excluded": dict(_excluded(finding)),
            "illusion": _check_dict(finding.check),
        }
        for finding in findings
    ]
    document = {
        "target": target.name,
        "meaning": target.meaning,
        "model": source.store.manifest.settings["model"],
        "store": sha256(source.store.directory / MANIFEST),
        "settings": asdict(settings),
        "lines": lines,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / TABLE, parquet_bytes(table))
    write_whole(directory / PROMPTS, parquet_bytes(pd.concat(prompts, ignore_index=True)))
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(directory / JSON, (text + "\n").encode())


def line(finding: Finding) -> dict[str, Any]:
    """One line of the table; effects in nats."""
    used, place = finding.used, finding.place
    score, erased = finding.score.interval(), finding.erased.interval()
    check = finding.check
    return {
        "hook": place.hook.name,
        "site": place.hook.site,
        "layer": place.hook.layer,
        "position": place.position,
        "method": finding.method,
        "finding": finding.verdict,
        "reason": finding.reason,
        **_columns("effect", used.effect),
        **_columns("excess", used.excess),
        "control_mean": float(used.controls.mean()),
        "control_95": used.threshold,
        "floor": used.floor,
        "n_controls": len(used.controls),
        "p": used.p,
        "p_adjusted": finding.p_adjusted,
        "distance": float(used.table["distance"].mean()),
        **_columns("moved", used.moved),
        "control_moved": float(used.table["control_moved"].mean()) if used.moved else math.nan,
        "n_prompts": used.effect.n,
        "n_excluded": len(used.excluded) + len(place.excluded),
        "n_fitted": len(place.fit),
        "rank": finding.rank,
        "controls_drawn_in": finding.drawn_in,
        "metric": finding.metric,
        **_columns("score", score),
        "chance": finding.chance,
        **_columns("score_erased", erased),
        **_columns("exchange", check.subspace if isinstance(check, SubspaceCheck) else None),
        "flags": "; ".join(check.flags) if isinstance(check, SubspaceCheck) else (check or ""),
    }


def told(findings: Sequence[Finding]) -> list[tuple[str, bool]]:
    """The findings in words, line by line; and whether a line is a finding itself, or about one."""
    lines: list[tuple[str, bool]] = []
    for number, finding in enumerate(findings):
        lines.append((_sentence(finding), True))
        lines += [(f"  {text}", False) for text in _beside(finding, len(findings))]
        # What was read is the same for both methods at a place.
        if number + 1 == len(findings) or findings[number + 1].place is not finding.place:
            lines += [(f"  {text}", False) for text in _about(finding)]
    return lines


def _sentence(finding: Finding) -> str:
    hook, effect = finding.place.hook, _interval(finding.used.effect)
    where = f"{hook.name if hook.layer is None else f'layer {hook.layer}'}, {finding.place.position}"
    if finding.method == ERASE:
        return f"{where}: {finding.verdict}: erased, the model's own answer loses {effect} nats"
    return f"{where}: {finding.verdict}: steered to another answer, that gains {effect} nats on the model's own"


def _beside(finding: Finding, n_lines: int) -> list[str]:
    used = finding.used
    of = "random erasures of as much" if finding.method == ERASE else "random directions of equal length"
    adjusted = f" ({finding.p_adjusted:.2g} adjusted for {n_lines} lines)" if n_lines > 1 else ""
    lines = [
        f"{len(used.controls)} {of}: {_number(float(used.controls.mean()))} nats, 95th percentile "
        f"{_number(used.threshold)}; p = {used.p:.2g}{adjusted}"
    ]
    if used.moved is not None:
        moved = used.moved
        lines.append(
            f"it becomes the most probable answer in {moved.estimate:.0%} [{moved.low:.0%}, {moved.high:.0%}]; with "
            f"random directions in {used.table['control_moved'].mean():.0%}"
        )
    if finding.reason:
        lines.append(finding.reason)
    lines += [f"{n} prompts not measured: {why}" for why, n in Counter(item.reason for item in used.excluded).items()]
    return lines


def _about(finding: Finding) -> list[str]:
    place, score, erased = finding.place, finding.score.interval(), finding.erased.interval()
    lines = [
        f"read by a probe: {LABELS[finding.metric]} {_interval(score)}, once erased {_interval(erased)}, chance "
        f"{_number(finding.chance)} ({len(place.test)} prompts; fitted on {len(place.fit)} others)"
    ]
    if finding.drawn_in != HERE:
        lines.append("activations vary too little here: random ones were drawn where those of all stored positions do")
    if isinstance(finding.check, str):
        lines.append(f"subspace illusion: not checked: {finding.check}")
    elif finding.check is not None:
        share = _interval(finding.check.subspace)
        found = "; ".join(finding.check.flags) or "no sign of it"
        lines.append(f"subspace illusion: {found} (exchanged between prompts: {share} of the whole position's effect)")
    lines += [f"{n} prompts left out: {why}" for why, n in Counter(item.reason for item in place.excluded).items()]
    return lines


def _excluded(finding: Finding) -> Counter[str]:
    return Counter(item.reason for item in (*finding.place.excluded, *finding.used.excluded))


def _columns(name: str, estimate: Estimate | None) -> dict[str, float]:
    keys = (name, f"{name}_low", f"{name}_high")
    values = (math.nan,) * 3 if estimate is None else (estimate.estimate, estimate.low, estimate.high)
    return dict(zip(keys, values, strict=True))


def _check_dict(check: SubspaceCheck | str | None) -> dict[str, Any] | str | None:
    if not isinstance(check, SubspaceCheck):
        return check
    return {
        "subspace": check.subspace.to_dict(),
        "whole": check.whole,
        "flags": list(check.flags),
        "splits": [
            {
                "basis": split.basis,
                "dormant_share": split.dormant_share,
                "weight": split.weight,
                "active": split.active.to_dict(),
                "dormant": split.dormant.to_dict(),
            }
            for split in check.splits
        ],
    }


def _interval(estimate: Estimate) -> str:
    return f"{_number(estimate.estimate)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float) -> str:
    """Two decimals; adding 0 turns -0.00 into 0.00."""
    return f"{round(value, 2) + 0.0:.2f}" if math.isfinite(value) else "—"
