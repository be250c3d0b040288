"""Will this Transformer training run blow up, at which learning rate, and what prevents it?

    import stability

    runs = stability.load("results/quickstart")     # a table, one row a run
    stability.sensitivity(runs)                     # LR sensitivity by arm and scale
    stability.max_stable_learning_rate(runs)

These import no JAX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stability.analysis import analyze, curves, load, max_stable_learning_rate, sensitivity

__version__ = "0.1.0"
__all__ = ["__version__", "analyze", "curves", "load", "max_stable_learning_rate", "sensitivity"]


def __getattr__(name: str) -> Any:
    """Import the analysis when it is first asked for, so that training starts without it."""
    if name in __all__:
        import stability.analysis

        return getattr(stability.analysis, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
