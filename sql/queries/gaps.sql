-- Statements of missing minutes.

-- gaps_find --
-- One tick of the accounting for minutes; return the number of open gaps.
SELECT feature_platform.find_gaps();

-- gaps_minutes_left --
-- The number of minutes that are not accounted for yet.
SELECT feature_platform.minutes_to_account();

-- gaps_due --
-- Open gaps that may be requested now, of these symbols and of symbols of their exchanges that are no longer recorded,
-- split at the ends of UTC days, oldest first; with a day, only those of that day.
SELECT g.symbol, g.start_ts AS start, g.end_ts AS end, g.attempts
  FROM feature_platform.due_gaps(%(symbols)s) AS g
 WHERE %(day)s::timestamptz IS NULL OR g.day = %(day)s
 ORDER BY start, g.symbol;

-- gaps_list --
-- Gaps by symbol and time: of one symbol or all, of some states or all.
SELECT symbol, start_ts AS start, end_ts AS end, state, found_at, changed_at, attempts, next_attempt_at, last_error,
    feed
  FROM public.ohlcv_1m_gaps
 WHERE (%(symbol)s::text IS NULL OR symbol = %(symbol)s) AND (%(states)s::text[] IS NULL OR state = ANY (%(states)s))
 ORDER BY symbol, start_ts;

-- gaps_answered --
-- Record that the exchange answered for these minutes.
SELECT feature_platform.gap_answered(%(symbol)s, %(start)s, %(end)s);

-- gaps_quiet_minutes --
-- The number of minutes of a range without trades.
SELECT coalesce(sum(extract(epoch FROM least(end_ts, %(end)s) - greatest(start_ts, %(start)s)) / 60), 0)::bigint
  FROM public.ohlcv_1m_gaps
 WHERE symbol = %(symbol)s AND state = 'quiet' AND end_ts > %(start)s AND start_ts < %(end)s;

-- gaps_failed --
-- Record that the exchange did not answer for these minutes, with its retry_after in seconds.
SELECT feature_platform.gap_failed(%(symbol)s, %(start)s, %(end)s, %(error)s, max_attempts => %(attempts)s,
                                   retry_after => make_interval(secs => %(retry_after)s));
