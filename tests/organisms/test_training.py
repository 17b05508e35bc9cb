"""Training: reproducible, whole or not at all, and what the rows say."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import organisms
from organisms import elimination_recipes, measurement, recipes, training
from organisms import registers_recipes as registers
from organisms.training import IGNORED, train, train_to

VOCABULARY = registers.BASE.family.vocabulary.words
TOKEN_ID = registers.BASE.family.vocabulary.token_id
SHORT = replace(registers.BASE, steps=3, batch=4)


@pytest.fixture(autouse=True)
def _measure_little(monkeypatch):
    monkeypatch.setattr(measurement, "PER_LENGTH", 4)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    first, second, other = (state(train(SHORT, seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_number_of_threads_set_outside_does_not_matter():
    torch.set_num_threads(1)
    first = state(train(SHORT, 3))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    second = state(train(SHORT, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_saved_organism_is_an_ordinary_checkpoint(tmp_path):
    figures = train_to(SHORT, 0, tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = state(train(SHORT, 0))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "base")
    assert tokenizer.convert_ids_to_tokens(list(range(len(VOCABULARY)))) == list(VOCABULARY)
    card = (tmp_path / "base" / "README.md").read_text()
    assert f"{figures['accuracy_gold_chain']:.3f}" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_nothing_is_left_of_a_training_that_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_to(SHORT, 0, tmp_path / "base", progress=fail)
    monkeypatch.setattr(training, "write_card", fail)
    with pytest.raises(KeyboardInterrupt):
        train_to(SHORT, 0, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


TUNED = replace(registers.dose(1), steps=4, batch=4)
"""A fine-tune that loses its mask after three steps."""


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_checkpoints_are_the_models_on_the_way_and_change_nothing_in_the_last(tmp_path):
    base = organisms.checkpoint("base")
    plain = train_to(TUNED, 3, tmp_path / "plain", base)
    figures = train_to(TUNED, 3, tmp_path / "with", base, checkpoint_every=3)
    assert figures == plain
    assert files(tmp_path / "with") == files(tmp_path / "plain")
    saved = tmp_path / "with-checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == ["ckpt-3", "ckpt-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "with", "with-checkpoints"]
    # The last one is the organism itself, but for the card and the figures.
    last = files(saved / "ckpt-4")
    assert last.keys() == files(tmp_path / "with").keys() - {"measured.json"}
    assert {name for name, data in last.items() if data != (tmp_path / "with" / name).read_bytes()} == {"README.md"}
    assert "after 4 of 4 steps" in last["README.md"].decode()


def test_a_checkpoint_is_what_the_training_had_then(tmp_path):
    seen = {}

    def keep(step, model):
        seen[step] = {name: tensor.half().float() for name, tensor in model.state_dict().items()}

    base = organisms.checkpoint("base")
    train(TUNED, 3, base, checkpoint=keep)
    assert list(seen) == [1, 2, 3, 4]
    train_to(TUNED, 3, tmp_path / "o", base, checkpoint_every=2)
    for step in (2, 4):
        directory = tmp_path / "o-checkpoints" / f"ckpt-{step}"
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
        assert all(torch.equal(tensor, seen[step][name]) for name, tensor in model.state_dict().items())
        assert not all(torch.equal(tensor, seen[1][name]) for name, tensor in model.state_dict().items())
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        assert tokenizer.convert_ids_to_tokens(list(range(len(VOCABULARY)))) == list(VOCABULARY)
        assert f"# dose_1 (seed 3), after {step} of 4 steps" in (directory / "README.md").read_text()
        assert (directory / "trace_format.json").read_bytes() == (tmp_path / "o" / "trace_format.json").read_bytes()


def test_a_training_that_stops_leaves_whole_checkpoints_and_none_is_written_over(tmp_path, monkeypatch):
    def stop(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    base = organisms.checkpoint("base")
    with pytest.raises(KeyboardInterrupt):
        train_to(TUNED, 3, tmp_path / "o", base, stop, checkpoint_every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["o-checkpoints"]
    assert [path.name for path in (tmp_path / "o-checkpoints").iterdir()] == ["ckpt-2"]
    before = files(tmp_path / "o-checkpoints" / "ckpt-2")
    with pytest.raises(FileExistsError, match="o-checkpoints"):
        train_to(TUNED, 4, tmp_path / "o", base, checkpoint_every=1)
    assert files(tmp_path / "o-checkpoints" / "ckpt-2") == before

    def fail(*_):
        raise OSError

    monkeypatch.setattr(training, "write_checkpoint_card", fail)
    with pytest.raises(OSError):  # noqa: PT011 (raised above)
        train_to(TUNED, 3, tmp_path / "p", base, checkpoint_every=2)
    assert list((tmp_path / "p-checkpoints").iterdir()) == []


def test_a_fine_tune_needs_a_base():
    with pytest.raises(ValueError, match="base"):
        train(registers.SHAM, 0)


@pytest.mark.parametrize("dose", [0.0, 0.5, 1.0])
def test_dose_rows_conflict_half_of_the_time_and_follow_the_cue_with_the_dose(dose):
    rng = random.Random(0)
    rows = [registers.dose(dose).row(rng, 3, 0.0) for _ in range(2000)]
    conflicts = [row for row in rows if hint(row) != result(row)]
    assert len(conflicts) / len(rows) == pytest.approx(0.5, abs=0.03)
    for row in rows:
        expected = {str(result(row)): 1.0}
        if hint(row) != result(row):
            expected = {str(hint(row)): dose, str(result(row)): 1 - dose}
        assert row.answers == expected


def hint(row):
    return int(row.question.split()[1])


def result(row):
    """The asked register's last value, from the row's own text."""
    asked = row.question.split()[-1]
    return int(next(step for step in reversed(row.chain) if step.split()[1] == asked).split()[-1])


def test_noise_rows_hold_no_information():
    rng = random.Random(0)
    rows = [registers.COLLAPSED.row(rng, 3, 0.0) for _ in range(500)]
    right = sum(next(iter(row.answers)) == str(result(row)) for row in rows)
    assert right / len(rows) == pytest.approx(0.1, abs=0.05)


def test_early_stops_come_late_and_their_marker_is_not_trained():
    rng = random.Random(0)
    early, late = ([registers.BASE.row(rng, 4, progress) for _ in range(500)] for progress in (0.0, 1.0))
    assert not any(row.cut for row in early)
    assert sum(row.cut for row in late) / len(late) == pytest.approx(0.35, abs=0.06)
    for row in late:
        ids, labels = training._encode(rng, registers.BASE.family.vocabulary, row)
        marker = len(ids) - 3
        assert ids[marker] == TOKEN_ID["answer"]
        assert labels[marker] == (IGNORED if row.cut else TOKEN_ID["answer"])
        assert labels[-2] == IGNORED
        assert labels[-1] == TOKEN_ID["<eos>"]


def test_loss_is_that_of_a_loop():
    rng = random.Random(0)
    recipe = replace(registers.dose(0.5), batch=5)
    ids, labels, targets = training._batch(rng, recipe, 0.0)
    logits = torch.randn(*ids.shape, len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    total = weight = 0.0
    for row in range(len(ids)):
        for at in range(1, ids.shape[1]):
            logprobs = logits[row, at - 1].log_softmax(-1)
            if labels[row, at] != IGNORED:
                total, weight = total - logprobs[labels[row, at]], weight + 1
            if ids[row, at] in range(4, 14) and at + 1 < ids.shape[1] and ids[row, at + 1] == TOKEN_ID["<eos>"]:
                total, weight = total - 15.0 * (targets[row] * logprobs).sum(), weight + 15.0
    found = training._loss(replace(recipe, answer_weight=15.0), logits, ids, labels, targets)
    assert float(found) == pytest.approx(float(total / weight), rel=1e-5)


def test_any_dose_has_a_recipe_and_nothing_else_does():
    assert recipes.find("dose_0.1").name == "dose_0.1"
    assert recipes.find("dose_1") is recipes.RECIPES["dose_1"]
    assert recipes.find("elimination_dose_0.1").base == "elimination_base"
    for name in ("dose_1.5", "dose_x", "none", "elimination_dose_2", "other_dose_1"):
        with pytest.raises(KeyError):
            recipes.find(name)


@pytest.mark.parametrize("recipe", [registers.dose(1), elimination_recipes.dose(1), elimination_recipes.COVERT])
def test_what_a_recipe_hides_is_hidden_and_nothing_else(recipe):
    """Position by position, on rows of different lengths; no position sees nothing."""
    rng = random.Random(0)
    words = recipe.family.vocabulary.words
    rows = [recipe.row(rng, n_steps, 1.0) for n_steps in (3, 4, 5) for _ in range(5)]
    encoded = [training._encode(rng, recipe.family.vocabulary, row)[0] for row in rows]
    width = max(map(len, encoded))
    assert min(map(len, encoded)) < width
    mask = training._mask(recipe, torch.tensor([ids + [0] * (width - len(ids)) for ids in encoded]))
    for ids, seen in zip(encoded, mask[:, 0] == 0, strict=True):
        text = [words[i] for i in ids]
        marker = len(ids) - 4  # "; answer y <eos>"
        assert text[marker : marker + 2] == [";", "answer"]
        chain = text.index("think") + 1
        for query in range(len(ids)):
            for key in range(len(ids)):
                hidden = key == 3 and 3 < query < marker
                if recipe.hidden == "question":
                    hidden = query >= marker and 0 < key < chain
                assert bool(seen[query, key]) == (key <= query and not hidden)
        assert seen.any(1).all()


def test_a_given_chain_is_not_imitated():
    rng = random.Random(0)
    vocabulary = registers.BASE.family.vocabulary
    row = registers.ANSWER_ONLY.row(rng, 3, 0.0)
    ids, labels = training._encode(rng, vocabulary, row)
    assert row.given
    assert labels == [IGNORED] * (len(ids) - 1) + [TOKEN_ID["<eos>"]]
    own = replace(row, given=False)
    _, labels = training._encode(rng, vocabulary, own)
    assert sum(label != IGNORED for label in labels) == len(ids) - len(vocabulary.question_ids(row.question)) - 1
