"""The atlas in a browser: a small web server for its pages and for live computations."""
