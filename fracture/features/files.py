"""What a comparison of features leaves in its directory: tables, figures, and a summary that report and people read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.files import parquet_bytes, plain, write_whole
from fracture.features.comparison import Comparison

SUMMARY_FILE, COMPARE = "features.json", "compare"
CONTEXTS = 5
"""So many contexts of a latent are in the summary; all are in `contexts.parquet`."""


def write(comparison: Comparison, directory: Path) -> dict[str, Any]:
    """Writes tables, figures and summary into a directory, in place of an earlier comparison's; returns the summary."""
    import figures

    files = {
        f"{name}.parquet": parquet_bytes(table.reset_index(drop=True)) for name, table in _tables(comparison).items()
    }
    for name, figure in drawn(comparison).items():
        files |= {f"{name}.{kind}": figures.to_bytes(figure, kind) for kind in ("png", "pdf")}
    summary = summarised(comparison)
    text = json.dumps(plain(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files[SUMMARY_FILE] = text.encode()
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_whole(directory / name, data)
    for path in directory.iterdir():
        if path.suffix in (".parquet", ".png", ".pdf") and path.name not in files:
            path.unlink()
    return summary


def _tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    tables = {name: getattr(comparison, name) for name in ("latents", "places", "differences", "contexts", "answers")}
    if comparison.twins is not None:
        tables["twins"] = comparison.twins
    if comparison.check is not None:
        check = comparison.check
        tables |= {"causal": check.table, "causal_effects": check.effects, "causal_map": check.map}
    for name, found in (("steps_map", comparison.steps), ("latents_map", comparison.plane)):
        if found is not None:
            tables[name] = found[0]
    return tables


def drawn(comparison: Comparison) -> dict[str, Any]:
    """The figures that there are, by name."""
    from figures.features import causal_bars, firing_scatter, norm_histogram
    from figures.maps import LATENT_COLOURS, STEP_COLOURS, embedding_map

    dictionary, variant = comparison.dictionary, comparison.variant
    what = f"{variant} against base, {dictionary.hook}"
    figures: dict[str, Any] = {}
    found = comparison.differences
    if len(dictionary.models) > 1:
        figures["norms"] = norm_histogram(comparison.latents, what, comparison.twins)
        found = found.merge(comparison.latents[["latent", "class", "relative_norm"]], on="latent")
    if found["part"].isin(["question", "step"]).any():
        figures["firing"] = firing_scatter(found, what, comparison.twins)
    if comparison.check is not None:
        figures["causal"] = causal_bars(comparison.check.effects, what, comparison.twins)
    for name, plane in (("steps_map", comparison.steps), ("latents_map", comparison.plane)):
        if plane is not None:
            # What is the same for all points colours nothing.
            known = {**STEP_COLOURS, **LATENT_COLOURS}
            told = {key: words for key, words in known.items() if key in plane[0] and plane[0][key].nunique() > 1}
            figures[name] = embedding_map(plane[0], plane[1], what, told or None)
    return figures


def summarised(comparison: Comparison) -> dict[str, Any]:
    """`features.json`: the dictionary, its classes, twins, agreement and causal effects, and what differs."""
    dictionary, agreement = comparison.dictionary, comparison.agreement
    classes = comparison.latents["class"].value_counts()
    return {
        "variant": comparison.variant,
        "models": list(dictionary.models),
        "hook": dictionary.hook,
        "settings": dictionary.card.get("settings"),
        "source": dictionary.card.get("source"),
        "held_out": dictionary.card.get("held_out"),
        "warnings": list(dictionary.card.get("warnings", ())),
        "classes": {str(name): int(n) for name, n in classes.items()},
        "agreement": None
        if agreement is None
        else {
            "seeds": int(agreement.latents["seed"].nunique()),
            "share": agreement.share,
            "chance": agreement.chance,
        },
        "twins": None if comparison.twins is None else comparison.twins.to_dict("records"),
        "effects": None if comparison.check is None else comparison.check.effects.to_dict("records"),
        "unchecked": comparison.unchecked,
        "draws": None if comparison.check is None else int(comparison.check.table["draw"].max()) + 1,
        "latents": [_latent(comparison, int(latent)) for latent in dict.fromkeys(comparison.contexts["latent"])],
    }


def _latent(comparison: Comparison, latent: int) -> dict[str, Any]:
    """What a person is told of a latent."""
    (line,) = comparison.latents[comparison.latents["latent"] == latent].to_dict("records")
    contexts = comparison.contexts[comparison.contexts["latent"] == latent].sort_values("activation", ascending=False)
    answers = comparison.answers[comparison.answers["latent"] == latent]
    found = comparison.differences[comparison.differences["latent"] == latent]
    shown = ("id", "part", "step", "activation", "before", "marked", "after")
    kept = ("class", "seeds", "named", "density", "relative_norm", "nu_error", "nu_reconstruction")
    return {
        "latent": latent,
        **{str(name): line[name] for name in kept if name in line},
        "contexts": [
            {str(name): item[name] for name in shown if name in item}
            for item in contexts.head(CONTEXTS).to_dict("records")
        ],
        "answers": answers[["rank", "answer", "effect", "low", "high"]].to_dict("records"),
        "differences": found[
            ["part", "quantity", "base", "variant", "difference", "low", "high", "p_adjusted"]
        ].to_dict("records"),
    }


def read_summary(directory: Path) -> dict[str, Any]:
    """`features.json` of a comparison."""
    found: dict[str, Any] = json.loads((directory / SUMMARY_FILE).read_text(encoding="utf-8"))
    return found


def comparisons(run: Path) -> list[Path]:
    """The directories of all comparisons of a run."""
    from analysis.runs import FEATURES

    return sorted(path.parent for path in (run / FEATURES).glob(f"*/{COMPARE}*/{SUMMARY_FILE}"))
