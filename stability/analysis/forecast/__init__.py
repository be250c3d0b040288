"""Forecasts of observed quantities over N and LR: rivals, back-tests, thresholds, answers, and the next run."""

from stability.analysis.forecast.results import Forecast, forecast, quantity_forecasts
from stability.analysis.forecast.settings import QuantityForecast, parse_forecasts

__all__ = ["Forecast", "QuantityForecast", "forecast", "parse_forecasts", "quantity_forecasts"]
