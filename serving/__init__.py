"""Scores payments over HTTP: reads online features, computes missing ones, runs the promoted model."""
