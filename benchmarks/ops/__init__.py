"""Each op against eager PyTorch, and the page of these rows."""
