"""The documentation site: pages that are generated from the code, and hooks of MkDocs."""
