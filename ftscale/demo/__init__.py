"""The demo data set: messages to a compute cluster's help desk, in eight classes."""
