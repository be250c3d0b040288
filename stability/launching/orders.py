"""What process 0 tells the others: process 0 decides everything, and they follow.

Words travel by the key-value store that JAX keeps in process 0, so nobody waits in a device's queue for a decision:

    order/N      what to do next: begin, compile, train, end
    go/N         in training, before each dispatch: go on, or stop
    ready/P      process P is what it should be, or why not
    alarm/...    a process was asked to stop, or failed
    gone/P       process P has heard of a failure

With one process there is nobody to tell, and nothing here does anything.
"""

import atexit
import itertools
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from stability.config import RunConfig, fingerprint
from stability.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, InputError
from stability.tracking.tracker import one_line
from stability.training.lanes import Program, Programs
from stability.untrusted.printable import shown

POLL_S = 0.5
"""How often each process looks whether another one raised an alarm."""
GOODBYE_S = 5.0
"""How long a process waits for others to hear of a failure."""
OLD = 1000
"""Answers to `go` are forgotten by so many; no process is ever more than two behind."""
PREFIX = "stability/"

Stop = Callable[[], bool]


class OutOfStep(Exception):
    """Something broke in one of several processes, which no longer do the same: all of them have to end."""


class Channel:
    """Text between the processes."""

    def __init__(self) -> None:
        from jax._src.distributed import global_state  # JAX offers its store to libraries, Orbax say, in no other way

        self._store: Any = global_state.client

    def tell(self, key: str, text: str) -> None:
        """Have a text stand under a key, for all."""
        self._store.key_value_set(PREFIX + key, text, allow_overwrite=True)

    def hear(self, key: str, meanwhile: Callable[[], object] = lambda: None) -> str:
        """The text under a key, as soon as it stands there; `meanwhile` is called now and then."""
        while True:
            meanwhile()
            try:
                text: str = self._store.blocking_key_value_get(PREFIX + key, round(POLL_S * 1000))
                return text
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def all_below(self, folder: str) -> dict[str, str]:
        """What stands under the keys that begin so now."""
        found = self._store.key_value_dir_get(PREFIX + folder)
        return {key.removeprefix(PREFIX + folder): text for key, text in found}

    def forget(self, folder: str) -> None:
        """Remove all keys that begin so."""
        self._store.key_value_delete(PREFIX + folder)


@dataclass(frozen=True)
class Failure:
    """What ended one process, and with it all."""

    process: int
    host: str
    code: int
    why: str


@dataclass
class Orders:
    """Of process 0, for the others; this class is for a process that stands alone, and tells nobody."""

    processes: int = 1

    def begin(self, what: str, memory: int) -> None:
        """Have the others get ready, and wait until each has found that it is to do the same.

        Args:
            what: the digest of all that has to be the same (`stability.launching.follow.Share`).
            memory: bytes on each device that programs may take.

        Raises:
            InputError: one of them cannot, or was started with another command.
        """

    def programs(self, programs: Programs) -> Programs:
        """The same, for all processes: what one compiles all do."""
        return programs

    def train(self, runs: Sequence[str], start: int, lanes: int | None, stop: Stop) -> Stop:
        """Have them train these runs from a step on; the flag to train with, which tells them what it says."""
        return stop

    def stop_of_any(self, stop: Stop, say: Callable[[str], None]) -> Stop:
        """A flag that is also up when another process was asked to stop."""
        return stop

    def out_of_step(self) -> None:
        """Something broke while all were training.

        Raises:
            OutOfStep: where there are others.
        """


@dataclass
class Leading(Orders):
    """The orders of process 0 to others that there are."""

    channel: Channel = field(default_factory=Channel)
    _orders: Iterator[int] = field(default_factory=itertools.count)
    _answers: Iterator[int] = field(default_factory=itertools.count)

    def begin(self, what: str, memory: int) -> None:
        """See `Orders.begin`."""
        self._order(do="begin", what=what, memory=memory)
        for process in range(1, self.processes):
            if problem := self.channel.hear(f"ready/{process}"):
                raise InputError("distributed", f"process {process}", problem.rstrip("."), "Mend it there.")

    def programs(self, programs: Programs) -> Programs:
        """See `Orders.programs`."""
        return LedPrograms(programs, self)

    def compile(self, run: str, lanes: int | None) -> None:
        """Have the others compile the program of a run's structure."""
        self._order(do="compile", run=run, lanes=lanes)

    def train(self, runs: Sequence[str], start: int, lanes: int | None, stop: Stop) -> Stop:
        """See `Orders.train`."""
        self._order(do="train", runs=list(runs), start=start, lanes=lanes)

        def deciding() -> bool:
            answer, number = stop(), next(self._answers)
            self.channel.tell(_answer(number), str(int(answer)))
            if number % OLD == 0 and number >= 2 * OLD:
                self.channel.forget(f"go/{number // OLD - 2}/")
            return answer

        return deciding

    def stop_of_any(self, stop: Stop, say: Callable[[str], None]) -> Stop:
        """See `Orders.stop_of_any`."""
        asked: list[str] = []
        looked = -POLL_S

        def any_of_them() -> bool:
            nonlocal looked
            if not asked and time.monotonic() - looked > POLL_S:
                looked = time.monotonic()
                if who := self.channel.all_below("alarm/").get("stop"):
                    asked.append(who)
                    say(f"{who} was asked to stop. Stopping after this step, and saving.")
            return bool(asked) or stop()

        return any_of_them

    def out_of_step(self) -> None:
        """See `Orders.out_of_step`."""
        raise OutOfStep

    def end(self, code: int) -> None:
        """Have them end, with this exit code."""
        self._order(do="end", code=code)

    def _order(self, **order: Any) -> None:
        self.channel.tell(f"order/{next(self._orders)}", json.dumps(order))


class LedPrograms(Programs):
    """Programs that the other processes compile at the same time."""

    def __init__(self, programs: Programs, orders: Leading) -> None:
        super().__init__(programs.compiled)
        self._programs, self._orders = programs, orders

    def get(
        self, config: RunConfig, lanes: int | None, validation_shape: tuple[int, ...], mesh: Mesh | None = None
    ) -> Program:
        """See `Programs.get`."""
        self._orders.compile(fingerprint(config), lanes)
        return self._programs.get(config, lanes, validation_shape, mesh)


@dataclass
class Following:
    """What the other processes hear."""

    channel: Channel = field(default_factory=Channel)
    asked: Stop = lambda: False
    _told: bool = False
    _orders: Iterator[int] = field(default_factory=itertools.count)
    _answers: Iterator[int] = field(default_factory=itertools.count)

    def next_order(self) -> dict[str, Any]:
        """What to do next, when process 0 says so."""
        order: dict[str, Any] = json.loads(self.channel.hear(f"order/{next(self._orders)}", self._pass_on))
        return order

    def ready(self, problem: str = "") -> None:
        """Answer `begin`: nothing, or what is wrong."""
        self.channel.tell(f"ready/{jax.process_index()}", problem)

    def stop(self) -> bool:
        """What process 0 says of this dispatch."""
        return self.channel.hear(_answer(next(self._answers)), self._pass_on) == "1"

    def _pass_on(self) -> None:
        """Tell process 0, once, that this process was asked to stop."""
        if not self._told and self.asked():
            self._told = True
            self.channel.tell("alarm/stop", f"Process {jax.process_index()} on {platform.node()}")


def _answer(number: int) -> str:
    return f"go/{number // OLD}/{number % OLD}"


@contextmanager
def failing_together(channel: Channel) -> Iterator[None]:
    """Whatever ends this process by an exception ends all, and whatever ends another one so ends this one.

    Else they would wait for each other: in a collective operation for ever, at the end until JAX loses patience.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(channel, over), name="alarms", daemon=True).start()
    try:
        yield
    except BaseException as error:
        over.set()
        code = {KeyboardInterrupt: EXIT_INTERRUPTED, InputError: EXIT_BAD_INPUT}.get(type(error), 1)
        failure = {"process": jax.process_index(), "host": platform.node(), "code": code, "why": one_line(error)}
        with suppress(jax.errors.JaxRuntimeError):  # the store is gone, and with it process 0
            channel.tell("alarm/failed", json.dumps(failure))
            _farewell(channel)
        # Whoever catches the error says it; then the process ends without JAX's own farewell, which waits for all.
        atexit.register(_end_now, code)
        raise
    over.set()


def _watch(channel: Channel, over: threading.Event) -> None:
    while not over.wait(POLL_S):
        try:
            failed = channel.all_below("alarm/").get("failed")
        except jax.errors.JaxRuntimeError:
            if over.is_set():
                return
            print("error: process 0 is gone. The same command goes on from the last checkpoints.", file=sys.stderr)
            _end_now(1)
            return
        if failed is not None and not over.is_set():
            failure = Failure(**json.loads(failed))
            if jax.process_index() == 0:
                text = f"error: process {failure.process} on {failure.host} ended ({failure.why}), and with it all."
                print(shown(text, lines=False), file=sys.stderr)
            _farewell(channel)
            _end_now(failure.code)


def _farewell(channel: Channel) -> None:
    """Say that this process knows of a failure, and wait until those know that would else learn it from its silence.

    Process 0 waits for all, for its end is the store's; the others wait for process 0.
    """
    me, end = jax.process_index(), time.monotonic() + GOODBYE_S
    awaited = {"0"} if me else {str(other) for other in range(1, jax.process_count())}
    if me:
        channel.tell(f"gone/{me}", "")
    while time.monotonic() < end and not awaited <= channel.all_below("gone/").keys():
        time.sleep(0.05)
    if me == 0:
        channel.tell("gone/0", "")
        time.sleep(0.2)  # for the others to read it


def _end_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
