"""Where payments and the graph come from: PostgreSQL or SQLite for records, Neo4j or DuckDB for the graph."""
