"""What a study makes of prompts without partners, of GSM8K's own layout, and of sampled chains."""

from __future__ import annotations

import json

import organisms
from fracture.config import StudyConfig
from fracture.study import run_study

WORD_PROBLEMS = [
    {
        "question": f"Tom has {12 + i} apples and buys {34 + 2 * i} more. How many has he?",
        "answer": f"Tom has {12 + i}+{34 + 2 * i}=<<{12 + i}+{34 + 2 * i}={total}>>{total}.\n#### {total}",
    }
    for i, total in enumerate((46, 49, 52))
]


def bare_prompts(path, n=24):
    """The organisms' prompts without partners; arithmetic modulo 10 cannot be propagated."""
    records = [json.loads(line) for line in organisms.prompts("agreeing").read_text().splitlines()[:n]]
    for record in records:
        del record["counterfactual"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(tmp_path, prompts, base="base", variant="dose_1", **options):
    options = {"measures": ("routes",)} | options
    config = StudyConfig(
        base=str(organisms.checkpoint(base)),
        variants={"v": str(organisms.checkpoint(variant))},
        prompts=str(prompts),
        out=str(tmp_path / "run"),
        **options,
    )
    found = run_study(config)
    return found.summary, found.table("routes")


def test_another_prompt_as_partner_is_described_and_counts_for_nothing(tmp_path):
    summary, effects = run(tmp_path, bare_prompts(tmp_path / "p.jsonl"), partners="any")
    assert summary["prompts"]["partners"] == {"another prompt": 24}
    assert set(effects["tier"]) == {3}
    variant = summary["variants"]["v"]
    assert variant["verdict"] != "detached"
    assert variant["bypass"]["text"]["difference"]["n"] == 0
    # Another prompt's chain answers another question, which is why this is a description: the base's is not near 0.
    base = summary["base"]["another_prompt_as_partner"]["bypass"]
    assert base["high"] < 0.9 < variant["another_prompt_as_partner"]["bypass"]["low"]


def test_given_partners_are_not_mixed_with_other_prompts(tmp_path):
    lines = organisms.prompts("agreeing").read_text().splitlines()[:24]
    bare = [json.loads(line) for line in bare_prompts(tmp_path / "bare.jsonl", 30).read_text().splitlines()[24:]]
    (tmp_path / "p.jsonl").write_text("\n".join([*lines, *(json.dumps(record) for record in bare)]))
    summary, effects = run(tmp_path, tmp_path / "p.jsonl", partners="any")
    assert summary["prompts"]["partners"] == {"given": 24, "another prompt": 6}
    assert summary["variants"]["v"]["bypass"]["text"]["difference"]["n"] == 24
    assert effects.groupby("tier")["id"].nunique().to_dict() == {1: 24, 3: 6}


def test_gsm8ks_own_layout_gets_partners_by_a_changed_number(tmp_path, make_checkpoint):
    prompts = tmp_path / "gsm8k.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in WORD_PROBLEMS))
    model = make_checkpoint("llama", "bpe")
    config = StudyConfig(base=str(model), variants={"v": str(model)}, prompts=str(prompts), out=str(tmp_path / "run"))
    summary = run_study(config).summary
    assert summary["prompts"]["partners"] == {"changed number": 3}
    assert summary["study"]["author"] == "gold"
    assert summary["variants"]["v"]["verdict"] in ("not scorable", "inconclusive")


def test_sampled_chains_follow_the_seed(tmp_path):
    lines = organisms.prompts("random").read_text().splitlines(keepends=True)[:20]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    found = []
    for number, seed in enumerate((1, 1, 2)):
        (tmp_path / str(number)).mkdir()
        summary, _ = run(
            tmp_path / str(number), tmp_path / "p.jsonl", author="base", temperature=3.0, seed=seed, max_chain_tokens=80
        )
        found.append({key: summary[key] for key in ("prompts", "base", "variants")})
    assert found[0] == found[1] != found[2]
