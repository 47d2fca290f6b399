"""The audit of a model: attacks under one budget, and what tells or helps against them."""
