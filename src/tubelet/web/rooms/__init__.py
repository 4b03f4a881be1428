"""The addresses of the server, one router for each part of the page; `web/app.py` puts them together."""
