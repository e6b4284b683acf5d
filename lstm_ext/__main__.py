"""`python -m lstm_ext` is `lstm-ext`."""

from lstm_ext.cli import main

main()
