"""How do drivers walk downhill? The loop and the steps that they share."""
