"""LSTM networks that train and run on CPUs at the machine's speed, checked against a NumPy oracle.

A public name is imported from its module when it is first used, so that `import lstm_ext` is quick.
"""

from importlib import import_module

try:
    from lstm_ext._kernels import isa
except ModuleNotFoundError as _error:  # the source tree, or a folder named lstm_ext, shadows the installed package
    raise ImportError(
        f"lstm_ext was imported from {__path__[0]} without its compiled half. "
        "In the source tree, run `pip install -e .`; with lstm_ext installed, run Python from another folder."
    ) from _error

from lstm_ext._version import __version__

TYPE_CHECKING = False  # that of `typing`, without its import
if TYPE_CHECKING:
    from lstm_ext.activations import sigmoid, tanh
    from lstm_ext.checks import NonFiniteError
    from lstm_ext.config import show_config
    from lstm_ext.files import ModelFileError
    from lstm_ext.forecasting.co2 import load_co2
    from lstm_ext.forecasting.forecaster import Forecaster
    from lstm_ext.forecasting.windows import fill_gaps, windows
    from lstm_ext.network import LSTM, LSTMCell, LSTMNetwork, Model, load, load_model
    from lstm_ext.options import Options
    from lstm_ext.parameters import parameter_layout
    from lstm_ext.scaling import SequenceScaler
    from lstm_ext.threads import get_num_threads, set_num_threads
    from lstm_ext.training.article import train_lstm
    from lstm_ext.training.loop import History, train
    from lstm_ext.training.losses import MAE, MSE, CrossEntropy, check_gradient
    from lstm_ext.training.optimizers import SGD, Adam
    from lstm_ext.verification import VerificationError, from_reference, to_reference, verify

__all__ = [
    "LSTM",
    "MAE",
    "MSE",
    "SGD",
    "Adam",
    "CrossEntropy",
    "Forecaster",
    "History",
    "LSTMCell",
    "LSTMNetwork",
    "Model",
    "ModelFileError",
    "NonFiniteError",
    "Options",
    "SequenceScaler",
    "VerificationError",
    "__version__",
    "check_gradient",
    "fill_gaps",
    "from_reference",
    "get_num_threads",
    "isa",
    "load",
    "load_co2",
    "load_model",
    "parameter_layout",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "tanh",
    "to_reference",
    "train",
    "train_lstm",
    "verify",
    "windows",
]

_NAMES: dict[str, list[str]] = {
    "activations": ["sigmoid", "tanh"],
    "checks": ["NonFiniteError"],
    "config": ["show_config"],
    "files": ["ModelFileError"],
    "forecasting.co2": ["load_co2"],
    "forecasting.forecaster": ["Forecaster"],
    "forecasting.windows": ["fill_gaps", "windows"],
    "network": ["LSTM", "LSTMCell", "LSTMNetwork", "Model", "load", "load_model"],
    "options": ["Options"],
    "parameters": ["parameter_layout"],
    "reference": [],
    "scaling": ["SequenceScaler"],
    "threads": ["get_num_threads", "set_num_threads"],
    "training.article": ["train_lstm"],
    "training.loop": ["History", "train"],
    "training.losses": ["MAE", "MSE", "CrossEntropy", "check_gradient"],
    "training.optimizers": ["SGD", "Adam"],
    "verification": ["VerificationError", "from_reference", "to_reference", "verify"],
}
"""The modules, and the public names that each of them has."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_TOP_LEVEL = {module.split(".")[0] for module in _NAMES}


if not TYPE_CHECKING:  # type checkers would otherwise accept any attribute

    def __getattr__(name):
        if name in _MODULE_OF:
            value = getattr(import_module(f"lstm_ext.{_MODULE_OF[name]}"), name)
        elif name in _TOP_LEVEL:
            value = import_module(f"lstm_ext.{name}")
        else:
            raise AttributeError(f"module 'lstm_ext' has no attribute {name!r}")
        return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*__all__, *_TOP_LEVEL})
