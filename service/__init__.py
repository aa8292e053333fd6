"""The HTTP service: one merged model, every task, many clients."""
