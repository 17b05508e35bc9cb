"""Prompt files of every kind, and the same records in memory: equal prompts, and one clear message for each fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.prompt_files import file_digest
from analysis.prompts import Case, Prompt, prompts_from_records, read_prompts

# A field that a record lacks is null in a table.
FIELDS = ("id", "question", "answer", "steps", "chain", "options", "counterfactual", "meta")
OTHER = {"question": "2 + 2?", "answer": "4", "steps": ["2 + 2 = 4"]}
RECORDS = [
    {
        "id": "a",
        "question": "1 + 1?",
        "answer": "2",
        "steps": ["1 + 1 = 2", "so 2"],
        "options": ["2", "4"],
        "counterfactual": OTHER,
        "meta": {"cue": 1, "tags": ["x"]},
    },
    {"id": "b", "question": "é?\u2028", "answer": "中", "chain": "x\r\ny"},
    {"id": "c", "question": "5?", "answer": "5", "counterfactual": {**OTHER, "steps": None}},
]
EXPECTED = [
    Prompt(
        "a",
        Case("1 + 1?", "2", ("1 + 1 = 2", "so 2")),
        Case("2 + 2?", "4", ("2 + 2 = 4",)),
        ("2", "4"),
        {"cue": 1, "tags": ["x"]},
    ),
    Prompt("b", Case("é?\u2028", "中", chain="x\r\ny")),
    Prompt("c", Case("5?", "5"), Case("2 + 2?", "4")),
]


TABLE = [{key: record.get(key) for key in FIELDS} for record in RECORDS]


def dataset(records=TABLE):
    import datasets

    return datasets.Dataset.from_list(records)


def saved(directory: Path, splits: dict[str, list[dict]] | None = None) -> Path:
    import datasets

    if splits is None:
        dataset().save_to_disk(directory)
    else:
        datasets.DatasetDict({name: dataset(rows) for name, rows in splits.items()}).save_to_disk(directory)
    return directory


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_file(kind: str, directory: Path) -> str:
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(TABLE), directory / "p.parquet")
        return str(directory / "p.parquet")
    if kind == "parquet by pandas":
        # Rows chosen from a larger table: pandas then writes its index as a column.
        frame = pd.DataFrame([RECORDS[0], *RECORDS]).iloc[1:].set_axis([5, 9, 2])
        assert "__index_level_0__" in pa.Table.from_pandas(frame).column_names
        frame.to_parquet(directory / "p.PARQUET")
        return str(directory / "p.PARQUET")
    if kind == "json":
        return str(write(directory / "p.json", "\ufeff" + json.dumps(RECORDS, ensure_ascii=False, indent=1)))
    if kind == "jsonl":
        lines = (json.dumps(record, ensure_ascii=False) for record in RECORDS)
        return str(write(directory / "p.jsonl", "\r\n".join(lines)))
    if kind == "datasets":
        return str(saved(directory / "d"))
    return f"{saved(directory / 'splits', {'train': TABLE[:1], 'test': TABLE})}:test"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "parquet by pandas", "datasets", "datasets with splits"])
def test_every_kind_of_file_gives_the_same_prompts(tmp_path, kind):
    path = as_file(kind, tmp_path)
    prompts = read_prompts(path)
    # Arrow gives every row a `meta` struct once one has it.
    assert [prompt.case for prompt in prompts] == [prompt.case for prompt in EXPECTED]
    assert [(p.id, p.partner, p.options) for p in prompts] == [(p.id, p.partner, p.options) for p in EXPECTED]
    assert prompts[0].meta == EXPECTED[0].meta
    assert not any(prompts[1].meta.values())
    before = file_digest(path)
    assert len(before) == 64
    assert read_prompts(path) == prompts
    assert file_digest(path) == before


@pytest.mark.parametrize(
    "records",
    [
        RECORDS,
        tuple(RECORDS),
        (record for record in RECORDS),
        pd.DataFrame(RECORDS),
        pd.DataFrame(RECORDS).set_index("id"),
        pd.DataFrame(RECORDS).convert_dtypes(),
        pa.Table.from_pylist(TABLE),
        pa.Table.from_pandas(pd.DataFrame(RECORDS).iloc[[0, 1, 2]].set_index("id")),
        dataset(),
        dataset().with_format("numpy"),
        [
            {**RECORDS[0], "steps": np.array(RECORDS[0]["steps"]), "options": np.array(["2", "4"], dtype=object)},
            {**RECORDS[1], "options": float("nan"), "counterfactual": pd.NaT, "meta": pd.NA},
            {**RECORDS[2], "counterfactual": {**OTHER, "steps": np.nan}},
        ],
    ],
    ids=lambda records: type(records).__name__,
)
def test_records_in_memory_give_the_same_prompts(records):
    prompts = prompts_from_records(records)
    assert [(p.id, p.case, p.partner, p.options) for p in prompts] == [
        (p.id, p.case, p.partner, p.options) for p in EXPECTED
    ]


FIELD_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: any(character.isalnum() for character in text)
)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"question": FIELD_TEXT, "answer": FIELD_TEXT},
            optional={
                "steps": st.lists(FIELD_TEXT, max_size=3),
                "meta": st.fixed_dictionaries({"k": st.integers(0, 9)}),
            },
        ),
        min_size=1,
        max_size=4,
    )
)
def test_files_agree_on_any_text(tmp_path_factory, rows):
    directory = tmp_path_factory.mktemp("any")
    write(directory / "p.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    write(directory / "p.json", json.dumps(rows))
    columns = {key: [row.get(key) for row in rows] for key in ("question", "answer", "steps", "meta")}
    pq.write_table(pa.table(columns), directory / "p.parquet")
    expected = read_prompts(directory / "p.jsonl")
    assert [prompt.case.question for prompt in expected] == [row["question"] for row in rows]
    assert read_prompts(directory / "p.json") == expected
    assert read_prompts(directory / "p.parquet") == expected


# Ids


def test_without_ids_rows_are_numbered(tmp_path):
    bare = [{"question": "q", "answer": "1"}, {"question": "r", "answer": "2", "counterfactual": "row-0001"}]
    first, second = read_prompts(write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, bare))))
    assert (first.id, second.id) == ("row-0001", "row-0002")
    assert second.partner == first.case
    assert [prompt.id for prompt in prompts_from_records(bare)] == ["row-0001", "row-0002"]


def test_ids_on_some_rows_only_are_refused():
    rows = [{"question": "q", "answer": "1"}, {"id": 7, "question": "q", "answer": "1"}]
    with pytest.raises(InputError, match="records, row 1: field 'id' is missing, but row 2 has one"):
        prompts_from_records(rows)


def test_ids_may_be_numbers_and_named_by_numbers():
    frame = pd.DataFrame({"id": [7, 8], "question": ["q", "r"], "answer": [1, 2], "counterfactual": [np.nan, 7]})
    first, second = prompts_from_records(frame)
    assert (first.id, second.id) == ("7", "8")
    assert first.partner is None
    assert second.partner == first.case


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (12, "12"),
        (12.0, "12"),
        (12.5, "12.5"),
        (-0.25, "-0.25"),
        (10**20, "1" + "0" * 20),
        (np.int64(12), "12"),
        (np.float32(0.1), "0.1"),
        (" 72. ", "72."),
        ("1,200", "1,200"),
        ("1\u2044\u200b2", "1\u2044\u200b2"),
    ],
)
def test_answers_that_are_numbers_become_texts_and_texts_stay(answer, text):
    (prompt,) = prompts_from_records([{"question": "q", "answer": answer}])
    assert prompt.case.answer == text


# GSM8K and responses

SOLUTION = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 1,072"


def test_gsm8k_s_own_layout():
    (prompt,) = prompts_from_records(
        [{"question": "q", "answer": SOLUTION, "counterfactual": {**OTHER, "steps": None}}]
    )
    chain = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72."
    assert prompt.case == Case("q", "1,072", chain=chain)
    (dropped,) = prompts_from_records([{"question": "q", "answer": SOLUTION}], annotations="drop")
    assert dropped.case.chain == "She sold 48/2 = 24 clips.\nIn all 48+24 = 72."
    (partner,) = prompts_from_records(
        [{"question": "q", "answer": "1", "counterfactual": {"question": "r", "answer": SOLUTION}}]
    )
    assert partner.partner == Case("r", "1,072", chain=chain)


@pytest.mark.parametrize(
    ("answer", "case"),
    [
        ("a\r\n####72", Case("q", "72", chain="a\r")),
        ("#### 72", Case("q", "72", chain="")),
        ("a #### 72", Case("q", "a #### 72")),
        ("##### 72", Case("q", "##### 72")),
        ("a\n#### 72\nb", Case("q", "a\n#### 72\nb")),
    ],
)
def test_only_a_last_line_of_that_form_is_gsm8k_s(answer, case):
    assert prompts_from_records([{"question": "q", "answer": answer}])[0].case == case


def test_a_response_is_kept_until_the_format_is_known():
    record = {"question": "q", "answer": "4", "response": "<think>\na <<1+1=2>>\n</think>\nAnswer: 5"}
    assert prompts_from_records([record])[0].case == Case("q", "4", response=record["response"])
    (dropped,) = prompts_from_records([record], annotations="drop")
    assert dropped.case.response == "<think>\na \n</think>\nAnswer: 5"


# Faults


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": None}, "row 1: field 'answer' is missing; every prompt needs question, answer"),
        ({"answer": float("nan")}, "field 'answer' is missing"),
        ({"answer": float("inf")}, "field 'answer' is inf; expected a text or a finite number"),
        ({"answer": "a\n#### "}, "nothing behind its last '####'"),
        ({"answer": "\u200b \ufeff"}, "'answer' is empty"),
        ({"answer": b"12"}, "must be a text or a number, found a bytes"),
        ({"question": "\ud83d"}, "half of a surrogate pair"),
        ({"steps": ["\ud83d"]}, "'steps' holds half of a surrogate pair"),
        ({"steps": ["\u200b"]}, "none of them empty"),
        ({"chain": "a", "response": "b"}, "give either 'chain' or 'response', not both"),
        ({"response": 3}, "'response' must be a text, found a number"),
        ({"counterfactual": {"question": "r", "answer": None}}, "'counterfactual': field 'answer' is missing"),
        ({"level": "hard"}, "unknown field 'level'; known fields are .*under 'meta'"),
    ],
)
def test_faulty_records(record, message):
    with pytest.raises(InputError, match=message):
        prompts_from_records([{"question": "q", "answer": "1", **record}])


@pytest.mark.parametrize("records", [3, "text", {"question": "q"}, [1], None, []])
def test_what_is_no_list_of_records(records):
    with pytest.raises(InputError, match=r"^mine"):
        prompts_from_records(records, where="mine")


def test_unknown_choice_of_annotations():
    with pytest.raises(InputError, match="annotations 'strip': expected keep or drop"):
        prompts_from_records(RECORDS, annotations="strip")


LINE = json.dumps(RECORDS[1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "question,answer", r"kind cannot be told from '.csv'; expected JSONL"),
        ("prompts", LINE, "cannot be told from its name"),
        ("p.jsonl.gz", b"\x1f\x8b", "cannot be told from '.gz'"),
        ("p.parquet", "PAR1 broken", "cannot be read as Parquet"),
        ("p.parquet", b"", "cannot be read as Parquet"),
        ("p.json", f"{LINE}\n{LINE}", r"more than one JSON value \(line 2\).*named .jsonl"),
        ("p.json", LINE, "expected a JSON list of objects, found an object"),
        ("p.json", '[{"id": "a",\n "question"}]', "line 2: not valid JSON"),
        ("p.json", "[]", "no prompts in it"),
        ("p.json", f"[{LINE}, 3]", "row 2: expected a JSON object, found a number"),
        ("p.jsonl", f"{LINE}\n{'[' * 100_000}", "line 2"),
        ("p.jsonl", LINE + "\n" + '{"question": "q", "answer": ' + "1" * 5000 + "}", "line 2: cannot be read as JSON"),
        ("p.jsonl", b"PAR1\x15\x04\xff", "not UTF-8|line 1: not valid JSON"),
    ],
)
def test_wrong_or_broken_files(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_prompts(write(tmp_path / name, content))


def test_wrong_or_broken_directories(tmp_path):
    splits = saved(tmp_path / "splits", {"train": TABLE, "test": TABLE})
    for path, split, message in (
        (splits, None, r"holds the splits train, test; name one, as in .*splits:train"),
        (splits, "dev", r"has no split 'dev'; it holds train, test"),
        (f"{splits}:dev", None, "has no split 'dev'"),
        (f"{splits}:test", "train", "names the split 'test', but 'train' was asked for"),
        (saved(tmp_path / "one"), "test", "has no splits, but 'test' was asked for"),
        (tmp_path, None, "not one that datasets' save_to_disk wrote"),
        (write(tmp_path / "p.jsonl", LINE), "test", "only for a datasets directory"),
        (f"{tmp_path / 'nothing'}:test", None, "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            read_prompts(path, split)
    assert len(read_prompts(splits, split="test")) == len(read_prompts(f"{splits}:train")) == 3
    assert len(read_prompts(saved(tmp_path / "single", {"only": TABLE}))) == 3
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be loaded as a dataset"):
        read_prompts(tmp_path / "one")
    import datasets

    with pytest.raises(InputError, match="holds the splits a, b; give one of them"):
        prompts_from_records(datasets.DatasetDict({"a": dataset(), "b": dataset()}))


def test_a_colon_or_an_equals_sign_in_a_path_is_only_a_name(tmp_path):
    directory = tmp_path / "split=test"
    directory.mkdir()
    pq.write_table(pa.Table.from_pylist(TABLE), directory / "a:b.parquet")
    assert len(read_prompts(directory / "a:b.parquet")) == 3


def test_a_case_s_first_steps_keep_their_gaps():
    case = Case("q", "1", ("a", "b", "c"), gaps=("\n\n", " ", " ;"))
    assert case.first(3) == case
    assert case.first(2) == Case("q", "1", ("a", "b"), gaps=("\n\n", ""))
    assert case.first(1).gaps == ("",)
    assert case.first(0) == Case("q", "1", (), gaps=())
    assert Case("q", "1", ("a", "b")).first(1) == Case("q", "1", ("a",))
    with pytest.raises(ValueError, match="as many gaps as steps"):
        Case("q", "1", ("a",), gaps=())


def test_single_precision_numbers_are_what_they_show(tmp_path):
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"question": ["a", "b"], "answer": pa.array([0.1, 3.14], pa.float32())})
    parquet.write_table(table, tmp_path / "p.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    for path in ("p.parquet", "saved"):
        assert [prompt.case.answer for prompt in read_prompts(tmp_path / path)] == ["0.1", "3.14"]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["1"]), pa.array(["2"])], ["question", "answer", "answer"])
    parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="'answer' twice"):
        read_prompts(tmp_path / "p.parquet")
