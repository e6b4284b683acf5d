"""`python -m lstm_ext` is `lstm-ext`."""

from lstm_ext.cli import main

if __name__ == "__main__":
    main()
