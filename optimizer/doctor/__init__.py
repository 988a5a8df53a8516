"""What is wrong here, and how is it mended? An installation, a run's folder, a cluster."""

from __future__ import annotations

from optimizer.doctor.finding import Finding

__all__ = ["Finding"]
