"""A service around one model, and a page for people: ``labelspace serve`` (extra ``serve``)."""
