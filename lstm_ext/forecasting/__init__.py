"""Forecasting: tables, windows of series, and the forecaster."""
