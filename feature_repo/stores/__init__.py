"""Feast plugins over the platform's own stores; named in the configuration by dotted path."""
