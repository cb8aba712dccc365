"""Benchmarks: each prints one line per figure and writes bench/out/NAME.jsonl. They report, they do not judge."""
