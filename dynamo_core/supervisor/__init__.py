"""The process tree behind ``dynamo serve``. Importing this package costs nothing: every child and its own children do it."""
