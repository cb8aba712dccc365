-- Window features of one direction, {side} being the table of payments sent or received: account, other, ts, amount and
-- void_ts, when a status takes the payment out. That each payment has one status at most, looked up beforehand, is a
-- favour to this side; so is the order of the tables, by time.

-- name: load
CREATE TABLE sent AS SELECT sender AS account, receiver AS other, ts, amount, void_ts FROM given ORDER BY ts;
CREATE TABLE received AS SELECT receiver AS account, sender AS other, ts, amount, void_ts FROM given ORDER BY ts;

-- Counterparties come from each one's last payment: count(DISTINCT other) FILTER (...) takes several times as long.
-- name: slice
WITH
valid AS (
  SELECT account, other, ts, amount FROM {side} WHERE ts < $as_of AND (void_ts IS NULL OR void_ts >= $as_of)
),
sums AS (
  SELECT
    account,
    count(*) FILTER (ts >= $start_1h) AS count_1h,
    count(*) FILTER (ts >= $start_1d) AS count_1d,
    count(*) FILTER (ts >= $start_7d) AS count_7d,
    count(*) FILTER (ts >= $start_30d) AS count_30d,
    count(*) AS count_all,
    sum(amount) FILTER (ts >= $start_1h) AS amount_sum_1h,
    sum(amount) FILTER (ts >= $start_1d) AS amount_sum_1d,
    sum(amount) FILTER (ts >= $start_7d) AS amount_sum_7d,
    sum(amount) FILTER (ts >= $start_30d) AS amount_sum_30d,
    sum(amount) AS amount_sum_all,
    avg(amount) FILTER (ts >= $start_1h) AS amount_mean_1h,
    avg(amount) FILTER (ts >= $start_1d) AS amount_mean_1d,
    avg(amount) FILTER (ts >= $start_7d) AS amount_mean_7d,
    avg(amount) FILTER (ts >= $start_30d) AS amount_mean_30d,
    avg(amount) AS amount_mean_all,
    max(amount) FILTER (ts >= $start_1h) AS amount_max_1h,
    max(amount) FILTER (ts >= $start_1d) AS amount_max_1d,
    max(amount) FILTER (ts >= $start_7d) AS amount_max_7d,
    max(amount) FILTER (ts >= $start_30d) AS amount_max_30d,
    max(amount) AS amount_max_all,
    stddev_samp(amount) FILTER (ts >= $start_1h) AS amount_std_1h,
    stddev_samp(amount) FILTER (ts >= $start_1d) AS amount_std_1d,
    stddev_samp(amount) FILTER (ts >= $start_7d) AS amount_std_7d,
    stddev_samp(amount) FILTER (ts >= $start_30d) AS amount_std_30d,
    stddev_samp(amount) AS amount_std_all
  FROM valid
  GROUP BY account
),
others AS (
  SELECT
    account,
    count(*) FILTER (last_ts >= $start_7d) AS others_7d,
    count(*) FILTER (last_ts >= $start_30d) AS others_30d,
    count(*) AS others_all
  FROM (SELECT account, other, max(ts) AS last_ts FROM valid GROUP BY account, other)
  GROUP BY account
)
SELECT * FROM sums JOIN others USING (account)
