"""The web page served next to /metrics: a WSGI application and its static files."""
