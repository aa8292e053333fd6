"""The HTTP interface: routes, middleware, problems, streaming."""
