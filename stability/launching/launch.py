"""Check everything, then train what is unfinished, then analyse: the one path from a request to results."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stability.analysis import analyze, format_claims, format_table
from stability.analysis.claims import parse_claims
from stability.analysis.quantities import parse_quantities
from stability.config import RunConfig, fingerprint, resolve, validate
from stability.data.corpus import Corpus, load_corpus
from stability.data.sequence import Split
from stability.data.shards import ShardedCorpus
from stability.errors import InputError
from stability.launching.calibration import calibrate, known_calibration
from stability.launching.compilation_cache import keep_compiled_programs
from stability.launching.describe import describe
from stability.launching.devices import Layout, check_mesh, choose_layout, show_every_core
from stability.launching.folder import SweepFolder, check_folder, open_folder
from stability.launching.grid import Request
from stability.launching.journal import Desk
from stability.launching.memory import Budget, find_budget
from stability.launching.plan import PlannedRun, pack_runs, plan_runs
from stability.launching.provenance import device_description, provenance
from stability.launching.reuse import check_lender, lendable, reuse
from stability.launching.signals import stop_flag
from stability.launching.tracked import tracked_sweep
from stability.launching.work import refuse_what_does_not_fit, text_of, train_runs
from stability.tracking.console import counted, duration
from stability.tracking.live import RunFacts, console_for
from stability.tracking.record import TERMINAL
from stability.tracking.tracker import Background
from stability.tracking.trackers import TrackerSettings, find_tracker
from stability.training.lanes import Programs
from stability.training.loop import Interrupted

RESULTS = "results"
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def launch(request: Request) -> int:
    """Train the request's unfinished runs, analyse all of its folder, and return the process's exit code.

    Args:
        request: typed and composed, not yet checked against the text.

    Raises:
        InputError: something in the request cannot be; nothing has been written.
    """
    show_every_core()
    tracking = request.execution.tracking
    make_tracker = find_tracker(tracking.name, tracking.mode)  # refuses now rather than in mid-training
    corpus, configs = _resolved(request)
    runs = plan_runs(configs, request.ladder.scales)
    sweep, path = _name_and_folder(request, runs)
    parts = corpus.parts
    for run in {(c.training.sequence_length, c.training.batch_size): c for c in configs}.values():
        text_of(parts, run)
    manifest = check_folder(path, sweep, runs, request.ladder.scales)
    parse_claims(request.definition.claims)
    parse_quantities(request.definition.quantities)
    lender = Path(request.execution.reuse_from).expanduser() if request.execution.reuse_from else None
    if lender:
        check_lender(lender)
    if request.execution.calibrate:
        print("Measuring this machine, which takes about a minute.")
    calibration = calibrate() if request.execution.calibrate else known_calibration()
    unfinished = _unfinished(SweepFolder(path, ""), runs)
    if lender:
        lent = lendable(SweepFolder(path, ""), unfinished, lender)
        unfinished = [run for run in unfinished if run not in lent]
    packs = pack_runs(unfinished)
    layout = choose_layout(
        request.execution.lanes, request.execution.mesh, max((len(pack.runs) for pack in packs), default=1)
    )
    check_mesh([pack.config for pack in packs], layout)
    budget = find_budget(request.execution.memory_limit)
    if request.execution.dry_run:
        print(describe(runs, unfinished, layout, budget, calibration))
        print(f"Dry run: nothing was trained or written. The results would be in {path}")
        return 0
    keep_compiled_programs()
    programs = Programs()
    refuse_what_does_not_fit(unfinished, programs, parts, layout, budget)
    folder = open_folder(path, manifest, sweep, request.definition, runs, request.ladder, request.command)
    if lender:
        copied = reuse(folder, _unfinished(folder, runs), lender)
        print(f"Took over {counted(copied, 'result')} from {lender}.")
    with Background(make_tracker(TrackerSettings(**asdict(tracking), folder=path)), print) as tracker:
        code = _train_all(request, sweep, folder, runs, parts, tracker, programs, layout, budget)
        if code == EXIT_INTERRUPTED:
            return code
        tracker.settle()
        execution = request.execution
        summary = analyze(path, path, figure_formats=execution.figures, report=execution.report)
        tracker.analysed(tracked_sweep(folder, summary))
        print("\n" + format_table(summary))
        if summary["claims"]:
            print("\n" + format_claims(summary))
        print(f"\nResults: {path}   ({'report.html, ' if execution.report else ''}summary.json, analysis/, runs/)")
    for line in tracker.closing_words():
        print(line)
    return code


def _name_and_folder(request: Request, runs: Sequence[PlannedRun]) -> tuple[str, Path]:
    """A sweep is named by its file; a command without one by its folder, or by its first run."""
    given = request.execution.output_dir
    if given is None:
        name = request.sweep or f"run_{runs[0].fingerprint[:8]}"
        return name, Path(RESULTS) / name
    path = Path(given).expanduser()
    return request.sweep or path.absolute().name, path


def _resolved(request: Request) -> tuple[Corpus | ShardedCorpus, tuple[RunConfig, ...]]:
    """The corpus, and every config complete and valid."""
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
    for config in request.configs:
        resolved = resolve(config, corpus=corpus.hash, vocabulary_size=corpus.vocabulary_size)
        distinct.setdefault(fingerprint(resolved), resolved)
    return corpus, tuple(distinct.values())


def _unfinished(folder: SweepFolder, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs that have no result yet."""
    return [run for run in runs if (folder.run(run).read_summary() or {}).get("status") not in TERMINAL]


def _train_all(
    request: Request,
    sweep: str,
    folder: SweepFolder,
    runs: tuple[PlannedRun, ...],
    parts: Split,
    tracker: Background,
    programs: Programs,
    layout: Layout,
    budget: Budget,
) -> int:
    """Train every run that has no result yet, and say how it went; an exit code."""
    unfinished = _unfinished(folder, runs)
    packs = pack_runs(unfinished)
    console = console_for(
        request.execution.progress,
        {run.fingerprint: _facts(run) for pack in packs for run in pack.runs},
        work={run.fingerprint: run.cost for run in unfinished},
        kinds={run.fingerprint: i for i, pack in enumerate(packs) for run in pack.runs},
        done=len(runs) - len(unfinished),
    )
    if request.question:
        console.say(request.question)
    todo = f"{counted(len(runs), 'run')}, {console.done} already done, {counted(len(packs), 'program')}"
    console.say(f"{sweep}: {todo}; {folder.path}")
    if not unfinished:
        return 0
    console.say(f"device: {device_description()}; lanes: {layout.strategy} ({layout.why})")
    began = time.perf_counter()
    tracker.warn_with(console.say)
    desk = Desk(sweep, folder, console, tracker, provenance(request.execution, layout.strategy, request.command))
    try:
        with stop_flag(console.say) as stop:
            failed = train_runs(desk, programs, unfinished, parts, layout, budget, stop)
    except Interrupted:
        console.close()
        console.say(f"Stopped; nothing is lost. To go on, run the same command again:\n  {request.command}")
        return EXIT_INTERRUPTED
    finally:
        console.close()
    compiling = sum(program.compile_seconds for program in programs.compiled.values())
    console.say(
        f"Trained {counted(len(unfinished) - failed, 'run')} in {duration(time.perf_counter() - began)}, of it "
        f"{compiling:.0f} s compiling {counted(len(programs.compiled), 'program')}."
    )
    if failed:
        console.say(
            f"{counted(failed, 'run')} failed; the same command tries them again. See error.txt in their folders."
        )
    return EXIT_FAILED if failed else 0


def _facts(run: PlannedRun) -> RunFacts:
    return RunFacts(run.arm, run.scale, run.config.optimizer.learning_rate, run.config.seed)
