"""Networks: linen modules, pure functions of (z, logsnr, cond). They know nothing of training."""
