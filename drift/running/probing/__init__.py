"""Ask a server that is running: the client, the kinds of servers, the prompts, and the lanes."""
