"""The pico run of the merging tests."""

from tests.merging.conftest import pico, pico_config_file, pico_run

__all__ = ["pico", "pico_config_file", "pico_run"]
