"""Docstrings: numpydoc's validation of everything public, and every example runs; so do the documents' blocks."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import lstm_ext
from lstm_ext import reference, threads
from lstm_ext.cli.commands import main

IGNORED = {
    "ES01",  # no extended summary: one line is often enough
    "EX01",  # no example: the README and the tests have them
    "SA01",  # no "see also": the package is small
}
MODULES = sorted(
    module.name.removeprefix("lstm_ext.")
    for module in pkgutil.walk_packages(lstm_ext.__path__, "lstm_ext.")
    if not module.name.endswith("__main__")
)


def members(name, kind):
    """Yield the names of a class's public methods and properties that are this package's own."""
    for attribute, value in inspect.getmembers(kind):
        function = value.fget if isinstance(value, property) else value
        own = str(getattr(function, "__module__", None)).startswith("lstm_ext")
        if own and inspect.isroutine(function) and not attribute.startswith("_"):
            yield f"{name}.{attribute}"


def public_names():
    for name in lstm_ext.__all__:
        value = getattr(lstm_ext, name)
        if callable(value):
            yield f"lstm_ext.{name}"
        if inspect.isclass(value):
            yield from members(f"lstm_ext.{name}", value)
    for name in reference.__all__:
        if inspect.isfunction(getattr(reference, name)):
            yield f"lstm_ext.reference.{name}"


def is_record(name):
    """Return whether a name is of a class that users get and never make."""
    value = getattr(lstm_ext, name.removeprefix("lstm_ext."), None)
    has_fields = hasattr(value, "_fields") or hasattr(value, "__dataclass_fields__")
    return has_fields and "\nParameters\n" not in inspect.getdoc(value)


NAMES = list(public_names())
RECORDS = [name for name in NAMES if is_record(name)]


@pytest.mark.parametrize("name", NAMES)
def test_numpydoc_finds_nothing(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    # nobody passes the fields of a record as parameters; the next test looks for them among the attributes
    ignored = IGNORED | {"PR01"} if name in RECORDS else IGNORED
    errors = [error for error in validate(name)["errors"] if error[0] not in ignored]
    assert not errors


@pytest.mark.parametrize("name", RECORDS)
def test_records_describe_their_fields(name):
    kind = getattr(lstm_ext, name.removeprefix("lstm_ext."))
    section = inspect.getdoc(kind).partition("Attributes\n")[2]
    for field in kind.__annotations__:
        assert f"\n{field} : " in section


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    failed, _ = doctest.testmod(importlib.import_module(f"lstm_ext.{module}"))
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for module in MODULES for test in finder.find(importlib.import_module(f"lstm_ext.{module}"))]
    assert sum(len(test.examples) for test in found) > 5


# --- the documents ---

TREE = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "docs/forecasting.md", "docs/layers.md", "docs/performance.md"]


def text_of(document):
    return (TREE / document).read_text(encoding="utf-8")


def python_blocks(document):
    return re.findall("^```python\n(.*?)^```", text_of(document), re.DOTALL | re.MULTILINE)


def commands(document):
    return re.findall("^    lstm-ext (.*)$", text_of(document), re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the folder of a reader, with the tables that the documents name: 200 days of a river, and 240."""
    rng, days = np.random.default_rng(0), np.arange(240)
    columns = {"date": np.datetime64("2023-01-01") + days, "flow": 10 + np.sin(days / 3)}
    columns |= {name: rng.random(240) for name in ("rain", "snow")}
    for name, rows in (("river.csv", 200), ("newer.csv", 240)):
        table = {column: values[:rows] for column, values in columns.items()}
        (tmp_path / name).write_bytes(lstm_ext.forecasting.tables.encode_table(table, tmp_path / name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def process_settings(monkeypatch):
    """Put back what the documents set for a whole process."""
    monkeypatch.setattr(threads, "_chosen", threads._chosen)


def test_every_document_is_here():
    found = {path.relative_to(TREE).as_posix() for path in (*TREE.glob("docs/**/*.md"), TREE / "README.md")}
    assert found == set(DOCUMENTS)
    assert all(python_blocks(document) for document in DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_prints_what_its_comments_say(document, folder, process_settings, monkeypatch, capsys):
    """Each block of the guide continues the one before; blocks of the other documents run alone."""
    monkeypatch.setattr(lstm_ext, "verify", lambda: None)  # seconds long; the command line's tests run it
    names = {}
    for code in python_blocks(document):
        exec(code, names if document == "docs/layers.md" else {})
        expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == expected, code


@pytest.mark.parametrize("document", ["README.md", "docs/forecasting.md"])
def test_every_command_works(document, folder, capsys):
    for command in commands(document):
        main(command.split())
    assert "RMSE" in capsys.readouterr().out
    assert {"river.safetensors", "river.png", "next.csv"} <= {path.name for path in folder.iterdir()}
