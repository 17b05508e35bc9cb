"""What all figures share: names, errors, files whole and alike each time, whatever the user's style."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import figures
from analysis.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
TWO_COLUMNS = {"accuracy_trap", "attention_flow", "costs", "heads", "patch_maps", "probe_maps", "repair", "transfer"}


def test_every_figure_says_what_it_needs():
    assert list(figures.FIGURES) == [
        "routes",
        "accuracy_trap",
        "information_gain",
        "early_answering",
        "step_scores",
        "patch_maps",
        "heads",
        "attention_flow",
        "repair",
        "costs",
        "probe_maps",
        "transfer",
        "drift",
        "trajectory",
    ]
    assert figures.NEEDS.keys() == figures.FIGURES.keys()
    assert all(title.strip() for title in figures.FIGURES.values())


@pytest.mark.parametrize("name", figures.FIGURES)
def test_each_is_drawn_at_the_width_of_a_column_or_of_two(make_run, name):
    figure = figures.draw(name, make_run())
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() == (7.0 if name in TWO_COLUMNS else 3.5)
    assert figure.get_figheight() <= 9.5


def test_an_unknown_figure_names_the_nearest_and_all(make_run):
    with pytest.raises(
        InputError, match=r"figure 'route': unknown; did you mean 'routes'\? Known are routes, accuracy"
    ):
        figures.draw("route", make_run())
    with pytest.raises(InputError, match="figure 'xyzzy': unknown; known are routes"):
        figures.draw("xyzzy", make_run())


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_run_without_the_measure_says_which_is_lacking_and_how_to_get_it(make_run, name):
    lacking = figures.NEEDS[name][-1]
    kept = [measure for measure in sorted({m for needs in figures.NEEDS.values() for m in needs}) if measure != lacking]
    run = make_run(measures=kept)
    with pytest.raises(InputError) as raised:
        figures.draw(name, run)
    message = str(raised.value)
    assert f"figure {name!r} needs the measure {lacking}, and the run has the measures {', '.join(kept)}" in message
    assert message.endswith(f"--measures {','.join([*kept, lacking])}")
    assert str(run.directory) in message
    assert name not in figures.available(run)


def test_available_are_those_whose_measures_the_run_has(make_run):
    quick = make_run(measures=("routes", "accuracy_and_calibration", "early_answering"))
    assert figures.available(quick) == ("routes", "early_answering")
    assert figures.available(make_run()) == tuple(figures.FIGURES)


def test_write_makes_each_available_figure_in_each_format_and_leaves_nothing_else(make_run, tmp_path):
    run = make_run(measures=("routes", "drift"))
    paths = figures.write(run, tmp_path / "new" / "figures", ("png", "svg"))
    names = ["routes.png", "routes.svg", "drift.png", "drift.svg"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new" / "figures").iterdir()) == sorted(names)
    assert all(path.stat().st_size for path in paths)
    with mpl.rc_context({"savefig.dpi": 50}):
        assert imread(paths[0]).shape[1] == 3.5 * 300


def test_write_makes_only_what_is_asked_for_in_that_order(make_run, tmp_path):
    paths = figures.write(make_run(), tmp_path, ("svg",), ["drift", "routes", "drift"])
    assert [path.name for path in paths] == ["drift.svg", "routes.svg"]
    assert figures.write(make_run(), tmp_path / "none", ("svg",), []) == []


@pytest.mark.parametrize(
    ("formats", "only", "message"),
    [
        (("jpg",), None, "format 'jpg': unknown; did you mean 'png'"),
        (("png", "docx"), None, "format 'docx': unknown; known are png, pdf, svg"),
        (("svg",), ["routes", "drifts"], "figure 'drifts': unknown; did you mean 'drift'"),
        (("svg",), ["routes", "early_answering"], "figure 'early_answering' needs the measure early_answering"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(make_run, tmp_path, formats, only, message):
    with pytest.raises(InputError, match=message):
        figures.write(make_run(measures=("routes", "drift")), tmp_path / "out", formats, only)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_directorys_place_is_an_input_error(make_run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"figures directory .*out: cannot be written"):
        figures.write(make_run(), tmp_path / "out", ("svg",), ["routes"])
    assert (tmp_path / "out").read_text() == "mine"


def test_a_table_that_is_gone_is_an_input_error(make_run):
    run = make_run()
    (run.directory / "measures" / "drift.parquet").unlink()
    with pytest.raises(InputError, match=r"drift\.parquet cannot be read"):
        figures.draw("drift", run)


def test_bytes_are_the_same_again_alone_together_and_under_the_users_own_style(make_run, tmp_path):
    run = make_run(not_scorable=("sft",))
    together = figures.write(run, tmp_path / "a", ("pdf", "svg"))[1::2]
    before = dict(mpl.rcParams)
    own = {"font.size": 14, "font.family": "serif", "savefig.dpi": 72, "axes.grid": True, "svg.fonttype": "path"}
    with mpl.rc_context(own):
        alone = [figures.write(run, tmp_path / "b", (path.suffix[1:],), [path.stem])[0] for path in together]
    assert len(together) == len(figures.FIGURES)
    for first, second in zip(together, alone, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    assert dict(mpl.rcParams) == before


def test_bytes_are_the_same_in_another_process_that_never_loads_torch(make_run, tmp_path):
    run = make_run()
    paths = figures.write(run, tmp_path / "here", figures.FORMATS)
    script = (
        "import json, sys; import figures; from analysis.runs import Run; from pathlib import Path;"
        "figures.write(Run.open(sys.argv[1]), Path(sys.argv[2]), figures.FORMATS);"
        "print(json.dumps([name for name in ('torch', 'transformers') if name in sys.modules]))"
    )
    there = tmp_path / "there"
    # Another seed of hashes: an order that hangs on them would show.
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.directory), str(there)],
        cwd=REPOSITORY,
        env={"PYTHONHASHSEED": "7", "PATH": "", "MPLCONFIGDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []
    for path in paths:
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name


def test_to_bytes_is_what_save_writes(make_run, tmp_path):
    figure = figures.draw("routes", make_run())
    (path,) = figures.save(figure, tmp_path / "v1.2" / "routes.final", ("svg",))
    assert path == tmp_path / "v1.2" / "routes.final.svg"
    assert path.read_bytes() == figures.to_bytes(figure, "svg")
    with pytest.raises(InputError, match="format 'gif': unknown"):
        figures.to_bytes(figure, "gif")


def test_importing_the_figures_loads_neither_matplotlib_nor_models():
    script = "import figures, sys; print([n for n in ('matplotlib', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
