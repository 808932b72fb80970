"""The same work for millrace and its peers, each in an environment of its own."""
