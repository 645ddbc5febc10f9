"""Everything that is measured of posteriors against a reference: numbers, their noise, tables, sentences, pictures."""
