"""A simulated exchange: a real server that speaks Binance's spot REST and streams.

`truth` knows every bar there ever is, `faults` what goes wrong on the way, `venue` what the
exchange has published by now, `binance_rest` how it is asked and answers, `feed` what it sends by
itself and `binance_streams` to whom, `server` runs it.
"""

from __future__ import annotations
