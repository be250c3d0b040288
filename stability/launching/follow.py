"""What the processes other than 0 do: what they are told, with nothing written and nothing said.

They train in the very loop of process 0. Its numbers are theirs too, so of all that it decides by numbers they decide
the same; the rest is told them (`stability.launching.orders`).
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import stability
from stability.data.sequence import Split
from stability.launching.compilation_cache import KeptPrograms, keep_compiled_programs
from stability.launching.devices import Layout
from stability.launching.orders import Following
from stability.launching.plan import PlannedRun
from stability.launching.signals import stop_flag
from stability.launching.work import text_of
from stability.training.journal import Row
from stability.training.lanes import Program
from stability.training.loop import Interrupted, Lane, train
from stability.training.step import TrainState


@dataclass(frozen=True)
class Share:
    """What a process needs in order to follow: the runs, the text and the devices of the command that all are given."""

    runs: tuple[PlannedRun, ...]
    parts: Split
    layout: Layout

    @property
    def what(self) -> str:
        """A digest of all that shapes programs and their order: whole configs, the mesh, and versions."""
        layout, versions = self.layout, (stability.__version__, jax.__version__)
        shape = (layout.strategy, layout.data, layout.fsdp, len(layout.devices))
        all_of_it = repr((*(run.config for run in self.runs), shape, versions))
        return hashlib.sha256(all_of_it.encode()).hexdigest()


class NoJournal:
    """The story is process 0's to write."""

    def row(self, row: Row) -> None:
        """Do nothing."""

    def progress(self, step: int) -> None:
        """Do nothing."""

    def saved(self, step: int) -> None:
        """Do nothing."""

    def ended(self, *, diverged_at: int | None, first_bad_observation: str | None = None) -> None:
        """Do nothing."""


class NoStore:
    """States are kept by process 0, which sends what it restores."""

    def save(self, step: int, state: TrainState) -> None:
        """Do nothing."""

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Anything of the right shapes."""
        return like

    def close(self) -> None:
        """Do nothing."""


def follow(orders: Following, get_ready: Callable[[int], Share]) -> int:
    """Do what process 0 says until it says that all is done; the exit code that it names.

    Args:
        orders: from it.
        get_ready: reads text and runs, given the bytes on each device that process 0 has found; called when it has
            found nothing wrong with the command.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries print too
    os.close(nowhere)
    order = orders.next_order()
    if order["do"] == "end":
        return int(order["code"])
    share = _ready(orders, get_ready, order)
    follower = _Follower(orders, share)
    with stop_flag(lambda _: None) as stop:
        orders.asked = stop
        while (order := orders.next_order())["do"] != "end":
            follower.obey(order)
    return int(order["code"])


def _ready(orders: Following, get_ready: Callable[[int], Share], begin: dict[str, Any]) -> Share:
    try:
        share = get_ready(begin["memory"])
    except Exception as error:  # whatever it is, process 0 waits for an answer
        orders.ready(" ".join(str(error).split()) or type(error).__name__)
        raise
    same = share.what == begin["what"]
    orders.ready("" if same else "was given another command than process 0, or has another text or version")
    keep_compiled_programs()
    return share


class _Follower:
    """Compiles and trains what it is told."""

    def __init__(self, orders: Following, share: Share) -> None:
        self._orders, self._share = orders, share
        self._runs = {run.fingerprint: run for run in share.runs}
        self._programs = KeptPrograms()

    def obey(self, order: dict[str, Any]) -> None:
        """Carry out an order to compile or to train."""
        lanes = order["lanes"]
        if order["do"] == "compile":
            self._program(self._runs[order["run"]], lanes)
        else:
            self._train([self._runs[name] for name in order["runs"]], lanes, order["start"])

    def _program(self, run: PlannedRun, lanes: int) -> Program:
        shape = text_of(self._share.parts, run.config).validation_MxBxT1.shape
        return self._programs.get(run.config, lanes, shape, self._share.layout.mesh(lanes))

    def _train(self, runs: list[PlannedRun], lanes: int, start: int) -> None:
        text = text_of(self._share.parts, runs[0].config)
        program = self._program(runs[0], lanes)
        mute = [Lane(run.config, text.reader(run.config), NoJournal(), NoStore) for run in runs]
        try:
            train(program, mute, text.validation_MxBxT1, start, self._orders.stop)
        except Interrupted:
            return  # process 0 says what comes then
