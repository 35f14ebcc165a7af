"""The reference trading orchestrator: market data, positions and paper orders over HTTP."""

__version__ = "0.1.0"
