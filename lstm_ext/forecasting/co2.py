"""The weekly CO2 record of Mauna Loa."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def load_co2() -> tuple[NDArray[np.datetime64], NDArray[np.float64]]:
    """Return the weekly CO2 record of Mauna Loa, 1958-03-29 to 2001-12-29.

    The source, licence and citation are in ``lstm_ext/forecasting/records/README.md``.

    Returns
    -------
    dates : ndarray (2284,), datetime64[D]
        Every Saturday, without a break.
    ppm : ndarray (2284,), float64
        Parts per million by volume; NaN in the 59 weeks without a measurement.

    Examples
    --------
    >>> dates, ppm = load_co2()
    >>> str(dates[0]), float(ppm[0])
    ('1958-03-29', 316.1)
    """
    from importlib import resources  # imported here because it is slow to import

    text = resources.files("lstm_ext.forecasting.records").joinpath("co2.csv").read_text(encoding="ascii")
    rows = [line.split(",") for line in text.splitlines()[1:]]
    dates = np.array([date for date, _ in rows], dtype="datetime64[D]")
    ppm = np.array([float(value) if value else np.nan for _, value in rows])
    return dates, ppm
