"""Many runs: a grid of settings over seeds, a grid of sizes over processes, and what one run will take."""
