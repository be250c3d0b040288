"""What a benchmark leaves: its result on the terminal, and in a file if one is named."""

import json
from pathlib import Path
from typing import Any


def report(result: dict[str, Any], output: Path | None) -> None:
    """Print a result as JSON, and write it to `output`; its folder is made."""
    text = json.dumps(result, indent=1)
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")
