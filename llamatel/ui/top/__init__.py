"""``llamatel top``: what runs now, on a terminal. ``source`` gets the document, ``screen`` draws it, ``keys`` reads."""
