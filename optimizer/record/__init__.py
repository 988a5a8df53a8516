"""What was asked and answered, and where does it lie? Ledgers, their readers, and who may write."""
