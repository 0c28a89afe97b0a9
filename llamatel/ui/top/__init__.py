"""``llamatel top``: the current state on a terminal. ``live_source`` gets the document, ``screen`` draws it."""
