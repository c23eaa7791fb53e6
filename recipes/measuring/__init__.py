"""Tables of the model card, and the image grid."""
