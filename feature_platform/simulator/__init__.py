"""A simulated exchange: a real HTTP server that speaks Binance's spot REST.

`truth` knows every bar there ever is, `faults` what goes wrong on the way, `venue` what the
exchange has published by now, `binance_rest` how it is asked and answers, `server` runs it.
"""

from __future__ import annotations
