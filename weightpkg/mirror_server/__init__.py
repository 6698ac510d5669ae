"""Serving a mirror over HTTP: our own paths, the hub's read API, and Ollama's registry.

reply        what is asked and answered
conditions   ranges and validators (RFC 9110, sections 13 and 14)
checked      files of a mirror whose bytes are checked before they are sent
holdings     what a mirror has: repositories, their commits and files
static, hub, registry    the three protocols, each a function from a request to an answer
gate, metrics, app       who may ask, what is counted, and the ASGI application of all that
connection, listen       limits of connections, and the process (uvicorn)
"""
