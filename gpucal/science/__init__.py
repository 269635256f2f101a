"""The arithmetic: the seven steps, the plan that folds them, bad pixels, noise, light curves, transit depths."""
