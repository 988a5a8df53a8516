"""Where does a question run? In this process, or on Ray; and what a worker does with it."""
