"""Whether W&B can be reached as somebody. Imports no JAX, and `wandb` only when asked."""

from typing import Any

QUIET: dict[str, Any] = {"silent": True, "quiet": True, "console": "off"}
"""Nothing on our terminal, and nothing of our terminal on W&B."""


def has_key() -> bool:
    """Whether a key for W&B's server is configured; sends nothing.

    Looked up as W&B does (environment, netrc, settings), which would go on to ask at the terminal.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup(wandb.Settings(**QUIET)).settings.base_url
    return bool(wbauth.authenticate_session(host=host, source="stability", prompt=False, update_session=False))
