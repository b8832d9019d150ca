"""The scenes world: emoji and coloured shapes that move over textured backgrounds."""
