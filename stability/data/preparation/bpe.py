"""A tokenizer trained on the source itself: byte-level BPE, so that no text is out of its vocabulary."""

from collections.abc import Iterator

from stability.data.preparation.documents import Reader
from stability.data.preparation.libraries import library
from stability.data.preparation.packing import is_validation
from stability.data.preparation.settings import PreparationSettings
from stability.data.preparation.sources import Source
from stability.data.preparation.tokenizers import END_OF_TEXT

SAMPLED_UNITS = 64


def train_bpe(source: Source, settings: PreparationSettings, vocabulary_size: int) -> bytes:
    """The JSON of a byte-level BPE tokenizer, trained on a sample of the source's training documents.

    The sample is `bpe_sample_bytes` at most, in equal shares from the beginnings of up to 64 units spread evenly over
    the source. A text too short for so many merges gives a smaller vocabulary. The same sample gives the same JSON.

    Source: Radford et al., "Language models are unsupervised multitask learners", 2019, Section 2.2, for BPE on bytes.

    Raises:
        InputError: a document cannot be read.
    """
    tokenizers = library("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(source, settings), trainer=trainer)
    json: str = tokenizer.to_str()
    return json.encode()


def _sample(source: Source, settings: PreparationSettings) -> Iterator[str]:
    count = min(SAMPLED_UNITS, len(source.units))
    share = settings.bpe_sample_bytes // count
    for i in range(count):
        read = 0
        for document in Reader(settings).documents(source.units[i * len(source.units) // count]):
            if is_validation(document.content, settings.validation_fraction):
                continue
            # Cut to the share: a document may be a whole file.
            yield document.content[: share - read].decode(errors="ignore")
            read += len(document.content)
            if read >= share:
                break
