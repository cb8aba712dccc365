"""Transactions to graph to features. Imports no other room of the house."""
