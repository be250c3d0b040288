"""What a benchmark leaves: its result on the terminal, and in a file if one is named; and what it was made with."""

import importlib.metadata
import json
from datetime import date
from pathlib import Path
from typing import Any


def made_with(name: str, arguments: str = "") -> dict[str, Any]:
    """Date, command, device and versions, as every result states them.

    Args:
        name: the benchmark's.
        arguments: of its command.
    """
    from stability.launching.provenance import PACKAGES, device_description

    return {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.{name} {arguments}".strip(),
        "device": device_description(),
        "processor": processor_name(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def processor_name() -> str:
    """The processor as its maker names it, and the widest vectors that it knows."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    return f"{name}, {next((flag for flag in ('avx512f', 'avx2') if f' {flag} ' in text), 'no AVX2')}"


def report(result: dict[str, Any], output: Path | None) -> None:
    """Print a result as JSON, and write it to `output`; its folder is made."""
    print(json.dumps(result, indent=1))
    write(result, output)


def write(result: dict[str, Any], output: Path | None) -> None:
    """Write a result to `output`, if there is one; its folder is made."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
