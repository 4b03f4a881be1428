"""The server and its one page: `tubelet serve MODEL`. `rooms` has the addresses, `work` and `batcher` do what they ask for."""
