"""What goes into a model: one file a kind, which loads the processor and makes a model's inputs of rows."""
