"""LSTM networks that train and run on CPUs at the machine's speed, checked against a NumPy oracle."""

try:
    from lstm_ext._kernels import isa
except ModuleNotFoundError as error:  # the source tree, or a folder named lstm_ext, shadows the installed package
    raise ImportError(
        f"lstm_ext was imported from {__path__[0]} without its compiled half. "
        "In the source tree, run `pip install -e .`; with lstm_ext installed, run Python from another folder."
    ) from error

from lstm_ext.activations import sigmoid, tanh
from lstm_ext.data import SequenceScaler, fill_gaps, load_co2, windows
from lstm_ext.losses import MSE, CrossEntropy
from lstm_ext.network import LSTM, LSTMCell, LSTMNetwork
from lstm_ext.optimizers import SGD, Adam
from lstm_ext.parameters import parameter_layout
from lstm_ext.persistence import ModelFileError, load, save
from lstm_ext.plan import NonFiniteError
from lstm_ext.training import History, train, train_lstm
from lstm_ext.verification import VerificationError, from_reference, to_reference, verify

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "MSE",
    "SGD",
    "Adam",
    "CrossEntropy",
    "History",
    "LSTMCell",
    "LSTMNetwork",
    "ModelFileError",
    "NonFiniteError",
    "SequenceScaler",
    "VerificationError",
    "fill_gaps",
    "from_reference",
    "isa",
    "load",
    "load_co2",
    "parameter_layout",
    "save",
    "sigmoid",
    "tanh",
    "to_reference",
    "train",
    "train_lstm",
    "verify",
    "windows",
]
