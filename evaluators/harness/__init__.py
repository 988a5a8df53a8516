"""How is a task of lm-evaluation-harness scored at forward speed? With its own documents, prompts and metrics."""
