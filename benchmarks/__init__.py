"""The benchmark of the service against other frameworks and against its ceilings."""
