"""Load generators: raw non-blocking sockets, epoll and prebuilt frames, each in a process pinned to the load core."""
