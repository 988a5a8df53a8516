"""How is a team served? Runs to look at, and searches, exports and jobs to start, over HTTP."""
