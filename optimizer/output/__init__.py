"""How is a run told, and taken away? Terminal, report, logs, metrics, checkpoints."""
