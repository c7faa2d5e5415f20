"""A simulated exchange: a server of Binance's spot REST and streams.

`truth` has all bars, `faults` the errors to simulate, and `published` the bars that clients can see
now. `binance_rest` answers requests, `feed` makes the events of streams, `binance_streams` sends
them to WebSockets, and `server` runs all of it.
"""

from __future__ import annotations
