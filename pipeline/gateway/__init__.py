"""The HTTP gateway: requests in over HTTP, receipts and results out; any number of them, none with anything to lose."""
