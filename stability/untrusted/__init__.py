"""What to do with what somebody else may have written: names, texts, YAML, links, secrets. Imports only `errors`."""
