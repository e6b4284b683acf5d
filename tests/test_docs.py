"""Docstrings: numpydoc's validation of everything public, and every example runs; those of the documents do too."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import lstm_ext
from lstm_ext import reference

IGNORED = {
    "ES01",  # no extended summary: one line is often enough
    "EX01",  # no example: the README and the tests have them
    "SA01",  # no "see also": the package is small
}
MODULES = sorted(module.name for module in pkgutil.iter_modules(lstm_ext.__path__) if module.name != "__main__")


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


def test_the_guide_prints_what_its_comments_say(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    guide = Path(__file__).parents[1] / "docs" / "layers.md"
    if not guide.exists():
        pytest.skip("the guide is in the source tree alone")
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall("```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)
        expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == expected, code
