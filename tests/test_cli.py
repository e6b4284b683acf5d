"""The command line: the main job end to end, and errors in one line with exit status 2."""

import subprocess
import sys

import numpy as np
import pytest

import lstm_ext
from lstm_ext import persistence
from lstm_ext.cli import main

FEW = ("--hidden", "5", "--epochs", "2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    main(list(arguments))


def fails(capsys, *arguments):
    """Run and return the single line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.count("\n") == 1
    return captured.err


def test_train_writes_model_and_picture_and_reports(folder, capsys):
    run("train", *FEW, "--seed", "3")
    output = capsys.readouterr().out
    for words in ("validation", "seasonal-naive with drift", "oracle", "trained in", "wrote"):
        assert words in output
    assert sorted(path.name for path in folder.iterdir()) == ["co2.png", "co2.safetensors"]
    assert (folder / "co2.png").read_bytes().startswith(b"\x89PNG")
    model = persistence.load("co2.safetensors")
    assert model.network.sizes == (1, 5, 52)
    assert model.scaler is not None
    assert set(model.details["rmse_ppm"]) == {"LSTM", "seasonal-naive", "seasonal-naive with drift"}


def test_main_job_beats_both_baselines(folder):
    run("train")
    errors = persistence.load("co2.safetensors").details["rmse_ppm"]
    assert errors["LSTM"] < min(errors["seasonal-naive"], errors["seasonal-naive with drift"])


def test_same_seed_same_file(folder):
    run("train", *FEW, "--model", "one")
    run("train", *FEW, "--model", "two")
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epochs", "0"), "epochs"),
        (("--epochs", "many"), "--epochs"),
        (("--hidden", "-1"), "hidden"),
        (("--seed", "-1"), "seed"),
        (("--model", "missing/co2.safetensors"), "missing"),
        (("--plot", "missing/co2.png"), "missing"),
        (("--wrong",), "--wrong"),
        (("extra",), "extra"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(folder, capsys, arguments, words):
    assert words in fails(capsys, "train", *arguments)
    assert list(folder.iterdir()) == []


def test_a_folder_is_no_file(folder, capsys):
    (folder / "taken").mkdir()
    assert "taken" in fails(capsys, "train", "--model", "taken")
    assert list((folder / "taken").iterdir()) == []


def test_unknown_command(capsys):
    assert "nonsense" in fails(capsys, "nonsense")


def test_verify_prints_every_set(capsys):
    run("verify")
    output = capsys.readouterr().out
    for isa in lstm_ext._kernels.available_isas():
        assert isa in output
    assert "DISAGREES" not in output


def test_verify_fails_loudly(monkeypatch, capsys):
    monkeypatch.setattr(lstm_ext._passes, "linear", lambda *arguments: arguments[-1].fill(0))
    with pytest.raises(SystemExit) as stopped:
        run("verify")
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert "DISAGREES" in captured.out
    assert "float32" in captured.err


def test_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "lstm_ext", "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert lstm_ext.__version__ in done.stdout


@pytest.mark.parametrize("missing", ["click", "matplotlib", "safetensors"])
def test_without_the_extra_it_says_what_to_install(tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text("raise ImportError")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lstm_ext.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode != 0
    assert "lstm_ext[cli]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "co2.jpeg3"), "png, svg, pdf"),
        (("--plot", "one.png", "--model", "./one.png"), "two files"),
        (("--hidden", "3000000"), "allocate"),
    ],
)
def test_what_would_fail_later_fails_at_once(folder, capsys, arguments, words):
    assert words in fails(capsys, "train", *arguments)
    assert list(folder.iterdir()) == []


def test_without_arguments_it_shows_the_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    assert "Commands:" in capsys.readouterr().out


def test_an_interrupt_writes_nothing(folder, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(lstm_ext, "train", interrupt)
    with pytest.raises(SystemExit) as stopped:
        run("train")
    assert stopped.value.code == 130
    assert list(folder.iterdir()) == []


def test_forecast_does_not_depend_on_the_held_out_years(folder, monkeypatch):
    dates, ppm = lstm_ext.load_co2()
    held_out = np.searchsorted(dates, lstm_ext.forecasting.CO2_HELD_OUT)
    changed = ppm.copy()
    changed[held_out:] += 100 * np.random.default_rng(0).standard_normal(len(ppm) - held_out)
    run("train", *FEW, "--model", "true")
    monkeypatch.setattr(lstm_ext, "load_co2", lambda: (dates, changed))
    run("train", *FEW, "--model", "changed")
    weights = (persistence.load(name).network.parameters for name in ("true", "changed"))
    assert np.array_equal(*weights)
