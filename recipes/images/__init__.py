"""Images and captions that the embedded model is trained on."""
