"""The Transformer: parameterization (roles), layers, and the whole."""
