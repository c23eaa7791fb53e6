"""Files of models and masks, read and written without torch modules."""
