"""How a model is fitted: settings, batches, pools of labels, losses, optimisers, and the loop around them."""
