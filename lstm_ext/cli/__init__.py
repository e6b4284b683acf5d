"""The command line: `lstm-ext`, also `python -m lstm_ext`."""
