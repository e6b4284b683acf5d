"""Entry point of the command line. It handles Ctrl-C even while modules are imported."""

import os
import signal


def main() -> None:
    """Run the command line; an interrupt prints one line on stderr and exits with status 130."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _stop)  # an import may turn a KeyboardInterrupt into an ImportError
        from lstm_ext.cli import commands

        if signal.getsignal(signal.SIGINT) is _stop:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        commands.main()
    except KeyboardInterrupt:
        _stop()


def _stop(*_: object) -> None:
    """End the process at once; nothing needs cleaning up during the imports."""
    os.write(2, b"lstm-ext: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
