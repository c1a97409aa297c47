"""The guard at the edge of an application: one module per framework, imported only by those who use it."""
