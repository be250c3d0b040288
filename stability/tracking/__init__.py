"""What runs leave on disk, and who is told about them live. Imports no JAX."""
