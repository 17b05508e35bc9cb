"""Stores: what goes in comes out, nothing is half written, nothing is mixed, and damage is found."""

from __future__ import annotations

import contextlib
import errno
import json

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import store_writer
from analysis.errors import InputError
from analysis.store import Store
from analysis.store_import import import_activations
from analysis.store_writer import StorePlan, writing

HOOKS = {"blocks.0.hook_resid_post": (3,), "blocks.0.attn.hook_z": (2, 2)}
SHARDS = (4, 3, 5)


def plan(**settings):
    n = sum(SHARDS)
    return StorePlan(
        settings={"model": "m", "layers": (0, 1), **settings},
        hooks=HOOKS,
        dtype="float32",
        rows=pd.DataFrame({"id": [f"p{i // 2}" for i in range(n)], "step": np.arange(n) % 2}),
        excluded=pd.DataFrame({"id": ["q"], "author": ["gold"], "reason": ["longer"]}),
        shard_rows=SHARDS,
    )


def tensors(number, value=0.0):
    start = sum(SHARDS[:number])
    rows = torch.arange(start, start + SHARDS[number], dtype=torch.float32)
    return {
        "blocks.0.hook_resid_post": rows[:, None] + torch.tensor([0.0, 0.25, 0.5]) + value,
        "blocks.0.attn.hook_z": rows[:, None, None] * 2 + torch.tensor([[0.0, 0.5], [1.0, 1.5]]),
    }


def make(directory, numbers=(0, 1, 2), **settings):
    with writing(directory, plan(**settings)) as writer:
        for number in numbers:
            writer.write(number, tensors(number))
        return writer.finish()


def interrupted(directory, *numbers):
    """A store whose making ended after these shards."""
    with contextlib.suppress(KeyboardInterrupt), writing(directory, plan()) as writer:
        for number in numbers:
            writer.write(number, tensors(number))
        raise KeyboardInterrupt


def read_all(store):
    return store.read("blocks.0.hook_resid_post"), store.rows, store.excluded


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_rows_come_back_in_the_order_that_is_asked_for(tmp_path):
    store = Store.open(make(tmp_path / "s").directory)
    whole = torch.cat([tensors(i)["blocks.0.hook_resid_post"] for i in range(3)])
    assert len(store) == len(store.rows) == 12
    assert torch.equal(store.read("blocks.0.hook_resid_post"), whole)
    assert torch.equal(
        store.read("blocks.0.hook_resid_post", np.array([11, 6, 0, 4, 5, 5])), whole[[11, 6, 0, 4, 5, 5]]
    )
    mask = store.rows["step"] == 1
    assert torch.equal(store.read("blocks.0.hook_resid_post", mask), whole[mask.to_numpy().copy()])
    assert store.read("blocks.0.attn.hook_z", np.array([], dtype=int)).shape == (0, 2, 2)
    assert store.excluded["reason"].tolist() == ["longer"]
    for outside in ([12], [-1]):
        with pytest.raises(IndexError, match="0 to 11"):
            store.read("blocks.0.hook_resid_post", np.array(outside))
    with pytest.raises(IndexError, match="12 rows"):
        store.read("blocks.0.hook_resid_post", np.ones(5, dtype=bool))
    with pytest.raises(InputError, match=r"no hook 'blocks.1.hook_resid_post'; it holds blocks.0"):
        store.read("blocks.1.hook_resid_post")


def test_the_order_in_which_shards_are_written_does_not_matter(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "other", numbers=(2, 0, 1))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert sorted(contents(tmp_path / "one")) == [
        "excluded.parquet",
        "manifest.json",
        "rows.parquet",
        *(f"shard-0000{i}.safetensors" for i in range(3)),
    ]


def test_what_was_written_is_kept_and_not_written_again(tmp_path):
    interrupted(tmp_path / "s", 1)
    with pytest.raises(InputError, match="is not complete"):
        Store.open(tmp_path / "s")
    with writing(tmp_path / "s", plan()) as writer:
        assert writer.missing == [0, 2]
        with pytest.raises(ValueError, match="2 shards are missing"):
            writer.finish()
        for number in writer.missing:
            writer.write(number, tensors(number))
        writer.finish()
    make(tmp_path / "undisturbed")
    assert contents(tmp_path / "s") == contents(tmp_path / "undisturbed")
    with writing(tmp_path / "s", plan()) as writer:
        assert writer.missing == []


@pytest.mark.parametrize("rest", ['{"file": "shard-00001', ""])
def test_a_journal_that_was_cut_off_costs_one_shard(tmp_path, rest):
    interrupted(tmp_path / "s", 0, 1)
    journal = tmp_path / "s" / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines()[0] + "\n" + rest)
    interrupted(tmp_path / "s", 1)  # what is appended now must not be joined to the cut line
    with writing(tmp_path / "s", plan()) as writer:
        assert writer.missing == [2]
        writer.write(2, tensors(2))
        writer.finish()
    make(tmp_path / "undisturbed")
    assert contents(tmp_path / "s") == contents(tmp_path / "undisturbed")


def test_another_configuration_is_refused_by_the_name_of_the_field(tmp_path):
    make(tmp_path / "s")
    before = contents(tmp_path / "s")
    for changed, message in (
        ({"model": "n"}, r"another 'model': there \"m\", now \"n\""),
        ({"layers": (0,)}, r"another 'layers': there also 1, now nothing else"),
        ({"dtype": "float16"}, r"another 'dtype': there null, now \"float16\""),
    ):
        with pytest.raises(InputError, match=message), writing(tmp_path / "s", plan(**changed)):
            pass
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "rows.parquet", "excluded.parquet"])
def test_a_flipped_byte_is_found_on_reading_on_verifying_and_on_resuming(tmp_path, name):
    make(tmp_path / "s")
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=name):
        Store.open(tmp_path / "s").verify()
    with pytest.raises(InputError, match=name):
        read_all(Store.open(tmp_path / "s"))
    with pytest.raises(InputError, match=name), writing(tmp_path / "s", plan()):
        pass
    # What the message says to do helps.
    if name.startswith("shard"):
        path.unlink()
        with pytest.raises(InputError, match="is missing; run the command"):
            Store.open(tmp_path / "s").verify()
        with writing(tmp_path / "s", plan()) as writer:
            assert writer.missing == [1]
            writer.write(1, tensors(1))
            writer.finish().verify()
        make(tmp_path / "undisturbed")
        assert contents(tmp_path / "s") == contents(tmp_path / "undisturbed")


def test_a_shard_that_comes_out_otherwise_the_second_time_is_refused(tmp_path):
    make(tmp_path / "s")
    (tmp_path / "s" / "shard-00001.safetensors").unlink()
    with pytest.raises(InputError, match="computes other bits"), writing(tmp_path / "s", plan()) as writer:
        writer.write(1, tensors(1, value=1e-6))
    assert not (tmp_path / "s" / "shard-00001.safetensors").exists()


def test_a_part_of_a_shard_that_was_killed_is_cleared_away(tmp_path):
    interrupted(tmp_path / "s")
    (tmp_path / "s" / ".shard-00000.safetensors.partial").write_bytes(b"half")
    make(tmp_path / "s")
    assert not [name for name in contents(tmp_path / "s") if "partial" in name]


def test_a_full_disk_is_one_message_and_keeps_what_is_there(tmp_path, monkeypatch):
    real = store_writer.write_whole

    def full(path, data):
        if path.name == "shard-00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(store_writer, "write_whole", full)
    with pytest.raises(InputError, match=r"No space left on device.*goes on where it stopped"):
        make(tmp_path / "s")
    monkeypatch.undo()
    with writing(tmp_path / "s", plan()) as writer:
        assert writer.missing == [1, 2]


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_writer, "write_whole", full)
    with pytest.raises(InputError, match="No space left"):
        make(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_writes(tmp_path):
    with writing(tmp_path / "s", plan()), pytest.raises(InputError, match="another process"):
        make(tmp_path / "s")


def test_what_is_not_a_store_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(InputError, match="not an activation store"):
        make(tmp_path / "thesis")
    assert contents(tmp_path / "thesis") == {"chapter.tex": b"x"}
    with pytest.raises(InputError, match=r"manifest.json cannot be read"):
        Store.open(tmp_path / "thesis")


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1}', '{"version": 9}'])
def test_a_damaged_manifest_is_one_message(tmp_path, damage):
    make(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text(damage)
    with pytest.raises(InputError, match=r"manifest\.json is (damaged|of version)"):
        Store.open(tmp_path / "s")


def test_tensors_that_were_not_planned_are_refused(tmp_path):
    with writing(tmp_path / "s", plan()) as writer:
        for wrong in (tensors(1), {**tensors(0), "extra": torch.zeros(4)}):
            with pytest.raises(ValueError, match="shapes"):
                writer.write(0, wrong)
        with pytest.raises(ValueError, match=r"float32"):
            writer.write(0, {name: value.half() for name, value in tensors(0).items()})


# What users bring.


@pytest.fixture
def brought(tmp_path):
    """Arrays `[row, layer, width]` and their labels, in each form that is read."""
    from safetensors.torch import save_file

    values = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    labels = pd.DataFrame({"item": [10, 10, 11, 11, 12, 12, 13], "correct": [1, 0, 1, 1, 0, 0, 1]})
    np.save(tmp_path / "acts.npy", values)
    np.savez(tmp_path / "acts.npz", acts=values)
    save_file({"acts": torch.from_numpy(values)}, tmp_path / "acts.safetensors")
    save_file({"acts": torch.from_numpy(values).bfloat16()}, tmp_path / "half.safetensors")
    labels.to_csv(tmp_path / "labels.csv", index=False)
    labels.to_parquet(tmp_path / "labels.parquet")
    labels.to_json(tmp_path / "labels.jsonl", orient="records", lines=True)
    return tmp_path, values


@pytest.mark.parametrize("file", ["acts.npy", "acts.npz", "acts.safetensors"])
@pytest.mark.parametrize("labels", ["labels.csv", "labels.parquet", "labels.jsonl"])
def test_users_own_activations_become_a_store(brought, file, labels):
    directory, values = brought
    store = import_activations(
        [directory / file], directory / labels, directory / "s", site="resid_post", id_column="item", shard_bytes=50
    )
    assert store.hooks == ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    assert len(store.manifest.shards) == 4
    for layer in range(2):
        assert np.array_equal(store.read(f"blocks.{layer}.hook_resid_post").numpy(), values[:, layer])
    assert store.rows["id"].tolist() == ["10", "10", "11", "11", "12", "12", "13"]
    assert store.rows["correct"].tolist() == [1, 0, 1, 1, 0, 0, 1]


def test_arrays_keep_their_own_names_and_half_precision_its_bits(brought):
    directory, values = brought
    store = import_activations(
        [directory / "half.safetensors"], directory / "labels.csv", directory / "s", id_column="item"
    )
    assert store.hooks == ("acts",)
    assert torch.equal(store.read("acts"), torch.from_numpy(values).bfloat16())


def test_what_users_bring_wrong(brought):
    directory, values = brought
    np.save(directory / "short.npy", values[:5])
    np.save(directory / "nan.npy", np.where(np.arange(7)[:, None, None] == 4, np.nan, values))
    np.save(directory / "ints.npy", np.arange(7)[:, None])
    np.save(directory / "objects.npy", np.array([{}] * 7), allow_pickle=True)
    np.save(directory / "double.npy", values.astype(">f8"))
    (directory / "text.npy").write_text("not an array")
    (directory / "acts.pt").write_bytes(b"")
    pd.DataFrame({"x": range(7)}).to_csv(directory / "no_id.csv", index=False)
    pd.DataFrame({"id": ["a", None, *"bcdef"]}).to_csv(directory / "gap.csv", index=False)

    def attempt(files, labels="labels.csv", **options):
        options = {"id_column": "item", **options}
        import_activations([directory / f for f in files], directory / labels, directory / "s", **options)

    for files, changes, message in (
        (["short.npy"], {}, r"'short' has 5 rows, and the label table .* has 7"),
        (["nan.npy"], {}, r"row 4 of array 'nan' \(prompt '12'\) is not finite"),
        (["ints.npy"], {}, "expected floating-point"),
        (["objects.npy"], {}, "cannot be read"),
        (["text.npy"], {}, "cannot be read"),
        (["acts.pt"], {}, r"expected one of \.safetensors"),
        (["none.npy"], {}, "no such file"),
        (["acts.npy", "acts.npz"], {}, "is there twice"),
        (["acts.npy", "half.safetensors"], {}, "is there twice"),
        (["acts.npy"], {"site": "resid"}, "site 'resid': unknown"),
        (["acts.npy"], {"labels": "no_id.csv", "id_column": "id"}, "no column 'id'.*one of x"),
        (["acts.npy"], {"labels": "gap.csv", "id_column": "id"}, "row 1 has no 'id'"),
        (["acts.npy"], {"labels": "acts.npy"}, "expected one of .csv"),
        ([], {}, "no activation file"),
    ):
        with pytest.raises(InputError, match=message):
            attempt(files, **changes)
        assert not (directory / "s").exists()
    attempt(["double.npy"])
    assert np.array_equal(Store.open(directory / "s").read("double").numpy(), values)
    settings = json.loads((directory / "s" / "manifest.json").read_text())["settings"]
    assert settings["made_by"] == "import"


def test_ids_of_a_table_are_texts(tmp_path):
    """Guessed types made one prompt of 007 and 7, and of two long numbers."""
    ids = ["007", "7", "NA", "12345678901234567890", "12345678901234567891"]
    np.save(tmp_path / "a.npy", np.ones((5, 2), dtype=np.float32))
    (tmp_path / "l.csv").write_text("item,x\n" + "".join(f"{name},1\n" for name in ids))
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"item": name, "x": 1}) + "\n" for name in ids))
    (tmp_path / "n.jsonl").write_text("".join(f'{{"item": {name}}}\n' for name in ("7", "7.0", "8", *ids[3:])))
    pd.DataFrame({"item": [1.0, 2.0, 2.0, 3.0, 4.0]}).to_parquet(tmp_path / "f.parquet")
    for file, expected in (
        ("l.csv", ids),
        ("l.jsonl", ids),
        ("n.jsonl", ["7", "7", "8", *ids[3:]]),
        ("f.parquet", ["1", "2", "2", "3", "4"]),
    ):
        store = import_activations([tmp_path / "a.npy"], tmp_path / file, tmp_path / f"s-{file}", id_column="item")
        assert store.rows["id"].tolist() == expected, file
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps({"id": "a", "y": y}) + "\n" for y in (1, "n/a", 2, 3, 4)))
    with pytest.raises(InputError, match="column 'y' mixes"):
        import_activations([tmp_path / "a.npy"], tmp_path / "mixed.jsonl", tmp_path / "m")


def test_values_that_single_precision_cannot_hold_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0], [1e39]]))
    (tmp_path / "l.csv").write_text("id\np\nq\n")
    with pytest.raises(InputError, match=r"row 1 of array 'a' \(prompt 'q'\) is not finite as float32"):
        import_activations([tmp_path / "a.npy"], tmp_path / "l.csv", tmp_path / "s")


def test_a_mask_is_told_by_its_labels_and_not_by_its_order(tmp_path):
    store = make(tmp_path / "s")
    whole = store.read("blocks.0.hook_resid_post")
    shuffled = store.rows.sort_values("step", ascending=False)
    mask = shuffled["step"] == 1
    assert torch.equal(store.read("blocks.0.hook_resid_post", mask), whole[1::2])
    assert torch.equal(store.read("blocks.0.hook_resid_post", mask.astype("boolean")), whole[1::2])
    for odd in (mask[:5], mask.astype(object).where(mask, None), [1.9], np.array([True, None] * 6)):
        with pytest.raises(IndexError):
            store.read("blocks.0.hook_resid_post", odd)


@pytest.mark.parametrize(
    "edit",
    [
        {"dtype": "float64"},
        {"dtype": "bfloat16"},
        {"shards": []},
        {"hooks": {}},
        {"hooks": {"blocks.0.hook_resid_post": [4], "blocks.0.attn.hook_z": [2, 2]}},
        {"tables": {}},
        {"settings": []},
    ],
)
def test_an_edited_manifest_is_not_blessed(tmp_path, edit):
    make(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **edit}))
    with pytest.raises(InputError, match=r"manifest\.json"):
        Store.open(tmp_path / "s").verify()
    path.write_text(json.dumps(manifest))
    manifest["shards"][0]["rows"] = 3
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"rows\.parquet has 12 rows|does not hold"):
        Store.open(tmp_path / "s").verify()


def test_a_link_to_an_empty_directory_is_a_place_for_a_store(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    make(tmp_path / "link").verify()
    assert (tmp_path / "scratch" / "manifest.json").is_file()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="Not a directory"):
        make(tmp_path / "file" / "s")
