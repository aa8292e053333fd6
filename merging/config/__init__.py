"""What all configurations share: strict sections, reading of YAML, fingerprints."""
