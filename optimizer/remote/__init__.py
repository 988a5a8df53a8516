"""How is a search driven from afar? A job sent to a Ray cluster, and what is asked of it later."""
