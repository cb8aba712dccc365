"""A payment history with habits and planted fraud, the same bytes for the same seed."""

from infra.simulator.simulate import SimulationReport, simulate

__all__ = ["SimulationReport", "simulate"]
