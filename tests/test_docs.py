"""Docstrings and documents: numpydoc finds nothing, every name has its entry, every example, block and command runs."""

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
from lstm_ext.training import losses, optimizers

IGNORED = {
    "ES01",  # no extended summary: one line is often enough
    "EX01",  # no example: the README and the tests have them
    "SA01",  # no "see also": the package is small
}
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(lstm_ext.__path__, "lstm_ext.") if "__main__" not in module.name
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
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for module in MODULES for test in finder.find(importlib.import_module(module))]
    assert sum(len(test.examples) for test in found) > 5


# --- the documents ---

TREE = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(TREE).as_posix()
    for path in (*TREE.glob("*.md"), *TREE.glob("docs/**/*.md"), *TREE.glob("docs/*.rst"))
)
IS_REPOSITORY = (TREE / ".ci").exists()  # else a source archive, or a copy of the tests that tries an installed package
_FENCED = re.compile("^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PRINTS = re.compile(r"^(?:print|network = lstm_ext\.train_lstm)\(.*\)  # (.*)$", re.MULTILINE)

ELSEWHERE = {  # commands that are not run here: the script that runs each, and what it says there
    'pip install -e ".[cli]" && lstm-ext train': (".ci/run", r"""readme 'pip install -e "\.\[cli\]"'"""),
    'pip install -e ".[test]" && python -m pytest': (".ci/run", r"""readme 'pip install -e "\.\[test\]"'"""),
    "lstm-ext train": (".ci/run", r"""readme 'pip install -e "\.\[cli\]"'"""),
    'pip install -e ".[cli]"': (".ci/slow", 'pip install -q -e ".[cli]"'),
    'pip install -e ".[cli]" -r bench/requirements.txt': (".ci/slow", "-r bench/requirements.txt"),
    'pip install -e ".[models]"': (".ci/slow", 'pip install -q -e ".[cli]"'),  # of which it is a part
    'pip install -e ".[dev,docs,test-peers]"': (".ci/run", '"lstm_ext[dev,docs,test-peers]"'),
    'pip install -e ".[docs]" && sphinx-build docs site': (".ci/run", "sphinx-build -q -W docs"),
    "sphinx-build -W docs site": (".ci/run", "sphinx-build -q -W docs"),
    "python setup.py -q build_ext --inplace": (".ci/sanitize", "setup.py -q build_ext"),
    "python -m pytest": (".ci/run", r"""readme 'pip install -e "\.\[test\]"'"""),
    "python -m pytest tests/test_network.py -k predict": (".ci/run", r"""readme 'pip install -e "\.\[test\]"'"""),
    "python -m pytest -m slow": (".ci/slow", "python -m pytest -q -m slow"),
    "python -m pytest -m slow -s tests/test_kernels.py": (".ci/slow", "python -m pytest -q -m slow -s"),
    "python bench/epochs.py": (".ci/slow", "python bench/epochs.py"),
    "python bench/neighbours.py": (".ci/slow", "python bench/neighbours.py --seconds"),
    "python bench/options.py": (".ci/slow", "python bench/options.py --seconds"),
    "python bench/scoreboard.py": (".ci/run", "python bench/scoreboard.py --quick"),
    "python bench/sweep.py": (".ci/slow", "python bench/sweep.py --quick"),
    "python tests/fuzz.py --seconds 60": (".github/workflows/ci.yml", "python tests/fuzz.py --seconds 60"),
    "python tests/fuzz.py --seed 1234": (".ci/run", "python tests/fuzz.py --seconds 20 --seed 1"),
    "ruff check .": (".ci/run", "\nruff check .\n"),
    "ruff format --check .": (".ci/run", "\nruff format --check .\n"),
    "mypy": (".ci/run", " mypy\n"),
    "python -m mypy.stubtest lstm_ext --mypy-config-file pyproject.toml": (".ci/run", "python -m mypy.stubtest"),
    "cython-lint src/lstm_ext/*.pyx src/lstm_ext/*.pxd": (".ci/run", "\ncython-lint"),
    "bash .ci/run": (".github/workflows/ci.yml", "bash .ci/run"),
    "bash .ci/sanitize": (".github/workflows/sanitize.yml", "bash .ci/sanitize"),
    "bash .ci/slow": (".github/workflows/proofs.yml", "[wheels, slow]"),
    "bash .ci/wheels": (".github/workflows/proofs.yml", "[wheels, slow]"),
}


def text_of(document):
    return (TREE / document).read_text(encoding="utf-8")


def blocks(document, language):
    return [text for kind, text in _FENCED.findall(text_of(document)) if kind == language]


def commands(document):
    """Return the commands: what is indented, and the lines of console blocks that begin with a prompt."""
    if document.endswith(".rst"):
        return []
    indented = re.findall("^    (.*)$", _FENCED.sub("", text_of(document)), re.MULTILINE)
    return indented + re.findall(r"^\$ (.*)$", "".join(blocks(document, "console")), re.MULTILINE)


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


def test_the_documents_are_here():
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/api.rst"} <= set(DOCUMENTS)
    assert sum(len(blocks(document, "python")) for document in DOCUMENTS) > 25


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_run_or_is_no_code(document):
    kinds = {kind for kind, _ in _FENCED.findall(text_of(document))}
    assert {kind for kind in kinds if not kind.startswith("{")} <= {"python", "console", "text"}


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if blocks(document, "python")])
def test_every_block_prints_what_its_comments_say(document, folder, process_settings, monkeypatch, capsys):
    """Each block continues those before it on its page."""
    monkeypatch.setattr(lstm_ext, "verify", lambda: None)  # seconds long; the command line's tests run it
    names = {}
    for code in blocks(document, "python"):
        exec(code, names)
        expected = "".join(f"{text}\n" for text in _PRINTS.findall(code))
        printed = capsys.readouterr().out
        assert doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS), f"{code}\n{printed}"


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if commands(document)])
def test_every_command_is_run_here_or_elsewhere(document, folder, capsys):
    for command in commands(document):
        if command not in ELSEWHERE:
            program, *arguments = command.split()
            assert program == "lstm-ext", command
            main(arguments)
    if "lstm-ext train river.csv" in text_of(document):
        assert "RMSE" in capsys.readouterr().out
        assert {"river.safetensors", "river.png", "next.csv"} <= {path.name for path in folder.iterdir()}


def test_whoever_runs_a_command_elsewhere_does():
    named = {command for document in DOCUMENTS for command in commands(document)}
    assert set(ELSEWHERE) <= named
    for script, words in ELSEWHERE.values() if IS_REPOSITORY else ():
        assert words in text_of(script)


def test_the_readme_is_short_and_its_links_work_on_an_index():
    """An index shows the README alone, so a link or an image of the source tree would lead nowhere."""
    readme = text_of("README.md")
    assert len(readme.split()) < 1200
    links = re.findall(r"\]\((.*?)\)|(?:src|href)=\"(.*?)\"", readme)
    assert links
    assert all("".join(pair).startswith("https://") for pair in links)


def test_the_api_reference_has_every_public_name():
    documented = set(re.findall(r"^\.\. auto\w+:: (\S+)$", text_of("docs/api.rst"), re.MULTILINE))
    public = {f"lstm_ext.{name}" for name in lstm_ext.__all__} - {"lstm_ext.__version__"}
    protocols = {f"{protocol.__module__}.{protocol.__name__}" for protocol in (losses.Loss, optimizers.Optimizer)}
    assert public | protocols | {"lstm_ext.reference"} <= documented


def test_the_architecture_names_every_file_of_both_halves():
    tree = next(block for block in blocks("docs/architecture.md", "text") if block.startswith("src/"))
    compiled, python = (set(re.findall(r"\b\w+\.(?:pyx|c|h|py)\b", part)) for part in tree.split("\nlstm_ext/"))
    here = {path.name for path in Path(lstm_ext.__file__).parent.rglob("*.py")}
    assert python == here - {"_version.py"}
    if IS_REPOSITORY:
        assert compiled == {path.name for ending in ("pyx", "c", "h") for path in TREE.glob(f"src/**/*.{ending}")}


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md", "SECURITY.md", "docs/architecture.md"])
def test_files_that_documents_name_exist(document):
    named = re.findall(r"`((?:src|lstm_ext|tests|docs|bench|\.ci)/[\w/.]+)`", text_of(document))
    assert named or document == "SECURITY.md"
    assert [path for path in named if IS_REPOSITORY and not (TREE / path).exists()] == []
