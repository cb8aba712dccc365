"""Where rows are kept: packed and newest online (Redis, SQLite), every version offline (PostgreSQL, Parquet)."""
