"""What users of the method need around the layers. ``DCLS`` exports it."""
