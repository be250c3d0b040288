"""`python -m stability.replicate ladder=micro`: run the paper's experiments, all of them, and write the card."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, MinLen
from pydantic import ConfigDict

from stability.command_line import Parser, config_folders, key_values, report, with_transparent_huge_pages
from stability.errors import InputError
from stability.tracking.console import Progress, counted, duration
from stability.untrusted.printable import tell

if TYPE_CHECKING:
    from stability.launching.grid import Request
    from stability.replication.study import AllRuns, Study

EPILOG = """\
keys
  ladder=micro              the sizes: a file in sweeps/ladder
  seed=0,1,2                seeds of every sweep
  sweeps=NAME,...           train these only; the card tells of all that have results, here or in the card so far
  results=DIR               where the sweeps' folders are, or will be: DIR/NAME (results/replication/LADDER)
  output=docs/replication.md
                            the card, a new one or one to go on with; its data goes beside it as .json, summaries and
                            figures into a folder of its name
  tracking=files            who follows the runs: files or wandb
  progress=auto             what the terminal shows while runs train: auto, live, lines or quiet
  train=false               train nothing: analyse what there is, and write the card
  dry_run=true              say what is finished and what is not, and stop

The same command goes on where it was stopped (Ctrl-C, SIGTERM, a kill) and trains nothing twice: a run that several
sweeps share trains once. Results that are complete are only read. The card is written after every sweep, and says what
is missing. Exit code 0 when all is done, 1 when a run failed, 2 for bad input, 130 when it was stopped.

One card may come from several machines, each with the sweeps that it trained: of a sweep with fewer results here than
the card counts, or none, it keeps what it says, as long as the sweep still plans those runs and makes those claims.
To have such a part taken out, delete its folder beside the card. A card's seeds may become more, not fewer.

examples
  python -m stability.replicate ladder=micro
  python -m stability.replicate ladder=micro seed=0 sweeps=qk_layernorm,z_loss output=one_seed.md
  python -m stability.replicate ladder=micro train=false     add what is here to the card
"""
Text = Annotated[str, MinLen(1)]
LISTS = ("seed", "sweeps")
EXIT_FAILED, EXIT_STOPPED = 1, 130


@dataclass(frozen=True, kw_only=True)
class ReplicationSettings:
    """The keys of the command line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    ladder: Text = "micro"
    seed: Annotated[tuple[Annotated[int, Ge(0), Le(2**32 - 1)], ...], MinLen(1)] = (0, 1, 2)
    sweeps: tuple[str, ...] = ()
    results: Text | None = None
    output: Text = "docs/replication.md"
    tracking: Text = "files"
    progress: Progress = "auto"
    train: bool = True
    dry_run: bool = False

    @property
    def folder(self) -> Path:
        """Where the sweeps' folders are."""
        return Path(self.results).expanduser() if self.results else Path("results/replication") / self.ladder

    @property
    def page(self) -> Path:
        """The card's page."""
        return Path(self.output).expanduser()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 all done, 1 a run failed, 2 bad input, 130 stopped."""
    parser = Parser(
        "replicate", "Run the paper's experiments on a ladder, resumably, and write the replication card.", EPILOG
    )
    try:
        settings = _settings(key_values(parser, arguments, first="ladder"))
        with_transparent_huge_pages()
        return _replicate(settings)
    except InputError as error:
        return report(error)
    except KeyboardInterrupt:
        print("\nStopped at once. The same command goes on from the last checkpoints.", file=sys.stderr)
        return EXIT_STOPPED


def _settings(given: dict[str, str]) -> ReplicationSettings:
    from stability.typed import from_mapping

    values = {key: [*filter(None, text.split(","))] if key in LISTS else text for key, text in given.items()}
    settings = from_mapping(ReplicationSettings, values)
    if settings.page.suffix != ".md":
        raise InputError("output", settings.output, "is no Markdown file", "Name one that ends in .md.")
    for key, path in (("results", settings.folder), ("output", settings.page.parent)):
        existing = next(one for one in (path, *path.absolute().parents) if one.exists())
        if not existing.is_dir():
            raise InputError(key, path, f"{existing} is not a folder", "Name another.")
    return settings


def _replicate(settings: ReplicationSettings) -> int:
    from stability.replication.experiments import chosen, experiments

    folders = [Path.cwd() / "sweeps", config_folders().sweeps]
    names = list(experiments(folders))
    ladders = {path.stem for folder in folders for path in (folder / "ladder").glob("*.yaml")}
    if settings.ladder not in ladders:
        raise InputError("ladder", settings.ladder, "is no ladder", f"Choose from: {', '.join(sorted(ladders))}.")
    selected = chosen(names, settings.sweeps)
    # Only now: what is wrong with the command is said without waiting for JAX.
    from stability.launching.launch import launch
    from stability.launching.signals import stop_flag
    from stability.replication.card import read_card
    from stability.replication.study import progress_of

    old = read_card(settings.page.with_suffix(".json"))
    _refuse_fewer_seeds(old, settings)
    studies: list[Study] = []
    for name in selected if settings.dry_run else names:
        study = _study(name, settings)
        if isinstance(study, int):  # said by Hydra's side, or by ours
            return study
        studies.append(study)
    to_train = [study for study in studies if settings.train and study.name in selected and not study.is_complete]
    for study in to_train:
        study.check()
    if settings.dry_run:
        for study in studies:
            tell(f"{study.name:<24} {len(study.results()):>5} of {counted(len(study.runs), 'run')}")
        print(_so_far(progress_of(studies)))
        return 0
    card = _Card(settings, studies, old)
    failed = False
    with stop_flag(tell) as stop:
        for study in studies:
            if study not in to_train:
                card.add(study)
        card.write()
        card.say_kept()
        for number, study in enumerate(to_train, 1):
            if stop():
                return EXIT_STOPPED
            tell(f"\n[{number}/{len(to_train)}] {study.name}. All sweeps: {_so_far(progress_of(studies))}")
            code = launch(_borrowing(study.request, settings.folder))
            failed = failed or code == EXIT_FAILED
            card.add(study)
            card.write()
            if code == EXIT_STOPPED:
                return code
    files = f"{settings.page}, {settings.page.with_suffix('.json')}"
    tell(f"\nHere: {_so_far(progress_of(studies))}\nCard of {counted(card.runs, 'run')}: {files}")
    return EXIT_FAILED if failed else 0


def _borrowing(request: "Request", results: Path) -> "Request":
    """The request, with runs that another sweep here has finished taken over from it."""
    from stability.tracking.record import MANIFEST

    if not any(results.glob(f"*/{MANIFEST}")):
        return request
    return replace(request, execution=replace(request.execution, reuse_from=str(results)))


def _so_far(progress: "AllRuns") -> str:
    """How far all experiments are together, in words."""
    left = progress.seconds_left
    words = f"{progress.done:,} of {counted(progress.total, 'run')} done"
    if progress.done == progress.total:
        return words
    return f"{words}, about {duration(left)} of training left" if left is not None else words


def _refuse_fewer_seeds(card: Mapping[str, Any], settings: ReplicationSettings) -> None:
    """A card's verdicts are over seeds; to ask for fewer than it has would take its parts away."""
    seeds = card["ladders"].get(settings.ladder, {}).get("seeds", [])
    told = any(sweep["ladders"].get(settings.ladder, {}).get("summary") for sweep in card["sweeps"])
    if told and not set(seeds) <= set(settings.seed):
        has, asked = (",".join(map(str, some)) for some in (seeds, settings.seed))
        problem = f"{settings.page} tells of the ladder {settings.ladder} with the seeds {has}, and would lose some"
        raise InputError("seed", asked, problem, "Ask for those as well, or name another output=.")


class _Card:
    """The card while it grows: on disk after every sweep.

    What it had of a sweep before this command is kept until as many results are here.

    Attributes:
        runs: how many different ones are behind what was last written.
    """

    def __init__(self, settings: ReplicationSettings, studies: "Sequence[Study]", old: dict[str, Any]) -> None:
        from stability.replication.parts import former

        self._settings, self._studies, self._old = settings, studies, old
        self._json = settings.page.with_suffix(".json")
        self.runs = 0
        self._former = {study.name: former(old, settings.ladder, study, settings.page.parent) for study in studies}
        self._parts = {name: had.part for name, had in self._former.items() if had.part}

    def add(self, study: "Study") -> None:
        """Analyse what a sweep has here, unless the card has more of it."""
        from stability.replication.card import finding

        here, kept = len(study.results()), self._former[study.name].part
        if not here or (kept and here < len(kept.runs)):
            return
        folder = self._settings.page.with_suffix("") / self._settings.ladder / study.name
        folder.mkdir(parents=True, exist_ok=True)
        self._parts[study.name] = finding(study, folder, self._settings.page.parent)

    def say_kept(self) -> None:
        """Tell which sweeps' parts are not from results that are here, and which were dropped."""
        for study in self._studies:
            had, part = self._former[study.name], self._parts.get(study.name)
            if part and part is had.part:
                runs, here = counted(len(part.runs), "run"), len(study.results()) or "none"
                tell(f"{study.name:<24} kept as the card has it: {runs}, {here} here")
            elif had.why:
                now = "made anew from the results here" if part else "taken out of the card"
                tell(f"{study.name:<24} {now}: {had.why}")

    def write(self) -> None:
        """Write data and page."""
        from stability.replication.card import replaced, write_card
        from stability.replication.page import page
        from stability.replication.parts import total
        from stability.tracking.files import write_whole

        settings, old = self._settings, self._old
        seeds = ",".join(map(str, settings.seed))
        command = f"python -m stability.replicate ladder={settings.ladder} seed={seeds}"
        earlier = {name for had in self._former.values() for name in had.runs}
        cost = total(self._studies, self._parts, earlier, old["ladders"].get(settings.ladder, {}).get("cost", {}))
        self.runs = cost.runs
        card = replaced(old, settings.ladder, self._studies, self._parts, cost, command, settings.seed)
        write_card(self._json, card)
        write_whole(settings.page, page(card, self._json.name).encode())


def _study(name: str, settings: ReplicationSettings) -> "Study | int":
    """One experiment composed as its own command would be; an exit code where that cannot be."""
    from stability.command_line import quoted
    from stability.replication.study import Study
    from stability.run import with_request

    seeds = ",".join(map(str, settings.seed))
    command = ["python", "-m", "stability.run", f"+sweep={name}", f"ladder={settings.ladder}", f"seed={seeds}"]
    folder = settings.folder / name
    here = [
        f"output_dir={quoted(str(folder))}",
        "figures=[]",
        f"tracking={settings.tracking}",
        f"progress={settings.progress}",
    ]
    composed: list[Request] = []

    def keep(request: "Request") -> int:
        composed.append(request)
        return 0

    with _typed([*command, *here]):
        code = with_request(keep)
    if code or not composed:
        return code or EXIT_FAILED
    return Study(name, composed[0], " ".join(command), folder)


@contextmanager
def _typed(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads the command line, and the manifest keeps it: as if these words had been typed."""
    before = sys.argv, sys.orig_argv
    sys.argv, sys.orig_argv = [words[2], *words[3:]], list(words)
    try:
        yield
    finally:
        sys.argv, sys.orig_argv = before


if __name__ == "__main__":
    sys.exit(main())
