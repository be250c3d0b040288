"""What the benchmarks compare with: the same model as a person writes it without a framework."""
