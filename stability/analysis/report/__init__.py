"""The report: all results of an analysis on one page that needs nothing but a browser."""

from stability.analysis.report.page import page

__all__ = ["page"]
