"""One module for each outside protocol. Each needs an optional extra.

None imports another, but for the server, an app of FastAPI that answers errors as `fastapi_errors` does.
"""
