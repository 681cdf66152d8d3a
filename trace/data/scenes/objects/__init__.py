"""The shapes of the catalog: `parts` has the building blocks, the other modules one function a category."""
