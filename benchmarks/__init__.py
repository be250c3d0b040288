"""Benchmarks, each a command: `python -m benchmarks.NAME`. Medians of interleaved rounds; absolute times say little."""
