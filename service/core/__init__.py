"""From a request's molecules to their answers; no HTTP."""
