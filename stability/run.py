"""`python -m stability.run`: compose, plan, train what is unfinished, analyse."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stability.launching.grid import Request


def main() -> int:
    """The command line; returns the exit code: 0 done, 1 a run failed, 2 bad input, 130 stopped."""
    from stability.command_line import with_transparent_huge_pages

    with_transparent_huge_pages()
    return with_request(_launch)


def _launch(request: "Request") -> int:
    """Imported only once the request is one: most of what is wrong with a command is said before."""
    from stability.command_line import ended_by_ctrl_c

    with ended_by_ctrl_c():
        from stability.launching.launch import launch

    return launch(request)


def with_request(task: "Callable[[Request], int]") -> int:
    """Compose what the command line (`sys.argv`) asks for and hand it to the task; the exit code is the task's."""
    from stability.command_line import ended_by_ctrl_c, run_hydra

    with ended_by_ctrl_c():
        from hydra.core.config_store import ConfigStore

        from stability.config import RunConfig, to_mapping
        from stability.errors import InputError
        from stability.launching.grid import Request
        from stability.typed import from_mapping

    ConfigStore.instance().store(
        name="run_defaults", node=to_mapping(from_mapping(RunConfig, {})), provider="stability"
    )

    def checked(request: object) -> int:
        if not isinstance(request, Request):
            raise InputError("hydra.mode", "RUN", "is not used here", "Leave it out: one run is a sweep of one.")
        return task(request)

    return run_hydra("run", checked)


if __name__ == "__main__":
    sys.exit(main())
