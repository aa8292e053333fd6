"""Expert merging in a mixture of graph experts: KDEM and PPEM."""
