"""HTTP API: routes, middleware, problems, streaming."""
