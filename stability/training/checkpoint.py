"""A run's state on disk, with Orbax. Checkpoints belong to runs, never to packs.

Whether one is whole and unchanged, `stability.tracking.standing` knows: it seals what is written here.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from stability.training.step import TrainState

KEPT = 2
OVERHEAD_BYTES = 1 << 18
"""What a checkpoint takes beside its arrays, names and sharding of each for instance; 160 KB were seen."""


class Checkpoints:
    """Saves one run's states and gives them back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        import orbax.checkpoint as ocp  # here: it takes a while to import, and most commands never save

        self._save, self._restore = ocp.args.StandardSave, ocp.args.StandardRestore
        with _storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = _manager(ocp, self._folder)

    def save(self, step: int, state: TrainState) -> None:
        """Write the state; raises OSError where it cannot be written."""
        _check_room(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + OVERHEAD_BYTES)
        with _storage_errors(self._folder):
            self._manager.save(step, args=self._save(_plain(state)), force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, with the shapes, types and placement of `like` (abstract or real)."""
        restored = self._manager.restore(step, args=self._restore(_plain(like)))
        optimizer = jax.tree.unflatten(jax.tree.structure(like.optimizer), restored["optimizer"])
        return TrainState(**{**restored, "optimizer": optimizer})

    def close(self) -> None:
        """Let go of the folder."""
        with _storage_errors(self._folder):
            self._manager.close()


def _manager(ocp: Any, folder: Path) -> Any:
    """Orbax's manager of a folder, of this process alone: of several, one saves and restores for all."""
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    # In the foreground: a checkpoint is waited for anyway, since it counts once it is sealed.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        create=False,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
        multiprocessing_options=alone,
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.CheckpointManager(folder, options=options, item_handlers=handler)


def _plain(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts and lists: no class of ours or Optax's is written into a checkpoint."""
    return {
        "step": state.step,
        "parameters": state.parameters,
        "optimizer": jax.tree.leaves(state.optimizer),
        "alive": state.alive,
    }


def _check_room(folder: Path, needed: int) -> None:
    """Say that the disk is full before Orbax's threads find out one by one, each with a traceback.

    Raises:
        OSError: there is too little room.
    """
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for a checkpoint of {needed:,} bytes", str(folder))


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
