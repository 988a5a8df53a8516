"""What of a run is shown in pictures? What a page is told, the page itself, and the report that holds both."""
