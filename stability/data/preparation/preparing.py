"""A preparation from beginning to end: look everything up, refuse what cannot be, tokenize in parallel, finish."""

import importlib.metadata
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from stability.data.manifest import (
    Counts,
    Dtype,
    Manifest,
    Shard,
    TokenizerRecord,
    corpus_hash,
    dtype_for,
    write_manifest,
)
from stability.data.preparation.bpe import train_bpe
from stability.data.preparation.folder import PreparationFolder
from stability.data.preparation.packing import PARTS, Packed, pack_unit
from stability.data.preparation.progress import Progress
from stability.data.preparation.settings import PreparationSettings, check
from stability.data.preparation.sources import Source, Unit, describe, find_source, unit_bytes
from stability.data.preparation.tokenizers import (
    Tokenizer,
    TokenizerChoice,
    choose_tokenizer,
    load_tokenizer,
    record_of,
)
from stability.errors import InputError
from stability.tracking.console import counted
from stability.untrusted.printable import tell

LIBRARIES = ("datasets", "pyarrow", "sentencepiece", "tokenizers")
HIGHEST_VOCABULARY = 2**31
"""Tokens are int32 in training."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know."""

    settings: PreparationSettings
    folder: Path
    choice: TokenizerChoice
    record: TokenizerRecord
    dtype: Dtype

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded once in each process."""
        return load_tokenizer(self.choice.kind, self.choice.content)

    def do(self, number: int, unit: Unit) -> Packed:
        """Tokenize and write one unit, on one core."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return pack_unit(number, unit, self.settings, self.tokenizer, self.record, self.dtype, self.folder)


@dataclass(frozen=True)
class Outcome:
    """What a preparation came to.

    Attributes:
        manifest: of the folder.
        seconds: of one core, over all units, those of earlier processes included; 0 when it was finished before.
        tokenizer_seconds: of these, in the tokenizer itself.
    """

    manifest: Manifest
    seconds: float
    tokenizer_seconds: float


def prepare(settings: PreparationSettings, say: Callable[[str], None] = tell) -> Outcome | None:
    """Turn text into a folder of token shards; goes on where an earlier process with the same settings was killed.

    Every unit of work gives the same files whoever does it, so the result is the same for any number of workers and
    interruptions.

    Args:
        settings: what, with what, and where to.
        say: told in a line what happens.

    Returns:
        None after a dry run.

    Raises:
        InputError: something in the settings or in the text cannot be.
    """
    check(settings)
    choice = choose_tokenizer(settings.tokenizer)
    if choice.train_to is None:
        _record(choice, settings)
    source = find_source(settings)
    folder = PreparationFolder(Path(settings.output_dir).expanduser(), _plan(settings, choice, source))
    finished = folder.check()
    if settings.dry_run:
        say(_described(source, folder, finished))
        return None
    if finished is not None:
        folder.clean()
        say(f"{folder.path} is finished: nothing to do.")
        return Outcome(finished, 0.0, 0.0)
    with folder.open():
        choice = _with_file(choice, source, settings, folder.path, say)
        record = _record(choice, settings)
        dtype = dtype_for(_vocabulary_size(record, settings))
        job = Job(replace(settings, revision=source.revision), folder.path, choice, record, dtype)
        outcome = _finish(job, source, folder, _all_units(job, source, folder, say))
    folder.clean()
    return outcome


def _plan(settings: PreparationSettings, choice: TokenizerChoice, source: Source) -> dict[str, Any]:
    tokenizer = {"kind": choice.kind, "sha256": choice.sha256, "train_to": choice.train_to}
    return {"settings": settings.identity(), "tokenizer": tokenizer, "source": describe(source)}


def _described(source: Source, folder: PreparationFolder, finished: Manifest | None) -> str:
    size = f"{source.bytes / 1e6:,.1f} MB" if source.bytes is not None else "of unknown size"
    done = len(source.units) if finished else len(folder.done())
    files = counted(len(source.inputs), "file")
    lines = [f"{counted(len(source.units), 'unit')} of work, {done} done: {files}, {size}"]
    names = [f"  {name}" for name, _, _ in source.inputs]
    lines += names if len(names) <= 10 else [*names[:5], f"  ... {len(names) - 10:,} more ...", *names[-5:]]
    return "\n".join([*lines, f"Dry run: nothing was written. The shards would be in {folder.path}"])


def _record(choice: TokenizerChoice, settings: PreparationSettings) -> TokenizerRecord:
    """The tokenizer's record, if it can be used with these settings."""
    try:
        record = record_of(choice, load_tokenizer(choice.kind, choice.content), settings.end_of_sequence)
    except InputError as error:
        if error.key != "tokenizer":
            raise
        raise InputError(error.key, settings.tokenizer, error.problem, error.fix) from None
    _vocabulary_size(record, settings)
    return record


def _vocabulary_size(record: TokenizerRecord, settings: PreparationSettings) -> int:
    """The size declared, or the tokenizer's own."""
    own = record.vocabulary_size
    size = settings.vocabulary_size or own
    if not own <= size <= HIGHEST_VOCABULARY:
        fix = f"Leave it out, or set it to {own} or more, up to 2^31."
        raise InputError("vocabulary_size", size, f"does not hold the tokenizer's {own:,} ids in 31 bits", fix)
    return size


def _with_file(
    choice: TokenizerChoice, source: Source, settings: PreparationSettings, folder: Path, say: Callable[[str], None]
) -> TokenizerChoice:
    """The choice with its file, which is now in the folder: trained, if need be, unless an earlier process did."""
    if choice.file is None:
        return choice
    file = folder / choice.file
    content = choice.content
    if content is None and file.exists():
        content = file.read_bytes()
    elif content is None:
        assert choice.train_to is not None
        say(f"Training a BPE tokenizer of {choice.train_to:,} tokens.")
        content = train_bpe(source, settings, choice.train_to)
    if not file.exists():
        partial = folder / "tokenizer.partial"
        partial.write_bytes(content)
        partial.replace(file)
    return replace(choice, content=content)


def _all_units(job: Job, source: Source, folder: PreparationFolder, say: Callable[[str], None]) -> dict[int, Packed]:
    """Every unit done, the ones that were not by this process's workers."""
    done = folder.done()
    todo = [number for number in range(len(source.units)) if number not in done]
    work = {number: float(unit_bytes(source.units[number]) or 1) for number in todo}
    workers = min(job.settings.workers or _cores(), len(todo))
    if todo:
        units = f"{counted(len(source.units), 'unit')} of work, {len(done)} done"
        say(f"{units}; {counted(workers, 'worker')}; {folder.path}")
    progress = Progress(len(source.units), len(done), sum(work.values()))
    for number, packed in _results(job, {number: source.units[number] for number in todo}, workers):
        folder.add(number, packed)
        done[number] = packed
        progress.add(packed, work[number])
    return done


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(job: Job, units: dict[int, Unit], workers: int) -> Iterator[tuple[int, Packed]]:
    """Units with what they came to, as they are done."""
    if workers <= 1:
        for number, unit in units.items():
            yield number, job.do(number, unit)
        return
    # Spawned, not forked: tokenizers and Arrow have threads, which a fork would leave without.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(job,)) as pool:
        futures = {pool.submit(_work, number, unit): number for number, unit in units.items()}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()  # a unit under way may take minutes, and is of no use now
            raise


_job: Job | None = None
"""A worker process's own."""


def _begin_worker(job: Job) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells no one: without this its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _work(number: int, unit: Unit) -> Packed:
    assert _job is not None
    return _job.do(number, unit)


def _finish(job: Job, source: Source, folder: PreparationFolder, done: dict[int, Packed]) -> Outcome:
    """The manifest, once every unit is done."""
    order = [done[number] for number in sorted(done)]
    counts = sum((packed.counts for packed in order), Counts())
    shards = {part: tuple(packed.shards[part] for packed in order if part in packed.shards) for part in PARTS}
    _check_parts(shards, counts, job.settings, folder)
    size = _vocabulary_size(job.record, job.settings)
    manifest = Manifest(
        corpus=corpus_hash(job.dtype, size, job.record, shards["train"], shards["validation"]),
        dtype=job.dtype,
        vocabulary_size=size,
        tokenizer=job.record,
        train=shards["train"],
        validation=shards["validation"],
        counts=counts,
        plan=folder.plan,
        licence=job.settings.licence or source.licence or "not stated by the source",
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
    )
    write_manifest(folder.path, manifest)
    seconds = sum(packed.seconds for packed in order), sum(packed.tokenizer_seconds for packed in order)
    return Outcome(manifest, *seconds)


def _check_parts(
    shards: dict[str, tuple[Shard, ...]], counts: Counts, settings: PreparationSettings, folder: PreparationFolder
) -> None:
    """Refuse, leaving nothing behind, what could not be trained on."""
    for part in PARTS:
        if shards[part]:
            continue
        folder.discard()
        if not counts.documents:
            problem = f"holds no text: {counts.documents_empty:,} documents are empty, {counts.documents_bad:,} bad"
            raise InputError("source", settings.source, problem, "Give text.")
        problem = f"none of {counted(counts.documents, 'document')} falls to the {part} part"
        fix = "Change it, give more documents, or cut text files in more (documents=paragraph or line)."
        raise InputError("validation_fraction", settings.validation_fraction, problem, fix)
