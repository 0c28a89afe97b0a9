"""llama.cpp's log: parses requests, the server's own facts and a router's models from its lines."""
