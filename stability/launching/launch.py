"""Check everything, then train what is unfinished, then analyse: the one path from a request to results."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax

from stability.analysis import analyze, format_claims, format_forecasts, format_table
from stability.analysis.claims import check_claims, parse_claims
from stability.analysis.forecast import parse_forecasts
from stability.analysis.quantities import parse_quantities
from stability.config import RunConfig, fingerprint, resolve, validate
from stability.data.corpus import Corpus, load_corpus
from stability.data.shards import ShardedCorpus
from stability.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError
from stability.launching.calibration import calibrate, known_calibration
from stability.launching.campaign import Campaign, train_rounds, unfinished_runs
from stability.launching.compilation_cache import KeptPrograms, keep_compiled_programs
from stability.launching.describe import describe
from stability.launching.devices import check_mesh, choose_layout, show_every_core
from stability.launching.folder import SweepFolder, check_folder, open_folder
from stability.launching.follow import Share, follow
from stability.launching.grid import Request
from stability.launching.host import check_host, prepare_host
from stability.launching.memory import find_budget, with_fitted_micro_batch
from stability.launching.orders import Channel, Following, Leading, Orders, OutOfStep, failing_together
from stability.launching.plan import PlannedRun, pack_runs, plan_runs
from stability.launching.processes import join, leave
from stability.launching.reuse import check_lender, lendable
from stability.launching.search import Search
from stability.launching.settings import MeshSettings
from stability.launching.slurm import check_place, check_slurm, hand_over, plan_array
from stability.launching.slurm_task import in_task
from stability.launching.tracked import tracked_sweep
from stability.launching.work import refuse_what_does_not_fit, text_of
from stability.model.kernels import refuse_kernel
from stability.tracking.console import counted
from stability.tracking.locks import Locks
from stability.tracking.tracker import Background
from stability.tracking.trackers import TrackerSettings, find_tracker
from stability.untrusted.names import refuse_way_out
from stability.untrusted.printable import tell

RESULTS = "results"


def launch(request: Request) -> int:
    """Train the request's unfinished runs, analyse all of its folder, and return the process's exit code.

    Where the storage fails, that is said, with what to do; what had been recorded is kept.

    Args:
        request: typed and composed, not yet checked against the text.

    Raises:
        InputError: something in the request cannot be; nothing has been written.
    """
    try:
        return _launch(request)
    except BrokenPipeError:  # nobody reads what is printed
        raise
    except OutOfStep as error:
        tell("".join(traceback.format_exception(error.__context__ or error)), sys.stderr)
        tell(
            "Stopped: something broke, in this process or another one, and the processes are out of step. What was "
            f"recorded before is kept, and the same command goes on:\n  {request.command}",
            sys.stderr,
        )
        return EXIT_FAILED
    except OSError as error:
        tell(
            f"Stopped: the storage failed ({error}). What was recorded before is kept. Mend it, and the same command "
            f"goes on:\n  {request.command}",
            sys.stderr,
        )
        return EXIT_FAILED


def _launch(request: Request) -> int:
    """As one of several processes, if there are others, or alone."""
    prepare_host(request.execution.host)
    show_every_core()
    processes = 1 if _submits(request) else join(request.execution.distributed)
    if processes == 1:
        return _lead(request, Orders())
    channel = Channel()
    with failing_together(channel):
        if jax.process_index():
            code = follow(Following(channel), lambda memory: _share(request, memory))
        else:
            orders = Leading(processes, channel)
            code = _lead(request, orders)
            orders.end(code)
    leave()
    return code


def _submits(request: Request) -> bool:
    """Whether the tasks of an array are to train, and this is none of them."""
    return request.execution.launcher == "slurm" and not in_task()


def _share(request: Request, memory: int) -> Share:
    """What a process other than 0 has to know of the request, for which process 0 has found it good.

    Args:
        request: as all processes have it.
        memory: bytes on each device by which process 0 has fitted the runs.
    """
    corpus, configs, _ = _resolved(request)
    mesh = request.execution.mesh
    runs = plan_runs(_fitted(configs, mesh, memory), request.ladder.scales)
    return Share(runs, corpus.parts, choose_layout(request.execution.lanes, mesh, len(runs)))


def _lead(request: Request, orders: Orders) -> int:
    """Decide, write and say everything."""
    submits = _submits(request)
    if submits:
        check_slurm(request.execution.slurm, here=not request.execution.dry_run)
    tracking = request.execution.tracking
    make_tracker = find_tracker(tracking.name, tracking.mode)  # refuses now rather than in mid-training
    corpus, configs, searched = _resolved(request)
    if not request.execution.dry_run and not submits:
        check_host(request.execution.host)
    budget = find_budget(request.execution.memory_limit)
    runs = plan_runs(_fitted(configs, request.execution.mesh, budget.limit), request.ladder.scales)
    search = Search(runs, searched)
    first = search.first()
    sweep, path = _name_and_folder(request, runs)
    if submits:
        check_place(path)
    parts = corpus.parts
    for run in {(c.training.sequence_length, c.training.batch_size): c for c in configs}.values():
        text_of(parts, run)
    check_folder(path, sweep, runs, request.ladder.scales)
    _check_definition(request, runs)
    lender = Path(request.execution.reuse_from).expanduser() if request.execution.reuse_from else None
    if lender:
        check_lender(lender)
    if request.execution.calibrate and orders.processes > 1:
        problem = f"measures one machine, and there are {orders.processes} processes"
        raise InputError("calibrate", True, problem, "Calibrate with one process.")
    if request.execution.calibrate:
        print("Measuring this machine, which takes about a minute.")
    calibration = calibrate() if request.execution.calibrate else known_calibration()
    unfinished = unfinished_runs(SweepFolder(path, ""), runs)
    if lender:
        lent = lendable(SweepFolder(path, ""), unfinished, lender)
        unfinished = [run for run in unfinished if run not in lent]
    packs = pack_runs(unfinished)
    layout = choose_layout(
        request.execution.lanes,
        request.execution.mesh,
        max((len(pack.runs) for pack in packs), default=1),
        here=not submits,
    )
    check_mesh([pack.config for pack in packs], layout)
    for pack in () if submits else packs:
        refuse_kernel(pack.config)
    if request.execution.dry_run:
        tell(describe(runs, unfinished, layout, budget, calibration))
        if search.active:
            tell(search.plan())
        if submits:
            tasks = plan_array(request.execution.slurm, pack_runs(first)).tasks
            tell(f"As a Slurm array of {counted(tasks, 'task')}; memory and time are those of this machine.")
        tell(f"Dry run: nothing was trained or written. The results would be in {path}")
        return 0
    if submits:
        with Locks(path, tell) as locks:
            folder = open_folder(path, locks, sweep, request.definition, first, request.ladder, request.command)
            code = hand_over(request, sweep, folder, locks, search, lender)
            if code is None:  # everything has a result
                with Background(make_tracker(TrackerSettings(**asdict(tracking), folder=path)), tell) as tracker:
                    _analyse(request, folder, tracker)
        return code or 0
    if orders.processes > 1:
        orders.begin(Share(runs, parts, layout).what, budget.limit)
    keep_compiled_programs()
    programs = orders.programs(KeptPrograms())
    refuse_what_does_not_fit(unfinished, programs, parts, layout, budget)
    with Locks(path, tell) as locks:
        folder = open_folder(path, locks, sweep, request.definition, first, request.ladder, request.command)
        with Background(make_tracker(TrackerSettings(**asdict(tracking), folder=path)), tell) as tracker:
            # Between two rounds of a search all tasks have to be there.
            shared = in_task() and not search.active
            campaign = Campaign(
                request, sweep, folder, parts, tracker, lender, programs, layout, budget, locks, orders, shared
            )
            code = train_rounds(campaign, search)
            if code == EXIT_INTERRUPTED:
                return code
            if shared and (others := _of_others(folder, runs, locks)):
                tell(f"{counted(others, 'run')} left to other tasks; the last to end analyses.")
                return code
            tracker.settle()
            _analyse(request, folder, tracker)
    for line in tracker.closing_words():
        tell(line)
    return code


def _of_others(folder: SweepFolder, runs: Sequence[PlannedRun], locks: Locks) -> int:
    """How many runs other commands are training now."""
    return sum(locks.is_held(run.folder_name) and not folder.is_finished(run) for run in runs)


def _fitted(configs: Sequence[RunConfig], mesh: MeshSettings, memory: int) -> list[RunConfig]:
    """The configs with as many sequences at a time as the memory allows, where they leave that to us."""
    return [with_fitted_micro_batch(config, memory, mesh.data, mesh.fsdp) for config in configs]


def _analyse(request: Request, folder: SweepFolder, tracker: Background) -> None:
    """Analyse all of the folder, and tell terminal and tracker."""
    execution, path = request.execution, folder.path
    summary = analyze(path, path, figure_formats=execution.figures, report=execution.report)
    tracker.analysed(tracked_sweep(folder, summary))
    tell("\n" + format_table(summary))
    if summary["claims"]:
        tell("\n" + format_claims(summary))
    if summary["quantity_forecasts"]:
        tell("\n" + format_forecasts(summary))
    tell(f"\nResults: {path}   ({'report.html, ' if execution.report else ''}summary.json, analysis/, runs/)")


def planned(request: Request) -> tuple[PlannedRun, ...]:
    """Every run that a request asks for, checked and named; nothing is trained or written.

    Raises:
        InputError: one of them cannot be.
    """
    _, configs, _ = _resolved(request)
    return plan_runs(configs, request.ladder.scales)


def _name_and_folder(request: Request, runs: Sequence[PlannedRun]) -> tuple[str, Path]:
    """A sweep is named by its file; a command without one by its folder, or by its first run."""
    given = request.execution.output_dir
    if request.sweep:
        refuse_way_out("sweep", request.sweep)
    if given is None:
        name = request.sweep or f"run_{runs[0].fingerprint[:8]}"
        return name, Path(RESULTS) / name
    path = Path(given).expanduser()
    return request.sweep or path.absolute().name, path


def _check_definition(request: Request, runs: Sequence[PlannedRun]) -> None:
    """What is to be read from the runs, tested on them and forecast; claims against the arms that there will be."""
    quantities = parse_quantities(request.definition.quantities)
    claims = parse_claims(request.definition.claims)
    parse_forecasts(request.definition.forecasts)
    if request.as_written:
        arms = {run.arm: {one.scale for one in runs if one.arm == run.arm} for run in runs}
        check_claims(claims, arms, quantities)


def _refuse_other_facts(config: RunConfig, corpus: Corpus | ShardedCorpus) -> None:
    """What a config says of its text has to be so; it may say nothing."""
    facts: list[tuple[str, object, object]] = [
        ("data.corpus", config.data.corpus, corpus.hash),
        ("data.vocabulary_size", config.data.vocabulary_size, corpus.vocabulary_size),
    ]
    for key, said, found in facts:
        if said is not None and said != found:
            fix = "Leave it out; data.name and data.path choose the text."
            raise InputError(key, said, f"is {found} of the text {corpus.name}", fix)


def _resolved(request: Request) -> tuple[Corpus | ShardedCorpus, tuple[RunConfig, ...], frozenset[str]]:
    """The corpus, every config complete and valid, and the fingerprints of those that only a search may ask for."""
    if not request.configs:
        raise InputError("sweep", request.sweep, "has no runs", "Give its grids at least one value each.")
    data = request.configs[0].data
    for config in request.configs:
        validate(config)
    texts = {(config.data.name, config.data.path): None for config in request.configs}
    if len(texts) > 1:
        names = ",".join(path or name for name, path in texts)
        raise InputError("data", names, "cannot differ between the runs of one sweep", "Give one text.")
    corpus = load_corpus(data.name, data.path)
    distinct: dict[str, RunConfig] = {}
    listed: set[str] = set()
    for config in request.configs:
        _refuse_other_facts(config, corpus)
        resolved = resolve(config, corpus=corpus.hash, vocabulary_size=corpus.vocabulary_size)
        name = fingerprint(resolved)
        distinct.setdefault(name, resolved)
        if config not in request.searched:
            listed.add(name)
    return corpus, tuple(distinct.values()), frozenset(distinct.keys() - listed)
