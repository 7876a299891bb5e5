"""The benchmark of the service against other frameworks."""
