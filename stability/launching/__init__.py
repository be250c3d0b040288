"""From a composed config to trained runs: settings, grid, plan, folder, launch."""
