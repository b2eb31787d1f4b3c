"""Cache format 1: recipe, layout, writer, reader, decoding, sealing, verification (docs/format.md)."""
