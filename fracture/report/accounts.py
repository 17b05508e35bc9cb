"""What became of every prompt: read, given a partner, scored by every measure and model, or left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from analysis.authored import GOLD
from analysis.measures.drift import MAX_PROMPTS
from analysis.measures.information_gain import CHAIN
from analysis.measures.repair_states import UNEDITED
from analysis.measures.routes import ANOTHER_PROMPT, NO_CONCLUSION, WHOLE
from analysis.measures.text_tests import INTACT
from analysis.models import BASE
from analysis.partners import TIER_NAMES
from analysis.runs import Run
from fracture import catalogue
from fracture.chains import NO_PARTNER
from fracture.report.tables import Cell, Group, Row, Table
from fracture.study import EVERYONE

NO_REASON = "not accounted for: the run's tables do not add up"


@dataclass(frozen=True)
class Account:
    """How many prompts went in somewhere, came out, and were left out for which reason.

    Attributes:
        what: where.
        read: prompts that went in.
        scored: prompts that came out.
        reasons: reason → number of prompts left out.
        notes: about those that came out: what → number.
    """

    what: str
    read: int
    scored: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """How many prompts are neither scored nor left out for a reason; 0 in a sound run."""
        return self.read - self.scored - sum(self.reasons.values())


def prompt_accounts(run: Run) -> list[Account]:
    """From the file to the chains that are read, to partners, and to the chains that models wrote themselves."""
    counts, excluded = run.summary["prompts"], run.excluded
    readable = _written(run, run.headline)
    tiers = run.traces[run.traces["author"] == run.headline]["tier"]
    with_partner = {name: n for tier, name in TIER_NAMES.items() if (n := int((tiers == tier).sum()))}
    unanswered = counts["chains_without_answer"]
    notes = {"a chain behind which its author set no answer": unanswered} if unanswered else {}
    accounts = [
        Account(f"chain read by all ({run.headline})", counts["read"], readable, _lost(excluded, run.headline), notes),
        Account(
            "with a partner",
            readable,
            sum(with_partner.values()),
            _reasons(_without_partner(run)),
            with_partner,
        ),
    ]
    for name in run.readers:
        if name != run.headline:
            what = f"chain written by {name}"
            accounts.append(Account(what, counts["read"], _written(run, name), _lost(excluded, name)))
    return accounts


def measure_accounts(run: Run) -> dict[str, list[Account]]:
    """Measure → what became of the prompts for every model, on whose chains."""
    found: dict[str, list[Account]] = {}
    for name in run.measures:
        if name in catalogue.STORE_MEASURES and "id" not in run.table(name):
            found[name] = list(_of_stores(run, name))
        elif name == catalogue.HEADLINE:
            found[name] = list(_of_routes(run))
        else:
            found[name] = list(_of_readers(run, name))
    return found


def table(title: str, note: str, accounts: Mapping[str, list[Account]], corner: str) -> Table:
    """Accounts as a table; what does not add up is flagged."""
    groups = []
    for head, items in accounts.items():
        rows = []
        for item in items:
            missing = {NO_REASON: item.missing} if item.missing else {}
            left_out = "; ".join(f"{n} × {reason}" for reason, n in item.reasons.items())
            notes = "; ".join(f"{n} × {what}" for what, n in item.notes.items())
            flag = "; ".join(f"{n} × {what}" for what, n in missing.items())
            cells = [Cell(f"{item.read}"), Cell(f"{item.scored}", change=notes)]
            rows.append(Row(item.what, [*cells, Cell(left_out or ("" if flag else "none"), flag=flag, kind="words")]))
        groups.append(Group(head, rows))
    return Table(title, note, ["went in", "came out", "left out, and why"], groups, corner)


def _of_readers(run: Run, measure: str) -> Iterator[Account]:
    rows, excluded = run.table(measure), run.excluded
    rows = rows[_counts(measure, rows)]
    entry = catalogue.measure(measure)
    authors = entry.authors
    for reader in run.readers:
        if entry.beside_base and reader == BASE:
            continue
        lost = excluded[(excluded["reader"] == reader) & (excluded["measure"] == measure)]
        if measure in catalogue.AS_WRITTEN:
            scored = rows[rows["reader"] == reader]["id"].nunique()
            yield Account(f"{reader}, all that it wrote", run.summary["prompts"]["read"], scored, _reasons(lost))
            continue
        given = [run.headline] + ([reader] if authors != "headline" else [])
        if authors == "all":
            given += list(run.readers) if reader == BASE else [BASE]
        if measure in catalogue.OWN_CHAINS:
            given = [reader]
        for author in dict.fromkeys(given):
            scored = rows[(rows["reader"] == reader) & (rows["author"] == author)]["id"].nunique()
            reasons = _reasons(lost[lost["author"] == author])
            yield Account(f"{reader}, {_chains(author, reader)}", _written(run, author), scored, reasons)


def _of_routes(run: Run) -> Iterator[Account]:
    """By text; of those inside, where positions align; and by text again without the concluding step."""
    rows, excluded = run.table(catalogue.HEADLINE), run.excluded
    alone = _reasons(_without_partner(run))
    paired = [prompt for prompt in run.authored() if prompt.partner is not None]
    short = sum(min(len(p.steps), len(p.partner.steps or ())) < 2 for p in paired if p.partner is not None)
    of_base = rows[(rows["reader"] == BASE) & (rows["chain"] == WHOLE)]
    for reader in run.readers:
        of_reader = rows[rows["reader"] == reader]
        whole = of_reader[of_reader["chain"] == WHOLE]
        lost = excluded[(excluded["reader"] == reader) & (excluded["measure"] == catalogue.HEADLINE)]
        described = int((whole["tier"] >= ANOTHER_PROMPT).sum())
        notes = {"another prompt as partner, counted for no verdict": described} if described else {}
        yield Account(
            f"{reader}, by text",
            _written(run, run.headline),
            whole["id"].nunique(),
            {**alone, **_reasons(lost)},
            notes,
        )
        if reader != BASE:
            counted = whole[whole["tier"] < ANOTHER_PROMPT]
            compared = run.summary["variants"][reader]["bypass"]["text"]["difference"]["n"]
            only = int((~counted["id"].isin(of_base["id"])).sum())
            reasons = {f"scored for {reader}, not for {BASE}": only} if only else {}
            yield Account(f"{reader}, compared with {BASE}", len(counted), compared, reasons)
        aligned = whole[whole["inside_te"].notna()]["id"].nunique()
        apart = int(whole["inside_te"].isna().sum())
        reasons = {"the partner's tokens do not stand at the same positions": apart} if apart else {}
        yield Account(f"{reader}, inside", whole["id"].nunique(), aligned, reasons)
        cut = of_reader[of_reader["chain"] == NO_CONCLUSION]["id"].nunique()
        reasons = {"a chain of one step": short} if short else {}
        if rest := len(paired) - short - cut:
            reasons["no cells could be read without it, for reasons as by text"] = rest
        yield Account(f"{reader}, last step removed", len(paired), cut, reasons)


def _of_stores(run: Run, measure: str) -> Iterator[Account]:
    """Of a store measure without a row a prompt: by model, and by target where it has several."""
    rows, read = run.table(measure), _written(run, run.headline)
    excluded = run.excluded[run.excluded["measure"] == measure]
    for target in dict.fromkeys(rows["target"]) if "target" in rows else (None,):
        of_target = rows if target is None else rows[rows["target"] == target]
        for reader in (name for name in run.readers if name in set(of_target["reader"]) or name != BASE):
            counts = of_target[of_target["reader"] == reader]["n_prompts"].dropna()
            scored = 0 if counts.empty else int(counts.max())
            lost = excluded[excluded["reader"] == reader]
            if target is not None:
                lost = lost[lost["reason"].str.startswith(f"{target}: ")]
            reasons = _reasons(lost)
            if target is None and scored == MAX_PROMPTS and read > scored + len(lost):
                reasons[f"beyond the first {MAX_PROMPTS} prompts, which are compared"] = read - scored - len(lost)
            what = f"{reader}, {_chains(run.headline, reader)}" if target is None else f"{reader}, {target}"
            yield Account(what, read, scored, reasons)


def _counts(measure: str, rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows say that a prompt was scored: those that every scored prompt has once."""
    if "condition" in rows:
        return rows["condition"].isin([INTACT, CHAIN, UNEDITED])
    if measure == "readout":
        return rows[["before_chain", "chain_answer"]].notna().any(axis=1)
    # A prompt that could not be scored keeps its row there, for what the model wrote.
    return rows["right"].notna() if measure == "accuracy_and_calibration" else pd.Series(True, index=rows.index)


def _chains(author: str, reader: str) -> str:
    return "own chains" if author == reader else "gold chains" if author == GOLD else f"chains by {author}"


def _written(run: Run, author: str) -> int:
    return int((run.traces["author"] == author).sum())


def _without_partner(run: Run) -> pd.DataFrame:
    return run.excluded[run.excluded["measure"] == NO_PARTNER]


def _lost(excluded: pd.DataFrame, author: str) -> dict[str, int]:
    """Why chains of an author can be read by nobody."""
    return _reasons(
        excluded[(excluded["reader"] == EVERYONE) & (excluded["measure"] == "") & (excluded["author"] == author)]
    )


def _reasons(excluded: pd.DataFrame) -> dict[str, int]:
    return dict(sorted(Counter(excluded["reason"]).items(), key=lambda item: (-item[1], item[0])))
