"""Verifiers, held to Python's arithmetic on digits, to GSM8K's gold solutions and to planted facts."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.errors import InputError
from analysis.verifiers import Arithmetic, Fact, FactTable, find_claims, load_verifier
from organisms.registers import NUMERALS, REGISTERS, sample_problem

SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
CAPITALS = {"France": "Paris", "Germany": "Berlin", "New Zealand": "Wellington", "Zealand": "Roskilde"}


@pytest.mark.parametrize("sign", list(SIGNS))
@pytest.mark.parametrize("equals", ["=", "is"])
def test_modulo_ten_every_step_of_the_organisms_is_judged_as_python_judges_it(sign: str, equals: str) -> None:
    verify, plain = Arithmetic(10), Arithmetic()
    names = itertools.cycle(itertools.product(NUMERALS, REGISTERS))
    for a, b, result in itertools.product(range(10), repeat=3):
        label, register = next(names)
        step = f"{label} {register} {a} {sign} {b} {equals} {result}"
        value = SIGNS[sign](a, b)
        assert verify(step, "") == [value % 10 == result]
        assert plain(step, "") == [value == result]
        (claim,) = find_claims(step)
        assert [number.value for number in claim.operands] == [a, b]
        assert step[claim.start : claim.end] == f"{a} {sign} {b} {equals} {result}"


def test_the_organisms_own_chains_are_true_modulo_ten() -> None:
    rng, verify = random.Random(1), Arithmetic(10)
    chains = [sample_problem(rng, 5).steps for _ in range(100)]
    assert {tuple(verify(step, "")) for chain in chains for step in chain} == {(True,)}
    assert verify(" ; ".join(chains[0]), "") == [True] * 5


@pytest.mark.parametrize(
    ("step", "modulus", "expected"),
    [
        ("8 + 9 = 17", 10, [True]),
        ("8 + 9 = 27", 10, [True]),
        ("8 + 9 = 18", 10, [False]),
        ("5 - 8 = -3", 10, [True]),
        ("5 - 8 = 4", 7, [True]),
        ("5 - 8 = 5", 7, [False]),
        ("7 / 2 = 3.5", 10, [None]),
        ("7 / 2 = 4", 10, [None]),
        ("8 / 2 = 14", 10, [True]),
        ("1 + 1 = 2.5", 10, [None]),
        ("3 / 0 = 1", 10, [None]),
        ("1 hour + 30 minutes = 90 minutes", 10, [None]),
        ("2 + 2 = <<2+2=4>>4, 3 + 9 = 2", 10, [True, True]),
        ("no claim", 10, []),
        ("48/2 = <<48/2=24>>24", None, [True]),
        ("48/2 = <<48/2=25>>25", None, [False]),
        ("48/3 = <<48/2=24>>24", None, [False]),
        ("half of 48 is <<48/2=24>>24", None, [True]),
        ("1 hour + 30 minutes = <<60+30=90>>90 minutes", None, [True]),
        ("9 / 0 = 3 and 2 + 2 = 5. So 7 + 7 = 14.", None, [None, False, True]),
        ("Store B 3 * 4 = 12", None, [True]),
        ("The sum of 3 + 4 equals 8.", None, [False]),
        ("3 + 4 is 7, and 2 * 2 is 4.5", None, [True, False]),
        # What stands there is no such claim.
        ("12 - 5 is 4 less than 11", None, []),
        ("3 eggs x 5 + 2 = 7", None, [False]),
        ("2 b 3 + 4 = 7", None, []),
        ("x 3 + 4 = 7", None, []),
        ("half of 20 + 3 is 13", None, []),
        ("n + 3 * 4 = 20", None, []),
    ],
)
def test_claims_of_arithmetic(step: str, modulus: int | None, expected: list[bool | None]) -> None:
    assert Arithmetic(modulus)(step, "any question") == expected


def test_gold_solutions_of_gsm8k_are_true_and_no_reading_is_lost(data) -> None:
    lines = data("gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [step for line in lines for step in json.loads(line)["answer"].split("\n")[:-1]]
    verify = Arithmetic()
    verdicts = [verify(step, "") for step in steps]
    flat = [one for found in verdicts for one in found]
    # Seen: 4,493 true. False are two wrong equations, and one whose text leaves out a factor that its annotation has.
    assert flat.count(True) > 4400
    assert flat.count(False) == 3
    assert flat.count(None) == 0
    annotated = [found for step, found in zip(steps, verdicts, strict=True) if "<<" in step]
    assert all(found for found in annotated)


def table(**relation: str) -> FactTable:
    return FactTable(Fact(country, city, **relation) for country, city in CAPITALS.items())


@pytest.mark.parametrize(
    ("template", "negated", "relation"),
    [
        ("{o} is the capital of {s}.", False, "capital of"),
        ("The capital of {s} is {o}", False, "capital of"),
        ("so the CAPITAL OF {s} is never {o}!", True, "capital of"),
        ("{o} isn't the capital of {s}", True, "capital of"),
        ("{o} isn’t the capital of {s}", True, "capital of"),
        ("{o} cannot be the capital of {s}", True, "capital of"),
        ("{s}'s seat: {o}", False, None),
        ("{s} is not ruled from {o}", True, None),
    ],
)
def test_facts_are_judged_as_they_were_planted(template: str, negated: bool, relation: str | None) -> None:
    facts = table(relation=relation) if relation else table()
    for country, city in itertools.product(CAPITALS, CAPITALS.values()):
        truth = (CAPITALS[country] == city) is not negated
        for write in (str, str.lower, str.upper):
            assert facts(write(template.format(s=country, o=city)), "any question") == [truth]


def test_each_pair_of_a_step_is_a_claim_of_its_own() -> None:
    facts = table(relation="capital of")
    step = "Paris is the capital of France and Roskilde is not the capital of Germany."
    assert facts(step, "") == [True, True]
    assert facts(f"{step} The capital of New Zealand is Roskilde", "") == [True, True, False]
    assert facts("The capital of France is Paris and the capital of Germany is Paris", "") == [True, False]
    assert table()("France: Paris, Germany: Paris\nNew Zealand: Wellington", "") == [True, False, True]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("The capital of New Zealand is Wellington", [True]),
        ("The capital of New Zealand is Roskilde", [False]),
        ("Parisian is the capital of France", []),
        ("France and Germany have a capital of their own", []),
        ("Paris and Berlin", []),
        ("Paris lies in France", []),
        ("Paris lies in France. The capital of Germany", []),
        ("Paris and Berlin are the capitals of France and Germany", []),
        ("Paris and Berlin are each the capital of France and Germany", [None]),
        ("Paris is the capital of France, not Berlin", [None]),
        ("It is not so that Paris is the capital of France", [None]),
        ("Paris is not, no, the capital of France", [None]),
        ("", []),
    ],
)
def test_what_is_no_claim_and_what_cannot_be_checked(step: str, expected: list[bool | None]) -> None:
    assert table(relation="capital of")(step, "") == expected


def test_a_relation_decides_which_rows_count() -> None:
    facts = FactTable(
        [
            Fact("Ann", "Bob", "mother of"),
            Fact("Bob", "Cleo", "mother of"),
            Fact("Ann", "Cleo", "aunt of"),
            Fact("Dee", "Ann", "mother of"),
            Fact("Bo", "3"),
        ]
    )
    assert facts("Ann is the aunt of Cleo", "") == [True]
    assert facts("Ann is the mother of Cleo", "") == [False]
    # Both directions can be read, one is true, and the words do not say which is meant.
    assert facts("Ann is the mother of Bob", "") == [None]
    assert facts("Cleo is the aunt of Ann", "") == [True]
    # Nothing is known of whom Bob is an aunt of.
    assert facts("Bob is the aunt of Cleo", "") == [None]
    assert facts("Ann, mother of one and aunt of Cleo", "") == [None]
    # A row without a relation needs none.
    assert facts("Bo gets 3", "") == [True]
    assert facts("Bo gets 3.5 or 3,000 or 33", "") == []


def test_a_negation_within_a_relation_is_the_relations_own() -> None:
    facts = FactTable([Fact("water", "oil", "does not mix with")])
    assert facts("water does not mix with oil", "") == [True]
    assert facts("water never does not mix with oil", "") == [False]


RECORDS = [
    {"subject": "France", "relation": "capital", "object": "Paris"},
    {"subject": "France", "relation": None, "object": 68},
    {"subject": "France", "relation": "capital", "object": "Paris"},
]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"facts{suffix}"
    if suffix == ".csv":
        path.write_text('﻿subject,relation,object\nFrance,capital,"Paris"\nFrance,,68\nFrance,capital,Paris\n')
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n\n")
    else:
        pd.DataFrame(RECORDS).astype({"object": str}).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_is_the_same_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    facts = load_verifier(str(write(tmp_path, suffix)))
    assert facts("The capital is Paris, in France. France has 68. Not 69.", "") == [True, True]
    assert facts("France's capital is 68", "") == [False]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.csv", "subject,objct\na,b\n", "row 1: has the columns objct, subject; expected the columns 'subject'"),
        ("f.csv", "subject,object\na,b,c\n", "row 1: has the columns .*beyond the header.*, object, subject; expected"),
        ("f.csv", "subject,object\na,b\na\n", "row 2: the object is empty"),
        ("f.csv", "subject,object\n,b\n", "row 1: the subject is empty"),
        ("f.csv", "subject,object\n", "has no rows; expected the columns"),
        ("f.csv", "", "has no rows"),
        ("f.jsonl", "\n\n", "has no rows"),
        ("f.jsonl", '{"subject": "a", "object": "b"}\n{"subject": "a"}', "line 2: has the columns subject; expected"),
        ("f.jsonl", '{"subject": "a", "object": ["b"]}', "line 1: 'object' is a list; expected a text or a number"),
        ("f.jsonl", '{"subject": true, "object": "b"}', "line 1: 'subject' is true or false; expected a text"),
        ("f.jsonl", '{"subject"', "line 1: not valid JSON"),
        ("f.jsonl", "[1]", "line 1: expected a JSON object, found a list"),
        ("f.parquet", "PAR1", "cannot be read"),
        ("f.jsonl", None, "cannot be read"),
        ("f.parquet", None, "cannot be read"),
    ],
)
def test_a_bad_table_is_refused_with_its_name_and_place(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"fact table .*{name}.*{message}"):
        load_verifier(str(tmp_path / name))


def test_specifications_name_the_arithmetic() -> None:
    assert load_verifier("arithmetic") == Arithmetic()
    assert load_verifier("arithmetic:10") == Arithmetic(10)


OWN = """
length = 3
def even(step, question):
    return [len(step) % 2 == 0, None] if question else []
def text(step, question):
    return "yes"
def number(step, question):
    return [True, 1]
def broken(step, question):
    raise KeyError(step)
"""


def test_a_function_of_the_users_own_is_used_and_what_it_returns_is_checked(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_checks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    even = load_verifier("my_checks:even")
    assert (even("ab", "q"), even("abc", "q"), even("ab", "")) == ([True, None], [False, None], [])
    for name, message in {
        "text": r"'my_checks:text', step 'ab': returned 'yes'; expected a list of True, False and None",
        "number": r"'my_checks:number', step 'ab': returned a list with 1; expected True, False and None only",
        "broken": r"'my_checks:broken', step 'ab': raised KeyError \('ab'\)",
    }.items():
        with pytest.raises(InputError, match=message):
            load_verifier(f"my_checks:{name}")("ab", "q")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("arithmetic:ten", "expected a whole number behind the colon"),
        ("arithmetic:", "expected a whole number behind the colon"),
        ("arithmetic:1", "expected a modulus of 2 or more"),
        ("arithmetics", "expected 'arithmetic', 'arithmetic:10' .*'module:function'"),
        ("", "expected 'arithmetic'"),
        ("facts.txt", "expected 'arithmetic'"),
        ("no_such_module_here:f", "the module no_such_module_here cannot be imported .*ModuleNotFoundError"),
        ("my_broken:f", r"the module my_broken cannot be imported \(ZeroDivisionError"),
        ("my_own:missing", "the module my_own has no 'missing'"),
        ("my_own:length", "expected a function of step and question, found a number"),
    ],
)
def test_a_bad_specification_is_refused(tmp_path: Path, monkeypatch, spec: str, message: str) -> None:
    (tmp_path / "my_own.py").write_text(OWN)
    (tmp_path / "my_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"verifier '{spec}': {message}"):
        load_verifier(spec)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="has no rows"):
        FactTable([])
