"""The CO2 record."""

import csv
from importlib import resources

import numpy as np
import pytest

from lstm_ext import fill_gaps, load_co2


def test_co2_record():
    dates, ppm = load_co2()
    assert dates.shape == ppm.shape == (2284,)
    assert dates.dtype == "datetime64[D]"
    assert ppm.dtype == np.float64
    assert (str(dates[0]), str(dates[-1])) == ("1958-03-29", "2001-12-29")
    assert (np.diff(dates) == np.timedelta64(7, "D")).all()
    assert np.isnan(ppm).sum() == 59
    assert (ppm[0], ppm[-1]) == (316.1, 371.5)
    # The sum, the extremes and a gap, as statsmodels.datasets.co2 has them.
    assert np.nansum(ppm) == pytest.approx(756816.5, abs=1e-6)
    assert (np.nanmin(ppm), np.nanmax(ppm)) == (313.0, 373.9)
    gap = (dates >= np.datetime64("1964-01-25")) & (dates < np.datetime64("1964-05-30"))
    assert gap.sum() == 18
    assert np.isnan(ppm[gap]).all()


def test_co2_rows_are_well_formed():
    with resources.files("lstm_ext.forecasting.records").joinpath("co2.csv").open(encoding="ascii") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["date", "co2"]
    assert {len(row) for row in rows} == {2}


def test_co2_can_be_filled():
    _, ppm = load_co2()
    filled = fill_gaps(ppm)
    observed = ~np.isnan(ppm)
    np.testing.assert_array_equal(filled[observed], ppm[observed])
    assert np.isfinite(filled).all()
    assert np.abs(np.diff(filled)).max() < 4.0
