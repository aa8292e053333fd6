"""How models of each family are trained, merged and measured."""
