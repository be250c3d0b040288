"""`python -m stability.run`: compose, plan, train what is unfinished, analyse."""

import sys


def main() -> int:
    """The command line; returns the exit code: 0 done, 1 a run failed, 2 bad input, 130 stopped."""
    from stability.command_line import run_hydra, with_transparent_huge_pages

    with_transparent_huge_pages()
    from hydra.core.config_store import ConfigStore

    from stability.config import RunConfig, to_mapping
    from stability.errors import InputError
    from stability.launching.grid import Request
    from stability.launching.launch import launch
    from stability.typed import from_mapping

    ConfigStore.instance().store(
        name="run_defaults", node=to_mapping(from_mapping(RunConfig, {})), provider="stability"
    )

    def task(request: object) -> int:
        if not isinstance(request, Request):
            raise InputError("hydra.mode", "RUN", "is not used here", "Leave it out: one run is a sweep of one.")
        return launch(request)

    return run_hydra("run", task)


if __name__ == "__main__":
    sys.exit(main())
