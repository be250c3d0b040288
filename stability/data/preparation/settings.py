"""What a preparation is told: the keys of `python -m stability.prepare`."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from stability.errors import InputError
from stability.typed import Text

HUB = "hf:"
C4, C4_CONFIG = "allenai/c4", "en"


def _whole(value: Any) -> Any:
    """Let 1e8 and 64e6 stand for whole numbers, as people write sizes."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole), Field(ge=1)]

Documents = Literal["file", "line", "paragraph"]
Format = Literal["text", "jsonl", "parquet"]


@dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """The keys of the command line, `check` excepted. `python -m stability.prepare --help` says what each is."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    output_dir: str
    tokenizer: str
    source: Text = HUB + C4
    config: Text | None = None
    split: Text = "train"
    revision: Text | None = None
    data_files: Text | None = None
    format: Format | None = None
    text_field: Text = "text"
    documents: Documents = "file"
    end_of_sequence: Text | None = None
    vocabulary_size: Whole | None = None
    bpe_sample_bytes: Whole = 100_000_000
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    bad_documents: Literal["error", "skip"] = "error"
    licence: str | None = None
    unit_bytes: Whole = 64_000_000
    workers: Whole | None = None
    dry_run: bool = False

    @property
    def hub_name(self) -> str | None:
        """The data set's name on the hub, or its folder; None for files."""
        return self.source.removeprefix(HUB) if self.source.startswith(HUB) else None

    @property
    def hub_config(self) -> str | None:
        """The data set's configuration: English, where it is C4 and nothing else is said."""
        is_c4 = self.hub_name == C4 and self.data_files is None
        return C4_CONFIG if self.config is None and is_c4 else self.config

    def identity(self) -> dict[str, Any]:
        """What decides the result; the tokenizer's own identity, the source's files and their commit come beside it."""
        other = ("output_dir", "workers", "dry_run", "tokenizer", "licence", "revision")
        return {**{key: value for key, value in asdict(self).items() if key not in other}, "config": self.hub_config}


def check(settings: PreparationSettings) -> None:
    """Refuse keys that say nothing for the source chosen.

    Raises:
        InputError: names the key and what it belongs to.
    """
    defaults = {"config": None, "split": "train", "revision": None, "data_files": None}
    if settings.hub_name is None:
        for key, default in defaults.items():
            if (value := getattr(settings, key)) != default:
                fix = f"Leave it out, or write source={HUB}NAME."
                raise InputError(key, value, "belongs to a data set of the hub, and the source is files", fix)
    elif not settings.hub_name:
        raise InputError("source", settings.source, "names no data set", f"Write source={HUB}{C4}, say.")
    elif settings.format is not None:
        fix = "Leave it out: the data set says what its files are."
        raise InputError("format", settings.format, "belongs to files, and the source is a data set of the hub", fix)
