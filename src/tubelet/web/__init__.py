"""The server and its one page: `tubelet serve MODEL`. `app` has the addresses, `work` and `batcher` do what they ask for."""
