"""Preparing data against the bare tokenizer, and reading batches against training on them.

    python -m benchmarks.data [--megatokens 200] [--output benchmarks/results/FILE.json]

Preparing: the King James text, a document a line, by one worker; megabytes of text for each second of one core, which
other work on the machine changes little. `tokenizer_alone` tokenizes the same documents in memory and does nothing
else; `share_of_time_in_tokenizer` is measured while preparing. The BPE is trained on the source, the SentencePiece
model (unigram, as T5's) here, 8,192 tokens each.

Reading: batches of every micro and mini scale, ten steps at a time as training asks for them, from shards of made-up
tokens, more than a processor's cache and less than memory; tokens for each second of one core. Training: steps of every
scale, the fastest of some (of a mini scale, which wants an accelerator, one step after a first). Reading holds training
up where `reading_share` nears 1.
"""

import argparse
import importlib.metadata
import io
import json
import os
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.reporting import report
from stability.command_line import config_folders, with_transparent_huge_pages
from stability.data.batches import Batches
from stability.data.corpus import load_corpus
from stability.data.preparation.preparing import LIBRARIES, prepare
from stability.data.preparation.settings import PreparationSettings
from stability.data.preparation.tokenizers import choose_tokenizer, load_tokenizer
from stability.data.sequence import JoinedTokens

VOCABULARY = 8192
STEPS = 10
MINI_ROUNDS = (1, 1)
"""Rounds, and steps in each: a step of the largest takes seconds on a CPU."""
SHARDS = 100
SECONDS = 4.0
ROUNDS = 4


def sentencepiece_model(lines: list[str], path: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=VOCABULARY,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def preparing(folder: Path) -> list[dict[str, Any]]:
    """Each tokenizer: all of preparing, and tokenizing alone."""
    text = bytes(load_corpus("kjv").parts.train[0 : 1 << 30]).decode()  # type: ignore[arg-type]
    lines = [line for line in text.split("\n") if line.strip()]
    source = folder / "kjv.jsonl"
    source.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    sentencepiece_model(lines, folder / "unigram.model")
    megabytes = sum(len(line.encode()) for line in lines) / 1e6
    rows = []
    for name, tokenizer in (
        ("bytes", "bytes"),
        ("bpe", f"bpe:{VOCABULARY}"),
        ("sentencepiece", str(folder / "unigram.model")),
    ):
        whole, alone, inside = list[float](), list[float](), 0.0
        for i in range(ROUNDS):  # in turn, and the least of each: other work on the machine only adds
            output = folder / f"{name}_{i}"
            told = PreparationSettings(source=str(source), tokenizer=tokenizer, output_dir=str(output), workers=1)
            outcome = prepare(told, say=lambda _: None)
            assert outcome is not None
            whole.append(outcome.seconds)
            inside = outcome.tokenizer_seconds if outcome.seconds == min(whole) else inside
            alone.append(seconds_of_tokenizer(output, outcome.manifest.tokenizer.file, lines))
        rows.append(
            {
                "tokenizer": name,
                "vocabulary_size": outcome.manifest.vocabulary_size,
                "text_megabytes": round(megabytes, 2),
                "tokens": outcome.manifest.counts.tokens,
                "megabytes_per_core_second": round(megabytes / min(whole), 2),
                "tokenizer_alone_megabytes_per_core_second": round(megabytes / min(alone), 2),
                "share_of_tokenizer_alone": round(min(alone) / min(whole), 3),
                "share_of_time_in_tokenizer": round(inside / min(whole), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def seconds_of_tokenizer(folder: Path, file: str | None, lines: list[str]) -> float:
    """Of one core, to tokenize the lines and do nothing else."""
    choice = choose_tokenizer(str(folder / file)) if file else choose_tokenizer("bytes")
    tokenizer = load_tokenizer(choice.kind, choice.content)
    began = time.process_time()
    for start in range(0, len(lines), 1024):
        tokenizer.encode(lines[start : start + 1024])
    return time.process_time() - began


def made_up_tokens(folder: Path, megatokens: int) -> JoinedTokens:
    """Files as shards are, memory-mapped."""
    random = np.random.default_rng(0)
    parts = []
    for i in range(SHARDS):
        file = folder / f"{i:05d}.bin"
        random.integers(0, 32_000, megatokens * 1_000_000 // SHARDS, dtype=np.uint16).tofile(file)
        parts.append(np.memmap(file, "<u2", "r"))
    return JoinedTokens(parts, np.dtype("<u2"))


def reading_speed(tokens: JoinedTokens, batch_size: int, sequence_length: int) -> float:
    """Tokens that one core reads a second, the median over dispatches."""
    batches, seconds, step = Batches(tokens, sequence_length, batch_size), list[float](), 0
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.process_time()
        batches.batches(0, step, STEPS)
        seconds.append(time.process_time() - began)
        step += STEPS
    return STEPS * batch_size * sequence_length / statistics.median(seconds)


def training_speed(settings: dict[str, Any], shape: tuple[int, int], rounds: int, steps: int) -> float:
    """Tokens a second of training on this machine's device, with bytes for tokens."""
    import jax

    from stability.config import RunConfig, resolve
    from stability.training.lanes import STEPS_PER_DISPATCH, compile_program
    from stability.typed import from_mapping

    model = {key.removeprefix("model."): value for key, value in settings.items()}
    training = {"batch_size": shape[0], "sequence_length": shape[1]}
    given = from_mapping(RunConfig, {"model": model, "training": training})
    config = resolve(given, corpus="benchmark", vocabulary_size=256)
    program = compile_program(config, None, (1, shape[0], shape[1] + 1))
    placed = program.place([config])
    state, seconds = program.start(placed), list[float]()
    tokens = np.zeros((1, STEPS_PER_DISPATCH, shape[0], shape[1] + 1), np.int32)
    for _ in range(rounds + 1):
        began = time.perf_counter()
        state, metrics, observations = program.step(placed, state, tokens, steps, False)
        jax.block_until_ready((state, metrics, observations))
        seconds.append((time.perf_counter() - began) / steps)
    fastest = min(seconds[1:])  # the hardest to keep up with
    return config.training.tokens_per_step / fastest


def ladder(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((config_folders().sweeps / "ladder" / f"{name}.yaml").read_text())
    return content


def reading(folder: Path, megatokens: int, rounds: int) -> list[dict[str, Any]]:
    tokens = made_up_tokens(folder, megatokens)
    speeds: dict[tuple[int, int], float] = {}
    rows: list[dict[str, Any]] = []
    for name in ("micro", "mini"):
        content = ladder(name)
        shape = (content["ladder"]["batch_size"], content["training"]["sequence_length"])
        speeds[shape] = speed = reading_speed(tokens, *shape)
        for scale, settings in content["ladder"]["scales"].items():
            row = {
                "ladder": name,
                "scale": scale,
                "batch_size": shape[0],
                "sequence_length": shape[1],
                "reading_tokens_per_second": round(speed),
            }
            trained = training_speed(settings, shape, *((rounds, STEPS) if name == "micro" else MINI_ROUNDS))
            row |= {"training_tokens_per_second": round(trained), "reading_share": round(trained / speed, 5)}
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatokens", type=int, default=200, help="made-up tokens to read from, two bytes each")
    parser.add_argument("--rounds", type=int, default=5, help="dispatches of ten steps for each scale")
    parser.add_argument("--parts", nargs="+", choices=("preparing", "reading"), default=["preparing", "reading"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with_transparent_huge_pages()
    from stability.launching.provenance import device_description

    load = os.getloadavg()[0]
    prepared = []
    if "preparing" in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            prepared = preparing(Path(folder))
    read = []
    if "reading" in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            read = reading(Path(folder), arguments.megatokens, arguments.rounds)
    result = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.data --megatokens {arguments.megatokens} --rounds {arguments.rounds} "
        f"--parts {' '.join(arguments.parts)}",
        "device": device_description(),
        "load_average_before": round(load, 1),
        "load_average_after": round(os.getloadavg()[0], 1),
        "versions": {name: importlib.metadata.version(name) for name in (*LIBRARIES, "jax", "numpy")},
        "preparing": prepared,
        "reading": read,
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
