"""A run's state on disk, with Orbax. Checkpoints belong to runs, never to packs.

Whether one is whole and unchanged, `stability.tracking.standing` knows: it seals what is written here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from stability.training.step import TrainState

KEPT = 2


def _options() -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True, cleanup_tmp_directories=True)


class Checkpoints:
    """Saves one run's states in the background and gives the newest back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        with _storage_errors(self._folder):
            self._manager = ocp.CheckpointManager(self._folder, options=_options())

    def save(self, step: int, state: TrainState) -> None:
        """Copy the state and write it in the background; the caller may donate it as soon as this returns."""
        with _storage_errors(self._folder):
            self._manager.save(step, args=ocp.args.StandardSave(_plain(state)), force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, with the shapes, types and placement of `like` (abstract or real)."""
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(_plain(like)))
        optimizer = jax.tree.unflatten(jax.tree.structure(like.optimizer), restored["optimizer"])
        return TrainState(**{**restored, "optimizer": optimizer})

    def close(self) -> None:
        """Wait until everything is on disk; raises OSError where it could not be written."""
        with _storage_errors(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()


def _plain(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts and lists: no class of ours or Optax's is written into a checkpoint."""
    return {
        "step": state.step,
        "parameters": state.parameters,
        "optimizer": jax.tree.leaves(state.optimizer),
        "alive": state.alive,
    }


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """What goes wrong while a state is written is the storage's fault: Orbax and TensorStore say it in many ways.

    Raises:
        OSError: instead of any other error.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot write a checkpoint into {folder}: {reason}") from error
