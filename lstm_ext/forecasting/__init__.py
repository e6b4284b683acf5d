"""Forecasting: from tables to series, windows, the forecaster and its evaluation."""
