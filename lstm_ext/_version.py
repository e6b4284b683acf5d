"""The version, stated here alone: packaging, the citation and model files take it from here."""

__version__ = "0.1.0"
