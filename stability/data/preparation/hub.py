"""Data sets of the Hugging Face hub, or folders in its layout, through `datasets` in streaming mode."""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stability.data.preparation.libraries import library
from stability.data.preparation.settings import HUB, PreparationSettings
from stability.errors import InputError

ROWS = 1000
"""Read at a time."""
REVISION = re.compile(r"@([0-9a-f]{40})/")
"""Where the address of a hub's file says which commit it is of: hf://datasets/NAME@COMMIT/PATH."""


@dataclass(frozen=True)
class HubSource:
    """What `datasets.load_dataset` is asked for; the names are its own."""

    name: str
    config: str | None
    split: str
    revision: str | None
    data_files: str | None

    @classmethod
    def of(cls, settings: PreparationSettings) -> "HubSource":
        """The hub's part of the settings."""
        assert settings.hub_name is not None
        folder = Path(settings.hub_name).expanduser()
        # Absolute, since what is looked up is remembered by it.
        name = str(folder.absolute()) if folder.is_dir() else settings.hub_name
        return cls(name, settings.hub_config, settings.split, settings.revision, settings.data_files)


@dataclass(frozen=True)
class HubFacts:
    """What a data set says of itself.

    Attributes:
        files: its split's files, one for each of its shards; numbered where they cannot be told apart.
        sizes: of the files in bytes, None where it is not known.
        revision: the commit that they are of, None for a folder.
        licence: None where it says nothing.
        columns: None where they are known only once it is read.
    """

    files: tuple[str, ...]
    sizes: tuple[int | None, ...]
    revision: str | None
    licence: str | None
    columns: tuple[str, ...] | None


def facts(source: HubSource) -> HubFacts:
    """Look a data set up.

    Raises:
        InputError: it does not exist or cannot be reached, or has no such configuration, split or file.
    """
    dataset = _dataset(source)
    files = tuple(str(file) for file in _data_files(source))
    if len(files) != dataset.num_shards:
        files = tuple(f"{source.name} shard {i} of {dataset.num_shards}" for i in range(dataset.num_shards))
    commits = {match[1] for file in files if (match := REVISION.search(file))}
    columns = dataset.column_names
    return HubFacts(
        files,
        _sizes(files),
        commits.pop() if len(commits) == 1 else source.revision,
        dataset.info.license or _licence_of_card(source),
        tuple(columns) if columns else None,
    )


def tables(source: HubSource, number: int, of: int, field: str) -> Iterator[Any]:
    """The rows of one of the data set's `of` shards as pyarrow tables that hold the field."""
    dataset = _dataset(source).shard(num_shards=of, index=number)
    if dataset.column_names:  # known before reading: the other columns are never decoded
        dataset = dataset.select_columns([field])
    yield from dataset.with_format("arrow").iter(batch_size=ROWS)


def _licence_of_card(source: HubSource) -> str | None:
    """What the data set's page says; a note in the manifest, which no one has to have."""
    card = Path(source.name) / "README.md"
    try:
        loaded = library("huggingface_hub").DatasetCard.load(str(card) if card.exists() else source.name)
    except Exception:  # no page, no network, or no data on the page
        return None
    licence = loaded.data.license
    return ", ".join(licence) if isinstance(licence, list) else licence


def _sizes(files: Sequence[str]) -> tuple[int | None, ...]:
    """The files' sizes, from one listing of each folder; a plan can do without them."""
    url_to_fs, sizes = library("fsspec").core.url_to_fs, dict[str, int | None]()
    for folder in {file.rpartition("/")[0] for file in files}:
        try:
            system, path = url_to_fs(folder)
            sizes |= {info["name"]: info.get("size") for info in system.ls(path, detail=True)}
        except Exception:  # of the network; and a numbered shard is in no folder
            continue
    return tuple(sizes.get(file.partition("://")[2] or file) for file in files)


@functools.cache
def _dataset(source: HubSource) -> Any:
    return _asked(source, "load_dataset", split=source.split, streaming=True)


def _data_files(source: HubSource) -> list[Any]:
    builder = _asked(source, "load_dataset_builder")
    return list((builder.config.data_files or {}).get(source.split, []))


def _asked(source: HubSource, function: str, **more: Any) -> Any:
    datasets = library("datasets")
    files = {"data_files": {source.split: source.data_files}} if source.data_files else {}
    try:
        return getattr(datasets, function)(source.name, source.config, revision=source.revision, **files, **more)
    except (OSError, ValueError, RuntimeError) as error:
        # OSError holds what `datasets` raises when there is no such data set, no such file or no network.
        reason = str(error).strip().replace("\n", " ") or repr(error)
        fix = "Check config=, split=, revision=, data_files= and the network."
        raise InputError("source", HUB + source.name, reason, fix) from error
