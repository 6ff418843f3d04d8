"""Self-supervised methods: one nn.Module in one file each."""
