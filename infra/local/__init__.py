"""PostgreSQL, Redis and Neo4j as ordinary processes of this machine, for development and tests: no Docker needed."""
