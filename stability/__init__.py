"""Will this Transformer training run blow up, at which learning rate, and what prevents it?

    import stability

    runs = stability.load("results/quickstart")     # a table, one row a run
    stability.sensitivity(runs)                     # LR sensitivity by arm and scale
    stability.max_stable_learning_rate(runs)
    stability.early_warning("results/NAME/runs/RUN")  # which alarms have fired in one run, and when
    stability.forecast_stable_edge(runs, [1e9])     # where it will be at 1e9 parameters, with a back-test
    stability.forecast(runs, quantity="attention_logit_max", factors=[4], arm="qk_layernorm=none")  # what breaks runs

These import no JAX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stability.analysis import (
        analyze,
        best_learning_rate,
        curves,
        early_warning,
        forecast,
        forecast_stable_edge,
        load,
        max_stable_learning_rate,
        sensitivity,
        sensitivity_scaling,
        stable_edge_fit,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "analyze",
    "best_learning_rate",
    "curves",
    "early_warning",
    "forecast",
    "forecast_stable_edge",
    "load",
    "max_stable_learning_rate",
    "sensitivity",
    "sensitivity_scaling",
    "stable_edge_fit",
]


def __getattr__(name: str) -> Any:
    """Import the analysis when it is first asked for, so that training starts without it."""
    if name in __all__:
        import stability.analysis

        return getattr(stability.analysis, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
