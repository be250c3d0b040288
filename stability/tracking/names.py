"""How a record's metric is called on W&B, which makes a section of all that stands before a name's first slash.

A name whose first part is no section of its own gets one in front: `gradient/rms/head` is `norms/gradient/rms/head`
there. The record's names are the contract and stay as they are; `record_name` maps back.
"""

RECORD = "record"
"""Key of a W&B config: what the analysis must know to the last digit, as JSON text. W&B itself writes 1.0 as 1."""

SECTIONS = ("loss", "attention_logit", "output_logit", "norms", "optimizer", "speed")
"""The sections of a W&B workspace."""

SECTION_OF = {
    "attention_entropy": "attention_logit",
    "query_key_cosine": "attention_logit",
    "attention_output": "norms",
    "mlp_output": "norms",
    "block_output": "norms",
    "final_stream": "norms",
    "query_rms": "norms",
    "key_rms": "norms",
    "gradient": "norms",
    "parameter": "norms",
    "update": "norms",
}
"""First part of a record's name -> the section that goes in front of it."""


def tracked_name(name: str) -> str:
    """A record's metric as it is called on W&B."""
    section = SECTION_OF.get(name.split("/", 1)[0])
    return f"{section}/{name}" if section else name


def record_name(name: str) -> str:
    """The inverse of `tracked_name`."""
    section, _, rest = name.partition("/")
    return rest if SECTION_OF.get(rest.split("/", 1)[0]) == section else name
