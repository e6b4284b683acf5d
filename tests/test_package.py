"""The package as a whole: who imports whom, what an import brings, how the instruction set is chosen."""

import ast
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python

import lstm_ext
from lstm_ext import _kernels

PACKAGE = Path(lstm_ext.__file__).parent
CITATION = Path(__file__).parent.parent / "CITATION.cff"
SOURCES = Path(__file__).parents[1] / "src/lstm_ext"


def name_of(path):
    """Return a module's name within the package, dotted; a package's own is `__init__` or, below, the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}
ORACLE = {name for name in MODULES if name.split(".")[0] == "reference"}
# Imports go down this list. `reference`, the oracle, stands beside it (a test of its own).
LAYERS = [
    {"__main__"},
    {"cli", "cli.commands"},
    {"cli.arguments", "cli.messages", "cli.reports"},
    {"__init__", "forecasting.plots"},
    {"forecasting", "forecasting.forecaster", "verification", "config"},
    {"forecasting.evaluation"},
    {"forecasting.examples"},
    {"training", "training.article", "training.loop"},
    {"network"},
    {"training.driver"},
    {"inference", "training.targets"},
    {"layers", "files", "training.batches"},
    {"training.callbacks", "training.memory", "training.progress"},
    {"training.losses", "training.optimizers", "parameters", "sequences", "activations", "scaling"},
    {"forecasting.series"},
    {"forecasting.co2", "forecasting.tables", "forecasting.windows", "threads", "options"},
    {"checks", "_version"},
    {"_epoch", "_inference"},
    {"_losses", "_updates"},
    {"_heads"},
    {"_stack"},
    {"_passes"},
    {"_products"},
    {"_threads"},
    {"_kernels"},
    {"_memoryviews"},
]
COMPILED = set.union(*LAYERS[-9:])
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(module):
    """Return what a module imports, wherever it does: full names, of modules or of things in them."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ("lstm_ext" if node.level else "", node.module)))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def siblings(module):
    """Return which modules of the package a module imports; the package itself is `__init__`."""
    return within_the_package(imports(module))


def within_the_package(names):
    known = (MODULES.keys() | COMPILED) - {"__init__"}
    found = set()
    for name in names:
        if name.split(".")[0] == "lstm_ext":
            own = name.removeprefix("lstm_ext").removeprefix(".")
            found.add(next((place for place in (own, own.rpartition(".")[0]) if place in known), "__init__"))
    return found


# --- architecture ---


def test_every_module_has_its_place():
    assert MODULES.keys() - ORACLE == RANK.keys() - COMPILED


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ORACLE))
def test_imports_go_one_way(module):
    for other in siblings(module) - ORACLE:
        assert RANK[module] < RANK[other], f"{module} imports {other}"


@pytest.mark.skipif(not SOURCES.is_dir(), reason="the compiled half's sources are not installed")
def test_imports_of_the_compiled_half_go_one_way():
    """None of the Python half, and of its own modules those below."""
    sources = {path: path.stem for path in SOURCES.glob("*.p[xy][xd]")}
    assert set(sources.values()) == COMPILED - {"_memoryviews"}
    for path, module in sources.items():
        lines = re.findall(
            r"^\s*(?:from\s+(\S+)\s+c?import\s+\(?\s*(\w+)|c?import\s+(\S+))", path.read_text("utf-8"), re.M
        )
        names = {whole or f"{base}.{name}" for base, name, whole in lines}
        for other in within_the_package(names) - {module}:
            assert other in COMPILED, f"{path.name} imports {other}"
            assert RANK[module] < RANK[other], f"{path.name} imports {other}"


def test_the_oracle_imports_numpy_alone():
    for module in ORACLE:
        foreign = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names
        assert foreign <= {"numpy", "lstm_ext"}
        assert siblings(module) <= ORACLE


def test_the_oracle_is_imported_for_verification_alone():
    users = {module for module in MODULES.keys() - ORACLE if siblings(module) & ORACLE}
    assert users == {"verification"}


def test_the_package_needs_numpy_alone():
    optional = {
        "cli.arguments": {"click"},
        "cli.commands": {"click"},
        "cli.messages": {"click"},
        "files": {"safetensors"},
        "forecasting.plots": {"matplotlib"},
        "forecasting.tables": {"pyarrow"},
        "training.progress": {"tqdm"},
    }
    for module in MODULES:
        foreign = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names
        assert foreign - {"lstm_ext", "numpy"} <= optional.get(module, set()), module


def modules_after(code, given="import numpy"):
    """Return the modules that another Python loads for some code, without those of the first import."""
    result = run_python(
        "-c", f"import sys; {given}; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_the_package_brings_nothing_but_numpy():
    loaded = {name.split(".")[0] for name in modules_after("from lstm_ext import *", given="pass")}
    assert {"lstm_ext", "numpy"} <= loaded
    optional = {"click", "keras", "matplotlib", "onnx", "pandas", "safetensors", "scipy", "torch"}
    assert not loaded & (optional | {"tqdm", "sklearn", "statsmodels", "pytest"})


def test_an_import_is_quick():
    """What takes long to load is loaded where it is used."""
    loaded = modules_after("import lstm_ext", given="pass")
    own = {name for name in loaded if name.startswith("lstm_ext")}
    assert own == {"lstm_ext", "lstm_ext._kernels", "lstm_ext._memoryviews", "lstm_ext._version"}
    abi3 = ".abi3." in _kernels.__file__  # Cython's code for it takes numbers from inspect, which NumPy loads anyway
    assert not loaded & {"numpy", "dataclasses", "typing", "threading", *([] if abi3 else ["inspect"])}


def test_networks_and_training_are_quick_to_load():
    loaded = modules_after("import lstm_ext; lstm_ext.LSTMNetwork; lstm_ext.train; lstm_ext.load")
    assert {"lstm_ext.network", "lstm_ext.training.loop"} <= loaded
    foreign = {
        "csv",
        "fcntl",
        "hashlib",
        "importlib.metadata",
        "importlib.resources",
        "json",
        "platform",
        "safetensors",
    }
    own = {f"lstm_ext.{name}" for name in ("cli", "config", "forecasting", "reference", "verification")}
    assert not loaded & (foreign | own)


def test_public_names_exist():
    assert len(set(lstm_ext.__all__)) == len(lstm_ext.__all__)
    missing = [name for name in lstm_ext.__all__ if not hasattr(lstm_ext, name)]
    assert not missing
    promised = "sigmoid tanh LSTMCell LSTM LSTMNetwork train train_lstm History verify"
    assert set(promised.split()) <= set(lstm_ext.__all__)


def test_public_names_are_the_same_to_type_checkers():
    """What is imported for them, what `__all__` lists and what is found at run time."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    homes = {alias.name: line.module for line in typed.body for alias in line.names}
    assert homes.keys() | {"__version__", "isa"} == set(lstm_ext.__all__)
    for name, module in homes.items():
        assert vars(sys.modules[module])[name] is getattr(lstm_ext, name)


NAMES = """
import pickle, lstm_ext
assert {*lstm_ext.__all__, "checks", "reference", "training"} <= set(dir(lstm_ext))
assert lstm_ext.reference.LSTMNetwork(1, 2, 1).predict([[[1.0]]]).shape == (1, 1)
network = lstm_ext.LSTMNetwork(1, 2, 1)
assert (pickle.loads(pickle.dumps(network)).parameters == network.parameters).all()
assert not hasattr(lstm_ext, "nonsense")
names = {}
exec("from lstm_ext import *", names)
assert set(lstm_ext.__all__) <= set(names)
"""


def test_names_are_there_from_the_start():
    """In another Python, where nothing has loaded them."""
    result = run_python("-c", NAMES)
    assert result.returncode == 0, result.stderr


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match=r"^module 'lstm_ext' has no attribute 'nonsense'$"):
        _ = lstm_ext.nonsense


# --- the version, and what a bug report says ---


def test_the_version_is_stated_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lstm_ext.__version__)
    assert metadata.version("lstm_ext") == lstm_ext.__version__


@pytest.mark.skipif(not CITATION.exists(), reason="the source tree is not here")
def test_the_citation_is_of_this_version():
    assert f"\nversion: {lstm_ext.__version__}\n" in CITATION.read_text(encoding="utf-8")


def test_show_config_prints_what_a_bug_report_needs(capsys, restored_isa):
    for isa in _kernels.available_isas():
        _kernels.use_isa(isa)
        lstm_ext.show_config()
        rows = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert rows["lstm_ext"] == lstm_ext.__version__
        assert rows["Python"].startswith(platform.python_version())
        assert rows["NumPy"] == np.__version__
        assert rows["instruction set"] == f"{isa} (available: {', '.join(_kernels.available_isas())})"
        assert rows["threads"].startswith(f"{lstm_ext.get_num_threads()} ")
        assert re.match(r"(GCC|.*[Cc]lang|Apple LLVM) \d+", rows["compiler"])
        assert re.fullmatch(r"\d+\.\d+\.\d+", rows["Cython"])
        assert re.search(r"CPython 3\.\d+", rows["built for"])
        assert rows.keys() >= {"platform", "CPU", "LSTM_EXT_ISA"}


def test_show_config_names_the_variable():
    name = _kernels.available_isas()[-1]
    result = run_python("-c", "import lstm_ext; lstm_ext.show_config()", LSTM_EXT_ISA=name)
    assert re.search(rf"\nLSTM_EXT_ISA +{name}\n", result.stdout), result.stderr


def test_show_config_without_proc(monkeypatch, capsys):
    def refuse(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    lstm_ext.show_config()
    assert re.search(r"\nCPU +\S", capsys.readouterr().out)


# --- the instruction set ---

PRINT_ISA = "from lstm_ext import _kernels; print(_kernels.isa())"


def test_the_widest_set_is_the_default():
    for value in ({}, {"LSTM_EXT_ISA": ""}):
        result = run_python("-c", PRINT_ISA, **value)
        assert result.stdout.strip() == _kernels.available_isas()[0], result.stderr


@pytest.mark.parametrize("name", _kernels.available_isas())
def test_the_variable_chooses_the_set(name):
    result = run_python("-c", PRINT_ISA, LSTM_EXT_ISA=name)
    assert result.stdout.strip() == name, result.stderr


def test_an_unknown_set_is_an_import_error_that_lists_the_others():
    result = run_python("-c", "import lstm_ext", LSTM_EXT_ISA="nonsense")
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("ImportError: LSTM_EXT_ISA")
    assert "'nonsense'" in error
    assert all(name in error for name in _kernels.available_isas())


def test_use_isa_names_what_is_there(restored_isa):
    before = _kernels.isa()
    sets = ", ".join(_kernels.available_isas())
    with pytest.raises(ValueError, match=f"'sse9' is not available here; expected one of {sets}"):
        _kernels.use_isa("sse9")
    assert _kernels.isa() == before
    for name in _kernels.available_isas():
        _kernels.use_isa(name)
        assert _kernels.isa() == name


# --- without the compiled half ---


def test_without_the_compiled_half_the_error_says_what_to_do(tmp_path):
    target = tmp_path / "lstm_ext"
    target.mkdir()
    for path in PACKAGE.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, target)
    # without site: an editable install would lend its own
    result = run_python("-S", "-c", "import lstm_ext", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert str(target) in error
    assert "pip install -e ." in error
