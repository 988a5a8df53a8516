"""What was made once on this host? Folders that are whole or not there, bounded, and held while they are used."""
