"""The outermost room: the command line, local servers and deployment files."""
