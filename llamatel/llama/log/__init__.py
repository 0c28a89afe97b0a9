"""llama.cpp's log: requests, the server's own facts and a router's models out of its lines."""
