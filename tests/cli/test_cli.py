"""The command line: tables, models, forecasts, and errors in one line with exit status 2."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python

import lstm_ext
from lstm_ext import files
from lstm_ext.cli import commands, reports
from lstm_ext.cli.commands import main
from lstm_ext.forecasting import forecaster as module
from lstm_ext.forecasting.forecaster import Forecaster

TINY = ("--window", "5", "--horizon", "2", "--hidden", "3", "--epochs", "2")
FEW = ("--hidden", "5", "--epochs", "2")
RIVER = ("train", "river.csv", "--target", "flow", "--inputs", "rain", "--time", "date", *TINY)
COMMANDS = ("train", "predict", "evaluate", "info", "verify")


def river_table(rows=97):
    """Return columns of a small table with a gap."""
    rng = np.random.default_rng(0)
    flow = 10 + np.sin(np.arange(rows) / 3) + 0.1 * rng.normal(size=rows)
    flow[40] = np.nan
    return {
        "date": np.datetime64("2023-12-01") + np.arange(rows).astype("timedelta64[D]"),
        "site": np.where(np.arange(rows) % 2, "north", "south"),
        "flow": flow,
        "rain": rng.random(rows),
    }


def csv_text(table):
    lines = [",".join(table)] + [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a table, and the model and picture that `train` made of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "river.csv").write_text(csv_text(river_table()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*RIVER, "--until", "2024-02-15"])
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def river(folder, trained):
    """Return a fresh folder with the table, a model and a picture."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    return folder


def run(*arguments):
    main(list(map(str, arguments)))


def printed(capsys, *arguments):
    capsys.readouterr()
    run(*arguments)
    return capsys.readouterr()


def as_json(capsys, *arguments):
    """Run with --json and return the one object on stdout."""
    captured = printed(capsys, *arguments, "--json")
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys, *arguments):
    """Run, and return the single line on stderr; no file is new or changed."""
    before = contents(Path())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("lstm-ext: ")
    assert contents(Path()) == before
    return captured.err


# --- from a table to a model


def test_train_writes_model_and_picture_and_reports(river, capsys):
    (river / "river.png").unlink()
    (river / "river.safetensors").unlink()
    output = printed(capsys, *RIVER)
    for words in ("97 rows, steps of 1 day", "flow: 1 missing", "last value", "oracle", "trained on", "wrote"):
        assert words in output.out
    assert output.err == ""
    assert sorted(path.name for path in river.iterdir()) == ["river.csv", "river.png", "river.safetensors"]
    assert (river / "river.png").read_bytes().startswith(b"\x89PNG")
    assert lstm_ext.load("river.safetensors").sizes == (2, 3, 2)


def test_on_a_terminal_a_bar_shows_the_training_instead_of_lines(river, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    captured = printed(capsys, *RIVER, "--epochs", "5", "--json")
    assert re.search(r", loss \S+, validation loss \S+\]", captured.err)
    assert "epoch 5:" not in captured.err
    assert set(json.loads(captured.out)) >= {"training", "seconds"}


def test_train_json_is_one_object_and_progress_is_on_stderr(river, capsys):
    captured = printed(capsys, *RIVER, "--epochs", "5", "--json")
    assert re.findall(r"epoch \d+.*: ", captured.err) == ["epoch 5: "]  # and none of the lines of `train` itself
    assert captured.out.count("\n") == 1
    report = json.loads(captured.out)
    assert set(report) == {"table", "training", "held_out", "oracle_difference", "seconds", "written"}
    assert report["table"] == [
        {
            "series": "",
            "rows": 97,
            "step": "1 day",
            "first": "2023-12-01",
            "last": "2024-03-06",
            "missing": {"flow": 1, "rain": 0},
            "longest_gap": {"flow": 1, "rain": 0},
        }
    ]
    assert set(report["training"]) == {"trained_before", "windows", "epochs"}
    assert report["training"]["trained_before"] == {"": "2024-02-16"}  # a share of 0.8 of 97 rows
    held_out = report["held_out"]
    assert set(held_out) == {
        "target", "horizon", "origins", "first_origin", "last_origin", "rmse", "mae", "rmse_by_step",
    }  # fmt: skip
    assert set(held_out["rmse"]) == set(held_out["mae"]) == {"LSTM", "last value"}
    assert [len(errors) for errors in held_out["rmse_by_step"].values()] == [2, 2]
    assert report["oracle_difference"] < 1e-4
    assert report["written"] == ["river.safetensors", "river.png"]


def test_train_and_python_give_the_same_model(river):
    forecaster = Forecaster(target="flow", inputs=["rain"], time="date", window=5, horizon=2, hidden_dim=3, epochs=2)
    forecaster.fit("river.csv", until="2024-02-15")
    loaded = Forecaster.load("river.safetensors")
    assert repr(loaded) == repr(forecaster)
    assert loaded.network.parameters.tobytes() == forecaster.network.parameters.tobytes()


def test_every_option_of_train_sets_what_it_says(river):
    options = {
        "window": 6, "horizon": 3, "season": 2, "trend_seasons": 1, "max_gap": 0, "hidden_dim": 4, "epochs": 3,
        "patience": 2, "validation": 0.2, "batch_size": 7, "learning_rate": 0.01, "clip_norm": 0.5, "seed": 9,
    }  # fmt: skip
    flags = [
        text
        for name, value in options.items()
        for text in (f"--{name.replace('_dim', '').replace('_', '-')}", str(value))
    ]
    run("train", "river.csv", "--target", "flow", "--series", "site", "--until", "1", "--model", "all", *flags)
    forecaster = Forecaster.load("all")
    assert {name: getattr(forecaster, name) for name in options} == options
    assert (forecaster.target, forecaster.inputs, forecaster.series) == ("flow", (), "site")


def test_csv_and_parquet_give_the_same_forecasts(river, capsys):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.read_csv("river.csv", parse_dates=["date"]).to_parquet("other.parquet")
    run("train", "other.parquet", *RIVER[2:], "--until", "2024-02-15")
    outputs = {
        printed(capsys, "predict", model, table, "--every-origin").out
        for model in ("river.safetensors", "other.safetensors")
        for table in ("river.csv", "other.parquet")
    }
    assert len(outputs) == 1


def test_the_same_seed_gives_the_same_files(river):
    for name in ("one", "two"):
        run(*RIVER, "--seed", "3", "--model", name, "--plot", f"{name}.svg")
    run(*RIVER, "--seed", "4", "--model", "three")
    for suffix in ("", ".svg"):
        assert (river / f"one{suffix}").read_bytes() == (river / f"two{suffix}").read_bytes()
    assert (river / "one").read_bytes() != (river / "three").read_bytes()


def test_until_one_holds_nothing_out_and_leaves_no_picture(river, capsys):
    """A picture in its place would show an earlier model."""
    captured = printed(capsys, *RIVER, "--until", "1", "--json")
    assert captured.err.endswith("wrote river.safetensors; removed river.png, the picture of an earlier model\n")
    report = json.loads(captured.out)
    assert "held_out" not in report
    assert report["written"] == ["river.safetensors"]
    assert report["training"]["trained_before"] == {"": "2024-03-07"}
    assert sorted(path.name for path in river.iterdir()) == ["river.csv", "river.safetensors"]
    assert printed(capsys, *RIVER, "--until", "1").out.endswith("wrote river.safetensors\n")


def test_until_one_refuses_a_picture(river, capsys):
    line = fails(capsys, *RIVER, "--until", "1", "--plot", "other.png")
    assert "plot is other.png, but --until 1 holds out no rows to draw" in line


def test_until_one_does_not_remove_the_table(river, capsys):
    """Even if the table has the name that the picture would have."""
    (river / "river.csv").rename("river.png")
    assert "expected different files" in fails(capsys, "train", "river.png", *RIVER[2:], "--until", "1")


@pytest.mark.parametrize("until", ["2024-01-25", "0.57", "2024-01-24T12:00"])
def test_until_is_a_time_or_a_share(river, capsys, until):
    report = as_json(capsys, *RIVER, "--until", until)
    assert report["training"]["trained_before"] == {"": "2024-01-25"}
    assert report["held_out"]["first_origin"] == "2024-01-24"


def test_all_rows_can_be_trained_on(river, capsys):
    output = printed(capsys, *RIVER, "--epochs", "5", "--validation", "0")
    assert re.search(r"\n  epoch 5: loss [\d.e-]+\n", output.out)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("horizon", ["1", "3"])
def test_pictures(river, suffix, horizon):
    run(*RIVER, "--horizon", horizon, "--plot", f"picture.{suffix}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert (river / f"picture.{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["flow, m3/s", "_flow", "débit", "$x^$"])
def test_any_name_can_be_drawn(river, name):
    table = river_table()
    table['"' + name + '"'] = table.pop("flow")
    (river / "river.csv").write_text(csv_text(table), encoding="utf-8")
    run("train", "river.csv", "--target", name, "--series", "site", *TINY)


def test_several_series(river, capsys):
    report = as_json(capsys, "train", "river.csv", "--target", "flow", "--series", "site", *TINY)
    assert [(one["series"], one["rows"], one["step"]) for one in report["table"]] == [
        ("south", 49, "1 row"),
        ("north", 48, "1 row"),
    ]
    found = as_json(capsys, "predict", "river.safetensors", "river.csv")
    assert list(found) == ["site", "origin", "steps_ahead", "row", "forecast"]
    assert (found["site"], found["row"]) == (["south"] * 2 + ["north"] * 2, [50, 51, 49, 50])


def test_a_warning_is_one_line(river, capsys):
    table = river_table()
    table["site"] = np.where(np.arange(97) < 6, "tiny", "north")
    (river / "river.csv").write_text(csv_text(table))
    captured = printed(capsys, "train", "river.csv", "--target", "flow", "--series", "site", *TINY)
    lines = captured.err.splitlines()
    assert lines[0].startswith("lstm-ext: 1 series left out: series 'tiny': it has ")
    assert all(line.startswith("lstm-ext: 1 series left out: series 'tiny'") for line in lines)


# --- forecasts, scores, and what a model is


def test_predict_writes_the_same_to_stdout_and_files(river, capsys):
    text = printed(capsys, "predict", "river.safetensors", "river.csv")
    assert text.err == ""
    assert text.out.splitlines()[0] == "origin,steps_ahead,date,forecast"
    assert [line.split(",")[:3] for line in text.out.splitlines()[1:]] == [
        ["2024-03-06", "1", "2024-03-07"],
        ["2024-03-06", "2", "2024-03-08"],
    ]
    assert printed(capsys, "predict", "river.safetensors", "river.csv", "-o", "next.csv").out == ""
    assert (river / "next.csv").read_text() == text.out
    found = as_json(capsys, "predict", "river.safetensors", "river.csv")
    lines = [",".join(map(str, row)) for row in zip(*found.values(), strict=True)]
    assert lines == text.out.splitlines()[1:]


def test_predict_writes_parquet(river, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    run("predict", "river.safetensors", "river.csv", "-o", "next.parquet", "--every-origin")
    found = parquet.read_table("next.parquet").to_pydict()
    text = as_json(capsys, "predict", "river.safetensors", "river.csv", "--every-origin")
    assert {name: [str(x) for x in column] for name, column in found.items()} == {
        name: [str(x) for x in column] for name, column in text.items()
    }


def test_predict_from_every_origin(river, capsys):
    found = as_json(capsys, "predict", "river.safetensors", "river.csv", "--every-origin")
    origins = found["origin"][::2]
    days = [str(day) for day in river_table()["date"]]
    assert origins == [day for row, day in enumerate(days) if row >= 4 and row != 40]
    last = as_json(capsys, "predict", "river.safetensors", "river.csv")
    assert {name: column[-2:] for name, column in found.items()} == last


def test_evaluate_begins_where_the_training_ended(river, capsys):
    held_out = lstm_ext.load_model("river.safetensors").details["report"]["held_out"]
    assert as_json(capsys, "evaluate", "river.safetensors", "river.csv") == held_out
    assert (held_out["first_origin"], held_out["last_origin"]) == ("2024-02-14", "2024-03-04")


def test_a_worse_forecast_is_called_worse():
    report = {"horizon": 1, "origins": 9, "first_origin": "1", "last_origin": "9"}
    errors = {"LSTM": 2.0, "good": 1.0, "bad": 4.0, "none": 0.0}
    lines = list(reports.evaluation_lines({**report, "rmse": errors, "mae": errors}))
    assert lines[5:] == ["  the LSTM is 100% WORSE than good", "  the LSTM is 50% better than bad"]


@pytest.mark.parametrize(("since", "first"), [("2024-03-01", "2024-02-29"), ("0", "2023-12-05"), ("0.5", "2024-01-17")])
def test_evaluate_since(river, capsys, since, first):
    report = as_json(capsys, "evaluate", "river.safetensors", "river.csv", "--since", since)
    assert report["first_origin"] == first
    text = printed(capsys, "evaluate", "river.safetensors", "river.csv", "--since", since).out
    assert f"from {report['origins']} rows, {first} to 2024-03-04" in text
    assert f"RMSE {report['rmse']['LSTM']:.4g}" in text


def test_info(river, capsys):
    report = as_json(capsys, "info", "river.safetensors")
    assert report["architecture"] == {"input_dim": 2, "hidden_dim": 3, "output_dim": 2, "readout": "last"}
    assert report["details"]["forecaster"]["settings"]["inputs"] == ["rain"]
    assert report["details"]["report"]["table"][0]["rows"] == 97
    text = printed(capsys, "info", "river.safetensors").out
    for words in ("hidden_dim=3", "target: flow", "time: date", "window: 5", "rows: 97", "2024-02-15", "last value"):
        assert words in text


def test_info_of_a_table_without_series_has_no_empty_names(river, capsys):
    text = printed(capsys, "info", "river.safetensors").out
    assert "trained_before: 2024-02-15" in text
    assert not [line for line in text.splitlines() if line.strip() in ("", ":", "series:") or line.strip()[0] == ":"]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, "trained on 1 window before 5 for 1 epoch; "), (3, "trained on 9 windows before 5 for 3 epochs; ")],
)
def test_numbers_agree_with_their_nouns(epochs, expected):
    report = {"windows": epochs**2, "trained_before": {"": "5"}, "epochs": epochs}
    assert next(reports.fit_lines(report, 0.1)).startswith(expected)


def test_info_of_a_network_alone(folder, capsys):
    lstm_ext.LSTMNetwork(1, 4, 2).save("model", details={"note": "mine"})
    assert "note: mine" in printed(capsys, "info", "model").out
    report = as_json(capsys, "info", "model")
    assert (report["details"], report["options"]) == ({"note": "mine"}, {})
    lstm_ext.LSTMNetwork(1, 4, None, readout="mean", num_layers=2, zoneout=0.5).save("model")
    report = as_json(capsys, "info", "model")
    assert report["architecture"] == {"input_dim": 1, "hidden_dim": 4, "output_dim": None, "readout": "mean"}
    assert report["options"] == {"num_layers": 2, "zoneout": [0.5, 0.5]}
    text = printed(capsys, "info", "model").out
    assert "readout='mean'" in text and "LSTM 1" in text


# --- help


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(capsys, command, flag):
    output = printed(capsys, command, flag).out
    for option in commands.commands.commands[command].params:
        assert any(name in output for name in (*option.opts, option.name.upper()))
        assert option.param_type_name == "argument" or option.help


def test_help_names_every_command(capsys):
    output = printed(capsys, "-h").out
    for command in COMMANDS:
        assert f"\n  {command} " in output
    assert "..." not in output.partition("Commands:")[2]  # no summary is cut


def test_help_shows_one_example_in_a_line(capsys):
    lines = [line.strip() for line in printed(capsys, "-h").out.splitlines()]
    assert "lstm-ext evaluate river.safetensors newer.csv" in lines


def test_without_arguments_it_shows_the_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    assert "Commands:" in capsys.readouterr().out


def test_python_m():
    done = run_python("-m", "lstm_ext", "--version", cwd="/")
    assert lstm_ext.__version__ in done.stdout


def test_after_the_imports_an_interrupt_is_pythons_again():
    """So running code is cleaned up; the message is the same."""
    code = (
        "import signal; from lstm_ext import __main__\nfrom lstm_ext.cli import commands\n"
        "def command():\n"
        "    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "commands.main = command\n"
        "__main__.main()"
    )
    done = run_python("-c", code, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (130, "True\n", "lstm-ext: interrupted\n")


@pytest.mark.parametrize("module", ["numpy", "click"])
@pytest.mark.parametrize(
    "command", [("-m", "lstm_ext"), ("-c", "from lstm_ext.__main__ import main; main()")], ids=["python -m", "script"]
)
def test_an_interrupt_of_an_import_is_one_line(tmp_path, module, command):
    """Even if the imported module turns it into another error."""
    (tmp_path / f"{module}.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    raise ImportError\n"
    )
    done = run_python(*command, cwd="/", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "lstm-ext: interrupted\n")


def test_the_script_is_what_python_m_runs():
    (script,) = metadata.entry_points(group="console_scripts", name="lstm-ext")
    assert script.value == "lstm_ext.__main__:main"


@pytest.mark.parametrize("missing", ["click", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text("raise ImportError")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lstm_ext.cli.commands"
    done = run_python("-c", code, cwd="/")
    assert done.returncode != 0
    assert 'needs more packages (extra "cli"): pip install click matplotlib' in done.stderr


def test_without_pyarrow_it_says_what_to_install(river, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (river / "river.parquet").write_bytes(b"PAR1")
    words = 'Parquet files need the package pyarrow (extra "parquet"): pip install pyarrow'
    assert words in fails(capsys, "train", "river.parquet", *RIVER[2:])
    assert words in fails(capsys, "predict", "river.safetensors", "river.csv", "-o", "next.parquet")


# --- bad input


DAYS = [str(np.datetime64("2024-01-01") + np.timedelta64(day, "D")) for day in range(40)]


def days(*changes, header="date,flow,rain", values=None):
    """Return a CSV text of forty days; `changes` replaces rows, which count from 1."""
    lines = [f"{day},{row % 7}.5,{row % 3}" for row, day in enumerate(DAYS)] if values is None else values
    for row, line in changes:
        lines[row - 1 : row] = [line]
    return "\n".join([header, *lines]) + "\n"


BAD_TABLES = {
    "empty": ("", "river.csv"),
    "blank": ("\n\n\n", "river.csv"),
    "header only": (days(values=[]), "no rows"),
    "no header": (days(header="2023-12-31,3.5,1"), "no column 'flow'; its columns are 2023-12-31, 3.5, 1"),
    "a missing column": (days(header="date,level,rain"), "no column 'flow'; its columns are date, level, rain"),
    "a missing input": (days(header="date,flow,snow"), "no column 'rain'"),
    "a missing time": (days(header="day,flow,rain"), "no column 'date'"),
    "a duplicate column": (days(header="date,flow,flow"), "2 columns 'flow'"),
    "a name with a newline": (days(header='date,"fl\now",rain'), "its columns are date, fl ow, rain"),
    "text": (days((3, "2024-01-03,dry,1")), "column 'flow', row 3 is 'dry'; expected a number"),
    "text in an input": (days((3, "2024-01-03,1,much")), "column 'rain', row 3 is 'much'; expected a number"),
    "decimal commas": (days((3, '2024-01-03,"0,5",1')), "column 'flow', row 3 is '0,5'; expected a number"),
    "infinity": (days((3, "2024-01-03,inf,1")), "column 'flow', row 3 is inf"),
    "too large": (days((3, "2024-01-03,1e999,1")), "column 'flow', row 3 is inf"),
    "a short row": (days((4, "2024-01-04,1")), "row 4 has 2 fields; expected 3"),
    "a long row": (days((4, "2024-01-04,1,2,3")), "row 4 has 4 fields; expected 3"),
    "another separator": (days().replace(",", "|"), "no column 'flow'"),
    "an open quote": (days((4, '2024-01-04,"1,2')), "not a CSV file in UTF-8"),
    "Latin-1": (days(header="date,flow,rain,é").encode("latin-1"), "not a CSV file in UTF-8"),
    "UTF-16": (days().encode("utf-16"), "not a CSV file in UTF-8"),
    "binary": (bytes(range(256)) * 9, "not a CSV file in UTF-8"),
    "times out of order": (days((5, "2024-01-02,1,1")), "column 'date', row 5 is 2024-01-02, not later than row 4"),
    "equal times": (days((5, "2024-01-04,1,1")), "column 'date', row 5 is 2024-01-04, not later than row 4"),
    "a time between": (days((5, "2024-01-05T12:00,1,1")), "column 'date', row "),
    "a time without a value": (days((5, ",1,1")), "column 'date', row 5 is empty; expected a time"),
    "a time that is none": (days((5, "2024-01-32,1,1")), "column 'date', row 5 is '2024-01-32'"),
    "a date of another form": (days((1, "01/02/2024,1,1")), "column 'date', row 1 is '01/02/2024'; expected"),
    "a time far away": (days((40, "9999-12-31,1,1")), "column 'date' has 40 rows over"),
    "fewer rows than a window": (days(values=[f"{day},1,1" for day in DAYS[:4]]), "rows"),
    "one row": (days(values=["2024-01-01,1,1"]), "rows"),
    "only gaps": (days(values=[f"{day},," for day in DAYS]), "at most 0 of them without a gap"),
    "a gap everywhere": (days(values=[f"{day},{'' if row % 5 > 1 else 1},1" for row, day in enumerate(DAYS)]), "rows"),
    "nothing to score": (
        days(values=[f"{day},{row if row < 32 else ''},1" for row, day in enumerate(DAYS)]),
        "",
    ),
    "nothing before": (days(values=[f"{day},{row if row > 32 else ''},1" for row, day in enumerate(DAYS)]), "rows"),
    "numbers too large for a scale": (
        days(values=[f"{day},{1 - row % 2 * 2}e300,1" for row, day in enumerate(DAYS)]),
        "",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_one_line_and_nothing_is_written(folder, capsys, name):
    content, words = BAD_TABLES[name]
    (folder / "river.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in fails(capsys, *RIVER)
    if words not in ("", "rows", "at most 0 of them without a gap"):
        assert words in fails(capsys, *RIVER, "--json", "--until", "1")


def test_a_table_that_fails_prints_no_json(river, capsys):
    (river / "river.csv").write_text(days((3, "2024-01-03,dry,1")))
    with pytest.raises(SystemExit):
        run(*RIVER, "--json")
    assert capsys.readouterr().out == ""


def test_numeric_times_far_away(folder, capsys):
    (folder / "river.csv").write_text("date,flow,rain\n" + "".join(f"{row},1,1\n" for row in range(40)) + "1e30,1,1\n")
    assert "column 'date' has 41 rows over" in fails(capsys, *RIVER)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (days(header="date,level,rain"), "no column 'flow'; its columns are date, level, rain"),
        (days(header="date,flow,snow"), "no column 'rain'"),
        (days(header="day,flow,rain"), "no column 'date'"),
        (days(values=[f"{day},1,1" for day in DAYS[:4]]), "it has 4 rows"),
        (days((3, "2024-01-03,dry,1")), "column 'flow', row 3 is 'dry'"),
        (days(values=[f"{row},1,1" for row in range(40)]), "column 'date' has steps of 1; expected 1 day, as in"),
        (days(values=[f"{day}-01,1,1" for day in range(2000, 2040)]), "column 'date'"),
        (days(values=[f"2024-01-01T{hour:02},1,1" for hour in range(24)]), "steps of 1 hour; expected 1 day"),
        (days((5, "2024-01-02,1,1")), "column 'date', row 5 is 2024-01-02, not later"),
        (days(values=[f"{day},1," for day in DAYS]), "at most 0 of them without a gap"),
        ("", "river.csv"),
    ],
)
def test_tables_that_differ_from_training(river, capsys, command, content, words):
    (river / "river.csv").write_text(content)
    options = ("-o", "next.csv") if command == "predict" else ("--since", "0")
    assert words in fails(capsys, command, "river.safetensors", "river.csv", *options)


def test_a_parquet_file_that_is_cut_short(river, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"date": DAYS, "flow": np.arange(40.0), "rain": np.ones(40)}), "river.parquet")
    whole = Path("river.parquet").read_bytes()
    for length in (0, 4, 300, len(whole) - 1):
        Path("river.parquet").write_bytes(whole[:length])
        assert "river.parquet is not a Parquet file, or is cut short" in fails(
            capsys, "train", "river.parquet", *RIVER[2:]
        )
        assert "river.parquet is not a Parquet file, or is cut" in fails(
            capsys, "predict", "river.safetensors", "river.parquet"
        )


def newer(path):
    """Give a model file the next format version."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["lstm_ext"])
    header["__metadata__"]["lstm_ext"] = json.dumps(metadata | {"version": files.FORMAT_VERSION + 1})
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


BAD_MODELS = {
    "a table": (lambda path: path.write_text(days()), "is not a model file of lstm_ext"),
    "empty": (lambda path: path.write_bytes(b""), "is not a model file of lstm_ext, or is cut short"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:200]), "cut short or damaged"),
    "cut in the data": (lambda path: path.write_bytes(path.read_bytes()[:-3]), "damaged"),
    "one bit": (
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        "is damaged: its checksum",
    ),
    "newer": (newer, f"has format version {files.FORMAT_VERSION + 1}"),
    "a picture": (lambda path: shutil.copy("river.png", path), "is not a model file of lstm_ext"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a directory"),
    "missing": (lambda path: path.unlink(), "does not exist"),
}


@pytest.mark.parametrize("command", ["predict", "evaluate", "info"])
@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models_are_one_line_and_nothing_is_written(river, capsys, command, name):
    change, words = BAD_MODELS[name]
    change(river / "river.safetensors")
    options = {"predict": ("river.csv", "-o", "next.csv"), "evaluate": ("river.csv",), "info": ()}[command]
    line = fails(capsys, command, "river.safetensors", *options)
    assert words in line
    assert "river.safetensors" in line


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_network_alone_does_not_forecast(river, capsys, command):
    lstm_ext.LSTMNetwork(2, 3, 2).save("network")
    assert "network is a model without a forecaster's settings" in fails(capsys, command, "network", "river.csv")


def test_a_table_that_ends_before_the_training_did(river, capsys):
    (river / "river.csv").write_text(csv_text(river_table(60)))
    line = fails(capsys, "evaluate", "river.safetensors", "river.csv")
    assert line == "lstm-ext: table: its last row, 2024-01-29, lies before 2024-02-15\n"


@pytest.mark.parametrize(
    ("number", "row", "words"),
    [("1e300", 70, "; expected a number up to 1e+140"), ("1e60", 70, ", too far from the training data for float32")],
)
def test_huge_numbers_are_reported_by_their_place_in_the_table(river, capsys, number, row, words):
    table = river_table()
    table["rain"] = np.array([number if place == row else "1" for place in range(97)])
    (river / "river.csv").write_text(csv_text(table))
    for command in (RIVER, ("predict", "river.safetensors", "river.csv", "--every-origin")):
        line = fails(capsys, *command)
        place = f"lstm-ext: column 'rain', date 2024-02-09 is {float(number)}"
        assert line.startswith(f"{place}{words}")


def test_a_model_for_other_series(river, capsys):
    run("train", "river.csv", "--target", "flow", "--series", "site", *TINY)
    (river / "river.csv").write_text(csv_text(river_table() | {"site": np.full(97, "east")}))
    line = fails(capsys, "predict", "river.safetensors", "river.csv")
    assert "series 'east': it was not in training, which had south, north" in line


# --- bad options and places


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epochs", "0"), "epochs"),
        (("--epochs", "many"), "--epochs"),
        (("--hidden", "-1"), "hidden"),
        (("--hidden", "3000000"), "allocate"),
        (("--hidden", "999999999999999999999"), "memory"),
        (("--seed", "-1"), "seed"),
        (("--window", "0"), "window"),
        (("--window", "98"), "98"),
        (("--window", "1" + "0" * 30), "rows"),
        (("--horizon", "60"), "60"),
        (("--horizon", "1" + "0" * 30), "horizon"),
        (("--season", "0"), "season"),
        (("--trend-seasons", "-1"), "trend_seasons"),
        (("--max-gap", "-1"), "max_gap"),
        (("--validation", "1"), "validation"),
        (("--validation", "nan"), "validation"),
        (("--batch-size", "0"), "batch_size"),
        (("--learning-rate", "-1"), "learning_rate"),
        (("--learning-rate", "1e30", "--epochs", "20"), "learning rate"),
        (("--until", "80%"), "until is '80%'; expected an ISO date, as in the table, or a share of the rows"),
        (("--until", ""), "until is ''; expected an ISO date"),
        (("--until", "3"), "until is '3'; expected an ISO date"),
        (("--until", "2030-01-01"), "2030-01-01"),
        (("--until", "2000-01-01"), "leaves no row to train on"),
        (("--until", "0"), "leaves no row to train on"),
        (("--until", "nan"), "until is 'nan'; expected an ISO date"),
        (("--until", "2024"), "until is '2024'; expected an ISO date"),
        (("--inputs", ""), "no column ''"),
        (("--inputs", "rain,flow"), "column 'flow' is named twice"),
        (("--inputs", "rain,rain"), "column 'rain' is named twice"),
        (("--target", "level"), "no column 'level'; its columns are date, site, flow, rain"),
        (("--time", "flow"), "column 'flow' is named twice"),
        (("--series", "level"), "no column 'level'"),
        (("--plot", "river.jpeg3"), "png, svg, pdf"),
        (("--plot", "picture"), "png, svg, pdf"),
        (("--plot", "one.png", "--model", "./one.png"), "different files"),
        (("--model", "river.csv"), "different files"),
        (("--model", "missing/river.safetensors"), "missing"),
        (("--plot", "missing/river.png"), "missing"),
        (("--model", "."), "is a directory"),
        (("--wrong",), "--wrong"),
        (("extra",), "extra"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(river, capsys, arguments, words):
    assert words in fails(capsys, *RIVER, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "nonsense"),
        (("train", "missing.csv", "--target", "flow"), "missing.csv"),
        (("train", ".", "--target", "flow"), "directory"),
        (("train", "river.csv"), "--target is missing; expected a column of river.csv: date, site, flow, rain"),
        (("train", "--target", "ppm"), "--target names a column, but FILE is missing"),
        (("train", "--inputs", "rain"), "--inputs names a column, but FILE is missing"),
        (("predict", "river.safetensors"), "FILE"),
        (("predict", "river.safetensors", "missing.csv"), "missing.csv"),
        (("predict", "river.safetensors", "river.csv", "-o", "missing/next.csv"), "missing"),
        (("predict", "river.safetensors", "river.csv", "-o", "."), "directory"),
        (("predict", "river.safetensors", "river.csv", "--wrong"), "--wrong"),
        (
            ("evaluate", "river.safetensors", "river.csv", "--since", "2030-01-01"),
            "lies before 2030-01-01",
        ),
        (("evaluate", "river.safetensors", "river.csv", "--since", "soon"), "since is 'soon'; expected an ISO date"),
        (("info",), "MODEL"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(river, capsys, arguments, words):
    assert words in fails(capsys, *arguments)


@pytest.mark.parametrize("output", ["river.csv", "./river.csv", "river.safetensors"])
def test_predict_does_not_write_over_what_it_reads(river, capsys, output):
    assert "different files" in fails(capsys, "predict", "river.safetensors", "river.csv", "-o", output)


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".png"])
def test_a_folder_is_no_file(river, capsys, suffix):
    name = f"taken{suffix}"
    (river / name).mkdir()
    assert name in fails(capsys, *RIVER, "--plot" if suffix == ".png" else "--model", name)
    assert list((river / name).iterdir()) == []


def test_a_folder_that_may_not_be_written(river, capsys, monkeypatch):
    genuine = Path.open

    def refuse(path, mode="r", *arguments, **options):
        if "x" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return genuine(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may write everywhere
    assert "river.safetensors cannot be written: Permission denied" in fails(capsys, *RIVER)
    assert "next.csv cannot be written" in fails(capsys, "predict", "river.safetensors", "river.csv", "-o", "next.csv")


def test_a_read_only_folder(river, capsys):
    river.chmod(0o555)
    if os.access(river, os.W_OK):
        pytest.skip("permissions do not hold for root")
    try:
        assert "river.safetensors cannot be written: Permission denied" in fails(capsys, *RIVER)
    finally:
        river.chmod(0o755)


@pytest.mark.parametrize("call", [1, 2])
def test_a_disk_that_is_full_at_the_end(river, capsys, monkeypatch, call):
    """If either file cannot be written, both old files stay, and no part is left."""
    calls = []

    def fsync(descriptor):
        calls.extend([1] * stat.S_ISREG(os.fstat(descriptor).st_mode))
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    before = contents(river)
    with pytest.raises(SystemExit) as stopped:
        run(*RIVER, "--seed", "8")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("cannot be written: No space left on device\n")
    assert contents(river) == before


def test_a_full_disk(river, small_disk, capsys):
    (small_disk / "filling").write_bytes(bytes(2**20 - 8192))
    line = fails(capsys, *RIVER, "--model", "disk/model", "--plot", "disk/picture.png")
    assert "disk/picture.png cannot be written: No space left on device" in line
    (river / "river.csv").write_text(csv_text(river_table(997)))
    line = fails(capsys, "predict", "river.safetensors", "river.csv", "--every-origin", "-o", "disk/next.csv")
    assert "disk/next.csv cannot be written: No space left on device" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout(river):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lstm_ext", "predict", "river.safetensors", "river.csv"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [RIVER, ("train", *FEW)])
def test_an_interrupt_writes_nothing(river, monkeypatch, capsys, arguments):
    monkeypatch.setattr(module, "train", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    before = contents(river)
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    assert contents(river) == before


# --- the CO2 record


def test_train_without_a_file_is_the_co2_record(folder, capsys):
    report = as_json(capsys, "train", *FEW, "--seed", "3")
    assert sorted(path.name for path in folder.iterdir()) == ["co2.png", "co2.safetensors"]
    assert report["table"][0]["missing"] == {"ppm": 59}
    assert report["training"]["trained_before"] == {"": "1994-01-01"}
    assert set(report["held_out"]["rmse"]) == {"LSTM", "last season", "last season with drift"}
    assert lstm_ext.load("co2.safetensors").sizes == (1, 5, 52)


def test_main_job_beats_both_baselines(folder):
    run("train")
    errors = lstm_ext.load_model("co2.safetensors").details["report"]["held_out"]["rmse"]
    assert errors["LSTM"] < min(errors["last season"], errors["last season with drift"])


def test_forecast_does_not_depend_on_the_held_out_years(folder, monkeypatch):
    dates, ppm = lstm_ext.load_co2()
    held_out = np.searchsorted(dates, np.datetime64("1994-01-01"))
    changed = ppm.copy()
    changed[held_out:] += 100 * np.random.default_rng(0).standard_normal(len(ppm) - held_out)
    run("train", *FEW, "--model", "true")
    monkeypatch.setattr(lstm_ext, "load_co2", lambda: (dates, changed))
    run("train", *FEW, "--model", "changed")
    weights = (lstm_ext.load(name).parameters for name in ("true", "changed"))
    assert np.array_equal(*weights)
    own = (lstm_ext.load_model(name).details["forecaster"] for name in ("true", "changed"))
    assert next(own) == next(own)


def test_until_zero_is_the_same_with_and_without_a_file(folder, capsys):
    assert "leaves no row to train on" in fails(capsys, "train", *FEW, "--until", "0")


# --- verify


def test_threads_sets_the_number_of_threads(river, monkeypatch, capsys):
    chosen = []
    monkeypatch.setattr(lstm_ext, "set_num_threads", chosen.append)
    run("predict", "river.safetensors", "river.csv", "--threads", "2")
    run("predict", "river.safetensors", "river.csv")
    assert chosen == [2]
    assert "--threads" in fails(capsys, "predict", "river.safetensors", "river.csv", "--threads", "0")


def test_verify_prints_every_set(capsys):
    run("verify")
    output = capsys.readouterr().out
    for isa in lstm_ext._kernels.available_isas():
        assert isa in output
    assert "DISAGREES" not in output


def test_verify_fails_loudly(monkeypatch, capsys):
    infer = lstm_ext._inference.infer
    monkeypatch.setattr(lstm_ext._inference, "infer", lambda *arguments: (0 * infer(*arguments)[0], True))
    monkeypatch.setattr(lstm_ext.verification, "_SHAPES", lstm_ext.verification._SHAPES[:1])
    with pytest.raises(SystemExit) as stopped:
        run("verify")
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert "DISAGREES" in captured.out
    assert "float32" in captured.err


def test_verify_sees_the_options(monkeypatch, capsys):
    activations = lstm_ext._kernels.CELL_ACTIVATIONS
    monkeypatch.setitem(activations, "relu", activations["identity"])
    monkeypatch.setattr(lstm_ext.verification, "_SHAPES", ())
    with pytest.raises(SystemExit):
        run("verify")
    assert "DISAGREES" in capsys.readouterr().out


def test_a_constant_column_can_be_forecast(folder, capsys):
    (folder / "flat.csv").write_text("flow\n" + "3.5\n" * 97)
    run("train", "flat.csv", "--target", "flow", *TINY)
    assert "last value" in capsys.readouterr().out
