"""A run's state on disk, with Orbax: whole or not there. Checkpoints belong to runs, never to packs."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from stability.training.step import TrainState

KEPT = 2


def _options() -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True, cleanup_tmp_directories=True)


def latest_step(folder: Path) -> int:
    """The step of the newest whole checkpoint, 0 where there is none."""
    if not folder.is_dir():
        return 0
    with ocp.CheckpointManager(folder.absolute(), options=_options()) as manager:
        return int(manager.latest_step() or 0)


class Checkpoints:
    """Saves one run's states in the background and gives the newest back."""

    def __init__(self, folder: Path) -> None:
        self._manager = ocp.CheckpointManager(folder.absolute(), options=_options())

    def save(self, step: int, state: TrainState) -> None:
        """Copy the state and write it in the background; the caller may donate it as soon as this returns."""
        self._manager.save(step, args=ocp.args.StandardSave(_plain(state)), force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, with the shapes, types and placement of `like` (abstract or real)."""
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(_plain(like)))
        optimizer = jax.tree.unflatten(jax.tree.structure(like.optimizer), restored["optimizer"])
        return TrainState(**{**restored, "optimizer": optimizer})

    def close(self) -> None:
        """Wait until everything is on disk."""
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
