"""What do drivers have in common? How they compare several objectives, average experts, and ask in rounds."""
