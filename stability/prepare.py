"""`python -m stability.prepare source=... tokenizer=... output_dir=...`: text to token shards. No JAX."""

import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from stability.command_line import Parser, key_values, report, typed_command
from stability.errors import InputError
from stability.untrusted.printable import tell

if TYPE_CHECKING:
    from stability.data.preparation.preparing import Outcome
    from stability.data.preparation.settings import PreparationSettings

EPILOG = """\
what to read
  source=hf:NAME            a data set of the Hugging Face hub, or a folder in its layout (default: hf:allenai/c4)
    config= split= revision= data_files=
                            as `datasets.load_dataset` has them; config is en for C4, split is train
  source=PATH[,PATH...]     files, patterns (*, ?, **), or addresses that fsspec reads (https://, s3://, gs://, ...):
                            .txt .md, .jsonl .json, each also .gz .zst .bz2, and .parquet; format= says what others hold
  text_field=text           the column or JSON field
  documents=file            what is a document of a text file: file, line, or paragraph (between blank lines)
  bad_documents=error       invalid UTF-8, broken JSON and the like: error, or skip and count
  licence=TEXT              a note for the manifest; a data set's own by default

what to make of it
  tokenizer=                bytes | bpe:SIZE, trained on the source | FILE.json of Hugging Face `tokenizers`
                            | FILE.model of SentencePiece
  end_of_sequence=TOKEN|ID  what follows every document; the tokenizer's own by default
  vocabulary_size=N         more than the tokenizer's, to leave room: 32101 for T5's 32,000
  bpe_sample_bytes=1e8      how much text a trained tokenizer sees
  validation_fraction=0.01  share of the documents held out, by a hash of their text

where and how
  output_dir=FOLDER         the same command again goes on where it was killed
  workers=N                 processes; one for each core by default, and the result is the same for any
  unit_bytes=64e6           how much is read for one file of tokens
  dry_run=true              the plan: units and bytes
  check=FOLDER              read every token of a finished folder, and say whether it is what its manifest says

examples
  python -m stability.prepare source='books/*.txt' documents=paragraph tokenizer=bpe:4096 output_dir=data/books
  python -m stability.prepare tokenizer=t5.model vocabulary_size=32101 output_dir=data/c4
  python -m stability.run data=shards data.path=data/books

docs/data.md goes through both.
"""
CHECK = "check"
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 a worker died or a disk is full, 2 bad input, 130 Ctrl-C."""
    parser = Parser("prepare", "Turn text into token shards to train on.", EPILOG)
    try:
        given = key_values(parser, arguments, first="source")
        return _check(given) if CHECK in given else _prepare(_settings(given))
    except InputError as error:
        return report(error)
    except KeyboardInterrupt:
        tell(f"\nStopped; to go on, the same command again:\n  {typed_command()}", sys.stderr)
        return EXIT_INTERRUPTED
    except (BrokenProcessPool, OSError) as error:
        died = "a worker died, for lack of memory perhaps: try fewer workers="
        problem = died if isinstance(error, BrokenProcessPool) else str(error)
        kept = "What is done is kept; the same command goes on:"
        tell(f"error: {problem}. {kept}\n  {typed_command()}", sys.stderr)
        return EXIT_FAILED


def _check(given: dict[str, str]) -> int:
    from stability.data.shards import check

    if len(given) > 1:
        other = next(key for key in given if key != CHECK)
        raise InputError(other, given[other], f"goes with no {CHECK}=", f"Give {CHECK}=FOLDER alone.")
    manifest = check(Path(given[CHECK]).expanduser(), CHECK)
    tell(f"{given[CHECK]}: {manifest.counts.tokens:,} tokens as the manifest says, corpus {manifest.corpus[:16]}")
    return 0


def _settings(given: dict[str, str]) -> "PreparationSettings":
    from stability.data.preparation.settings import PreparationSettings
    from stability.typed import from_mapping, refuse_unknown

    refuse_unknown(PreparationSettings, given)
    for key, example in (("tokenizer", "bpe:8192"), ("output_dir", "data/NAME")):
        if not given.get(key):
            keys = ", ".join([f.name for f in fields(PreparationSettings)] + [CHECK])
            raise InputError(key, "", "is missing", f"Write {key}={example}, say. The keys are {keys}.")
    return from_mapping(PreparationSettings, given)


def _prepare(settings: "PreparationSettings") -> int:
    from stability.data.preparation.preparing import prepare

    began = time.perf_counter()
    outcome = prepare(settings)
    if outcome is not None:
        tell(_summary(outcome, time.perf_counter() - began, settings))
    return 0


def _summary(outcome: "Outcome", seconds: float, settings: "PreparationSettings") -> str:
    from stability.tracking.console import duration

    manifest, counts = outcome.manifest, outcome.manifest.counts
    left_out = f"{counts.documents_empty:,} empty and {counts.documents_bad:,} bad ones left out"
    lines = [
        f"{counts.documents:,} documents ({left_out}), {counts.text_bytes / 1e6:,.1f} MB of text",
        f"{counts.tokens - counts.tokens_validation:,} tokens to train on, {counts.tokens_validation:,} held out; "
        f"vocabulary {manifest.vocabulary_size:,}, {manifest.bytes / 1e6:,.1f} MB as {manifest.dtype}",
    ]
    if outcome.seconds:
        whole, own = (
            counts.text_bytes / 1e6 / max(part, 1e-9) for part in (outcome.seconds, outcome.tokenizer_seconds)
        )
        lines.append(
            f"{duration(seconds)}; a core made {whole:.1f} MB of text a second ({counts.tokens / outcome.seconds:,.0f} "
            f"tokens), the tokenizer alone {own:.1f}"
        )
    lines += [
        f"corpus {manifest.corpus}",
        f"licence of the text: {manifest.licence}",
        f"\nTrain on it: python -m stability.run data=shards data.path={settings.output_dir}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
