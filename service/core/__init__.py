"""Prediction pipeline: reading of molecules, cache, queue, engines and models; no HTTP."""
