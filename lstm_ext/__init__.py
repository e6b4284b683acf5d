"""LSTM networks that train and run on CPUs at the machine's speed, checked against a NumPy oracle."""

try:
    from lstm_ext._kernels import isa
except ModuleNotFoundError as _error:  # the source tree, or a folder named lstm_ext, shadows the installed package
    raise ImportError(
        f"lstm_ext was imported from {__path__[0]} without its compiled half. "
        "In the source tree, run `pip install -e .`; with lstm_ext installed, run Python from another folder."
    ) from _error

from lstm_ext._version import __version__
from lstm_ext.activations import sigmoid, tanh
from lstm_ext.config import show_config
from lstm_ext.data import SequenceScaler, fill_gaps, load_co2, windows
from lstm_ext.forecasting import Forecaster
from lstm_ext.losses import MSE, CrossEntropy
from lstm_ext.network import LSTM, LSTMCell, LSTMNetwork, Model, load, load_model
from lstm_ext.optimizers import SGD, Adam
from lstm_ext.options import Options
from lstm_ext.parameters import parameter_layout
from lstm_ext.persistence import ModelFileError
from lstm_ext.plan import NonFiniteError
from lstm_ext.threads import get_num_threads, set_num_threads
from lstm_ext.training import History, train, train_lstm
from lstm_ext.verification import VerificationError, from_reference, to_reference, verify

__all__ = [
    "LSTM",
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
