"""The base of all configurations: strict sections, reading of YAML, fingerprints."""
